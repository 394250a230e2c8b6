// What do operators want?   The policy in force, what is wrong with its file, and what another text would change.
import { copier, empty, h, pairs, panel, table } from "./dom.js";
import { Failed, admin, json, poll } from "./api.js";
import { count } from "./format.js";

const EVERY = 5; // seconds

export const title = "Policy";

export function open(root, page) {
  const view = new PolicyView(page);
  root.append(view.element);
  poll(() => view.look(), EVERY, page.signal);
}

class PolicyView {
  constructor(page) {
    this.page = page;
    this.told = "";
    this.state = h("div", { class: "stack" }, empty("Reading…"));
    this.candidate = h("textarea", { rows: "16", spellcheck: "false", autocomplete: "off", wrap: "off" });
    this.found = h("div", { class: "stack", "aria-live": "polite" });
    const form = h("form", { class: "panel stack", onsubmit: (event) => {
      event.preventDefault();
      this.compare();
    } },
    h("label", { class: "field" }, h("span", {}, "Another text, compared with the policy in force. Nothing is put in force here."), this.candidate),
    h("div", { class: "tools" }, h("button", { class: "strong" }, "Check and compare"),
      h("button", { type: "button", class: "plain", onclick: () => (this.candidate.value = this.text) }, "Begin with the one in force")));
    this.element = h("div", { class: "stack" }, h("div", { class: "heading" }, h("h1", { tabindex: "-1" }, title)),
      this.state, h("h2", { class: "apart" }, "Compare"), form, this.found);
  }

  async look() {
    const { signal } = this.page;
    let [policy, candidate] = [null, null];
    try {
      [policy, candidate] = await Promise.all([json(admin("admin/policy", { signal })), json(admin("admin/policy/candidate", { signal }))]);
    } catch (error) {
      if (error instanceof Failed && !this.told) this.state.replaceChildren(empty(error.message));
      throw error;
    }
    if (this.text === undefined) this.candidate.value ||= policy.text ?? "";
    [this.text, this.file] = [policy.text ?? "", policy.file];
    const told = JSON.stringify([policy, candidate]);
    if (told === this.told) return;
    this.told = told;
    this.state.replaceChildren(...standing(policy, candidate, this.page.history.ready?.workers ?? 1));
  }

  async compare() {
    const { signal } = this.page;
    this.found.replaceChildren(h("p", { class: "quiet" }, "Checking…"));
    try {
      const yaml = this.candidate.value;
      const checked = await json(admin("admin/policy/check", { yaml, signal }));
      this.found.replaceChildren(checked.ok ? h("p", {}, "It is right, and does what its tests say.") : problems("It cannot come into force", checked.problems, this.file));
      if (checked.ok || checked.tests.length) this.found.append(tests(checked.tests)); // of what cannot be read none ran
      if (!checked.ok) return;
      this.found.append(...changes(await json(admin("admin/policy/diff", { yaml, signal }))));
    } catch (error) {
      if (!(error instanceof Failed)) throw error;
      this.found.replaceChildren(h("p", { class: "bad", role: "alert" }, error.message));
    }
  }
}

const when = (seconds) => new Date(1000 * seconds).toLocaleString("en-GB");

function standing(policy, candidate, workers) {
  const { name, revision, digest, file, source, since, problem, rollback } = policy;
  return [
    problem ? problems(`The file is wrong since ${when(problem.at)}; the policy below stays in force`, problem.problems, file) : null,
    rollback ? h("p", { class: "warn" }, `Rolled back ${when(rollback.at)}: ${rollback.note}`) : null,
    h("div", { class: "columns" },
      panel("In force", pairs([
        ["Name", name], ["Revision", revision || "–"], ["Digest", h("code", {}, digest)], ["Since", when(since)],
        ["From", source === "rollback" ? "a rollback" : file ?? "what ships with the program"],
        ["Last reload", problem ? h("span", { class: "bad" }, "rejected") : "no error"],
      ])),
      tests(policy.tests), revisions(policy.revisions)),
    candidate ? trial(candidate, workers) : null,
    text(policy.text),
  ].filter(Boolean);
}

/** A problem of another file than the policy's own, as a candidate's, names that. */
function problems(name, list, own) {
  return h("section", { class: "panel wrongs", role: "alert" }, h("h2", { class: "bad" }, name),
    h("ul", {}, list.map(({ file, line, column, path, message }) =>
      h("li", {}, h("code", {}, `${file === own ? "" : `${file}:`}${line}:${column}`), " ", path ? h("b", {}, `${path}: `) : null, message))));
}

function tests(list) {
  if (!list.length) return panel("Tests", empty("This file has no tests of its own."));
  const failed = list.filter((trial) => trial.problems.length).length;
  return panel(failed ? `Tests: ${failed} of ${list.length} fail` : `Tests: all ${list.length} pass`,
    h("ul", { class: "ticks" }, list.map(({ name, got, problems: wrong }) =>
      h("li", {}, h("span", { class: wrong.length ? "bad" : "good" }, wrong.length ? "fails" : "passes"),
        h("span", {}, name, " ", h("span", { class: "quiet" }, wrong.length ? wrong.map(({ message }) => message).join("; ") : got ? [got.tier ?? "asks", got.rule].filter(Boolean).join(" by ") : ""))))));
}

function revisions(list) {
  return panel("Revisions", list.length ? table("Revisions", ["digest", "name", "in force since"], list.slice(0, 8).map(({ digest, name, revision, at, current }) =>
    [h("code", {}, digest), current ? h("b", {}, `${name} ${revision} (now)`) : `${name} ${revision}`, when(at)])) : empty("None is kept."));
}

/** The candidate that the file names, and how it fares, as the worker that was asked saw it. */
function trial(found, workers) {
  const { name, revision, canary, shadow, served, compared, disagreements } = found;
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  return panel(`On trial: ${name} ${revision}${workers > 1 ? `, as one of ${workers} workers saw it` : ""}`, pairs([
    ["Serves", `${(100 * canary).toFixed(1)} % of the callers; ${count(sum(served.map((one) => one.count)))} answers so far`],
    ["Compared with", `${(100 * shadow).toFixed(1)} % of the other decisions: ${Object.entries(compared).map(([what, n]) => `${what} ${count(n)}`).join(", ") || "none yet"}`],
  ]), disagreements.length ? table("Disagreements", ["in force", "on trial", "#decisions", "for example"], disagreements.map((one) =>
    [`${one.tier} by ${one.rule}`, `${one.candidate_tier} by ${one.candidate_rule}`, count(one.count), h("code", {}, one.examples.join(" "))])) : null);
}

function text(said) {
  if (!said) return panel("Text", empty("This gateway follows no policy file."));
  return h("section", { class: "panel" }, h("div", { class: "heading" }, h("h2", {}, "Text"), copier(() => said)),
    h("pre", { class: "numbered", tabindex: "0", "aria-label": "The policy’s text" }, said.replace(/\n$/, "").split("\n").map((line) => h("code", {}, `${line}\n`))));
}

const spelled = (value) => (value === null ? h("span", { class: "quiet" }, "not given") : h("code", {}, typeof value === "string" ? value : JSON.stringify(value)));

function changes({ changes: list, records, undecided, moves, unjudged }) {
  return [
    panel("What it says differently", list.length ? table("What it says differently", ["key", "in force", "this text"], list.map(({ path, a, b }) => [h("code", {}, path), spelled(a), spelled(b)])) : empty("Nothing.")),
    panel(`What the newest ${count(records)} decisions would become`,
      unjudged ? h("p", { class: "warn" }, `That cannot be told: ${unjudged}`)
        : moves.length ? table("Moves", ["from", "to", "by rule", "#decisions", "for example"], moves.map((one) => [one.origin, one.to, one.rule, count(one.count), h("code", {}, one.examples.join(" "))]))
          : empty(records ? "None would go elsewhere." : "There are no decisions yet."),
      undecided ? h("p", { class: "quiet" }, `${count(undecided)} would need a verdict that was not asked for.`) : null),
  ];
}
