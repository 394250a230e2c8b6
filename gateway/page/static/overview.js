// How does the gateway do?   Figures of all its workers, worked out here from /metrics.
import { bar, empty, h, pairs, panel, say, table } from "./dom.js";
import { Chart } from "./chart.js";
import { clock, count, known, percent, rate, time, usd } from "./format.js";
import { by, quantile, since, sum } from "./metrics.js";

const SPAN = 15; // seconds that a point of a rate looks back
const WIDE = 60; // and a point of a quantile
const JUDGED = new Set(["simple", "complex"]);
const ANSWERED = ({ tier }) => tier !== "none";
const FAILED = ({ status }) => Number(status) >= 500;

export const title = "Overview";

export function open(root, page) {
  const view = new Overview(page);
  root.append(view.element);
  view.show();
  page.history.addEventListener("sample", () => view.show(), { signal: page.signal });
  page.signal.addEventListener("abort", () => view.close());
}

class Overview {
  constructor(page) {
    this.page = page;
    this.whole = true;
    this.tiles = Object.fromEntries(["Requests", "Above the first tier", "First token, median", "Own time, median", "Saved, net", "Verdicts"]
      .map((name) => [name, tile(name)]));
    this.charts = [];
    this.names = null;
    this.rows = h("div", { class: "columns" });
    this.drawn = h("div", { class: "columns" });
    this.note = h("p", { class: "quiet note" }, "Reading the metrics…");
    this.element = h("div", {},
      h("div", { class: "heading" }, h("h1", { tabindex: "-1" }, title), this.choice()),
      this.note,
      h("div", { class: "tiles" }, Object.values(this.tiles).map(({ element }) => element)),
      this.drawn, this.rows);
  }

  choice() {
    const one = (name, whole) => h("label", {},
      h("input", { type: "radio", name: "span", checked: whole === this.whole, onchange: () => {
        this.whole = whole;
        this.show();
      } }), name);
    return h("fieldset", { class: "switch" }, h("legend", { class: "hidden" }, "Figures of"), one("Since start", true), one("Last 10 min", false));
  }

  close() {
    for (const chart of this.charts) chart.close();
  }

  show() {
    const { history } = this.page;
    const { now } = history;
    if (!now) return;
    const old = this.whole ? null : history.samples[0];
    const span = since(now, old);
    this.draw(history.ready);
    this.tell(span, history);
    this.list(span, history.ready);
    const seen = old ? `the last ${Math.max(1, Math.round((now.at - old.at) / 60))} min, since this page looks` : "all since the gateway started";
    say(this.note, history.restarted
      ? `The gateway was started again; counting began anew at ${clock(history.restarted)}. Figures: ${seen}.`
      : `Figures of ${workers(history.ready)}: ${seen}.`);
  }

  /** Charts, once the tiers are known. */
  draw(ready) {
    const names = Object.keys(ready?.tiers ?? {});
    if (!names.length || String(names) === String(this.names)) return;
    this.names = names;
    this.close();
    const two = [["median", "--line-0"], ["95 %", "--line-2"]];
    this.charts = [
      new Chart("Answers per second", names.map((name, at) => [name, paint(at, names.length)]), rate),
      new Chart("Time to the first token", two, time),
      new Chart("Gateway’s own time", two, time),
    ];
    this.drawn.replaceChildren(...this.charts.map(({ element }) => element));
  }

  tell(span, history) {
    const { tiles } = this;
    const all = sum(span.requests);
    const recent = history.before(history.samples.length - 1, SPAN);
    tiles.Requests(count(all), `${recent ? `${rate(sum(recent.requests) / recent.seconds)}/s now, ` : ""}${count(sum(span.requests, FAILED))} failed`);
    const [answers, lowest] = [sum(span.requests, ANSWERED), this.names?.[0]];
    const upper = sum(span.requests, (labels) => ANSWERED(labels) && labels.tier !== lowest);
    tiles["Above the first tier"](percent(answers ? upper / answers : null), `${count(upper)} of ${count(answers)} answers`);
    tiles["First token, median"](time(quantile(span.ttft, 0.5)), `95 % within ${time(quantile(span.ttft, 0.95))}`);
    tiles["Own time, median"](time(quantile(span.overhead, 0.5)), `95 % within ${time(quantile(span.overhead, 0.95))}`);
    const aside = sum(span.cost, ({ kind }) => kind !== "answer");
    tiles["Saved, net"](usd(sum(span.saved) - sum(span.dearer) - aside), `after ${usd(aside)} overhead`);
    const asked = sum(span.verdicts);
    const good = sum(span.verdicts, ({ outcome }) => JUDGED.has(outcome));
    tiles.Verdicts(percent(asked ? good / asked : null), asked ? `${count(asked - good)} of ${count(asked)} failed` : "none wanted yet");
    this.plot(history);
  }

  plot(history) {
    if (!this.charts.length) return;
    const times = history.samples.map(({ at }) => at);
    const short = times.map((_, at) => history.before(at, SPAN));
    const long = times.map((_, at) => history.before(at, WIDE));
    const [answers, first, own] = this.charts;
    answers.set(times, ...this.names.map((name) => short.map((span) =>
      span && sum(span.requests, ({ tier }) => tier === name) / span.seconds)));
    for (const [chart, place] of [[first, "ttft"], [own, "overhead"]]) {
      chart.set(times, ...[0.5, 0.95].map((q) => long.map((span) => span && quantile(span[place], q))));
    }
  }

  list(span, ready) {
    const decided = by(span.decisions, ({ rule, reason, tier }) => `${rule}\n${reason}\n${tier}`);
    const all = sum(span.decisions);
    const nothing = () => empty("No request yet. ", h("a", { href: "#try" }, "Send one"), ".");
    const why = panel("Why: the most frequent decisions", decided.length ? table("Why", ["rule", "reason", "tier", "#requests", ""], decided.slice(0, 8).map(([name, value]) =>
      [...name.split("\n"), count(value), bar(value / all)])) : nothing());
    why.classList.add("whole");
    this.rows.replaceChildren(
      h("div", { class: "stack" },
        panel("By tier", this.names && sum(span.requests) ? this.shares(span) : nothing()),
        panel("Verdicts", verdicts(span))),
      panel("Beside the answers", pairs(aside(span))),
      panel("Standing", pairs(standing(ready))),
      why);
  }

  shares(span) {
    const all = sum(span.requests, ANSWERED);
    return table("By tier", ["tier", "#answers", "", "#share", "#cost"], this.names.map((name, at) => {
      const answers = sum(span.requests, ({ tier }) => tier === name);
      return [name, count(answers), bar(all ? answers / all : 0, paint(at, this.names.length).slice(2)), percent(all ? answers / all : null),
        usd(sum(span.cost, ({ tier }) => tier === name))];
    }));
  }
}

/** A figure with a line below it: a function that sets both. */
function tile(name) {
  const value = h("strong", { class: "figure" }, "–");
  const below = h("span", { class: "quiet" }, " ");
  const set = (figure, words) => (say(value, figure), say(below, words));
  set.element = h("div", { class: "tile" }, h("span", { class: "name" }, name), value, below);
  return set;
}

/** The colour of a tier's line: quiet for the lowest, the accent for the highest. */
function paint(at, tiers) {
  return at === 0 ? "--line-0" : at === tiers - 1 ? "--line-2" : "--line-1";
}

function workers(ready) {
  return ready && ready.workers > 1 ? `${ready.workers} workers together` : "this gateway";
}

function verdicts(span) {
  const found = by(span.verdicts, ({ outcome, source }) => `${outcome}\n${source}`);
  const all = sum(span.verdicts);
  if (!found.length) return empty("Nobody was asked yet.");
  return table("Verdicts", ["outcome", "from", "#verdicts", ""], found.map(([name, value]) => {
    const [outcome, source] = name.split("\n");
    return [JUDGED.has(outcome) ? outcome : h("span", { class: "bad" }, outcome), source, count(value), bar(value / all)];
  }));
}

function aside(span) {
  const part = (list, chosen) => (sum(list) ? percent(sum(list, chosen) / sum(list)) : "–");
  const refused = by(span.refusals, ({ code }) => code).map(([code, value]) => `${code} ${count(value)}`).join(", ");
  const looked = span.cache.filter(([{ result }]) => result !== "bypass");
  return [
    ["Drafts kept", part(span.drafts, ({ outcome }) => outcome === "kept")],
    ["Answers from the cache", `${part(looked, ({ result }) => result !== "miss")} of ${count(sum(looked))} that may be`],
    ["Spent in all", usd(sum(span.cost))],
    ["Spent on triage", usd(sum(span.cost, ({ kind }) => kind === "triage"))],
    ["Spent on drafts thrown away", usd(sum(span.cost, ({ kind }) => kind === "draft"))],
    ["Saved by routing, by the cache", [sum(span.saved, ({ how }) => how === "routed") - sum(span.dearer),
      sum(span.saved, ({ how }) => how === "cached")].map(usd).join(", ")],
    ["Refused", refused || "none"],
  ];
}

/** A line for a file, where the gateway follows one. */
function file(name, state) {
  const told = state === "broken" ? "wrong; the last good one stays" : state;
  return state ? [[name, state === "ok" ? state : h("span", { class: "bad" }, told)]] : [];
}

function standing(ready) {
  if (!ready) return [["Gateway", "not known yet"]];
  const { policy, triage, limits } = ready;
  const lacking = Object.keys(ready.models).filter((name) => ready.models[name].some((one) => one !== null && one !== "ok"));
  const local = Object.entries(limits).filter(([, kept]) => kept !== "shared").map(([name, kept]) => `${name} ${kept}`);
  const alone = Object.entries(ready.tiers).filter(([, { up }]) => up.includes(false))
    .map(([name, { up }]) => `${up.filter((one) => !one).length} of ${up.length} of ${name}`);
  return [
    ["Gateway", ready.status === "ok" ? "serves" : h("span", { class: "bad" }, ready.status)],
    ["Workers", `${ready.workers}${ready.processes > ready.workers ? `, ${ready.processes} processes on the store` : ""}`],
    ["Store", ready.store === "down" ? h("span", { class: "bad" }, "down") : ready.store],
    ["Servers", alone.length ? h("a", { class: "bad", href: "#tiers" }, `left alone: ${alone.join(", ")}`) : "all asked"],
    ...(lacking.length ? [["Models", h("span", { class: "bad" }, `missing, with a shorter context, or our key refused: ${lacking.join(", ")}`)]] : []),
    ["Limits", local.length ? local.join(", ") : "shared"],
    ["Policy", [policy.name, policy.revision, policy.digest].filter(Boolean).join(" · ")],
    ...(policy.problems?.length ? [["Policy file", h("a", { class: "bad", href: "#policy" }, "wrong; the last good one stays")]] : []),
    ["Classifier", triage ? `${triage.tier} by ${triage.strategy}` : "not asked"],
    ...file("Keys file", ready.keys_file),
    ...file("Certificate", ready.certificate),
  ].filter(([, value]) => known(value) || typeof value !== "number");
}
