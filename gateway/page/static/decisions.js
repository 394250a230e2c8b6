// What was decided of late?   Records of all workers, newest first; each opens to its whole explanation.
import { bar, empty, h, pairs, panel, say } from "./dom.js";
import { admin, json, poll, text } from "./api.js";
import { explanation, raw } from "./explain.js";
import { clock, count, known, time } from "./format.js";

const EVERY = 2; // seconds
const KEPT = 200;
const LATE = 3; // seconds by which workers may be late with a record

export const title = "Decisions";

export function open(root, page) {
  const view = new Decisions(page);
  root.append(view.element);
  poll(() => view.look(), EVERY, page.signal);
}

class Decisions {
  constructor(page) {
    this.page = page;
    this.newest = 0;
    this.rows = new Map();
    this.paused = false;
    this.chosen = page.argument;
    this.list = h("ol", { class: "feed", "aria-label": "Decisions, the newest first", onkeydown: (event) => this.move(event) });
    this.none = empty("Reading…");
    this.detail = h("aside", { class: "detail", "aria-label": "The decision", hidden: true, tabindex: "-1", onkeydown: (event) => {
      if (event.key === "Escape") this.shut();
    } });
    this.filter = h("input", { type: "search", placeholder: "tier, rule, status, caller, id", oninput: () => this.sift(), onkeydown: (event) => event.key === "Enter" && this.seek() });
    this.pause = h("button", { type: "button", class: "plain", "aria-pressed": "false", onclick: () => this.toggle() }, "Pause");
    this.split = h("div", { class: "split" }, h("div", { class: "side" }, this.none, names(), this.list), this.detail);
    this.element = h("div", {},
      h("div", { class: "heading" }, h("h1", { tabindex: "-1" }, title),
        h("div", { class: "tools" }, h("label", { class: "field" }, h("span", { class: "hidden" }, "Filter"), this.filter), this.pause)),
      this.split);
  }

  toggle() {
    this.paused = !this.paused;
    this.pause.setAttribute("aria-pressed", String(this.paused));
    say(this.pause, this.paused ? "Go on" : "Pause");
  }

  async look() {
    if (this.paused) return;
    const { signal } = this.page;
    const told = await text(admin(`admin/records?limit=${KEPT}&after=${Math.max(0, this.newest - LATE)}`, { signal }));
    for (const line of told.split("\n").filter(Boolean)) this.put(JSON.parse(line));
    say(this.none, "No decision yet. What is asked of this gateway shows here within two seconds.");
    this.none.hidden = this.rows.size > 0;
    if (this.chosen && this.detail.hidden) this.show(this.chosen);
  }

  put(record) {
    this.newest = Math.max(this.newest, record.at);
    const name = `${record.caller} ${record.id}`;
    if (this.rows.has(name)) return;
    const row = h("li", {}, line(record, () => this.choose(record)));
    row.words = words(record);
    this.rows.set(name, { row, record });
    row.hidden = !row.words.includes(this.filter.value.toLowerCase());
    this.list.prepend(row);
    if (this.rows.size > KEPT) {
      const [oldest] = this.rows.keys();
      this.rows.get(oldest).row.remove();
      this.rows.delete(oldest);
    }
  }

  sift() {
    const wanted = this.filter.value.toLowerCase();
    for (const { row } of this.rows.values()) row.hidden = !row.words.includes(wanted);
  }

  /** Arrow keys go from row to row. */
  move(event) {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    if (!step) return;
    let next = event.target.closest("li")?.[step];
    while (next?.hidden) next = next[step];
    if (!next) return;
    event.preventDefault();
    next.firstElementChild.focus();
  }

  choose(record) {
    this.page.place(record.id);
    this.show(record.id);
  }

  async show(id) {
    this.chosen = id;
    for (const { row, record } of this.rows.values()) row.firstElementChild.toggleAttribute("aria-current", record.id === id);
    this.detail.hidden = false;
    this.split.classList.add("open");
    let record = [...this.rows.values()].find((one) => one.record.id === id)?.record;
    try {
      record ??= await this.older(id);
    } catch (error) {
      if (error.name !== "AbortError") this.detail.replaceChildren(this.head(id), h("p", { class: "bad", role: "alert" }, error.message));
      return;
    }
    if (this.chosen !== id) return;
    if (!record) {
      this.detail.replaceChildren(this.head(id), empty("This decision is not among those that are kept."));
      return;
    }
    this.detail.replaceChildren(this.head(id), ended(record));
    this.detail.focus({ preventScroll: true });
    let told;
    try {
      told = await json(admin("admin/records/explain", { body: record, signal: this.page.signal }));
    } catch (error) {
      if (error.name !== "AbortError") this.detail.append(h("p", { class: "bad", role: "alert" }, `It cannot be explained: ${error.message}`), raw(record, "The record as JSON"));
      return;
    }
    if (this.chosen !== id) return;
    const other = told.same ? null : h("p", { class: "warn" }, `${told.policy} decided this. The policy in force is another one; this is what it would say.`);
    this.detail.replaceChildren(this.head(id), explanation(told.explanation, other), ended(record), raw(record, "The record as JSON"));
  }

  /** The record of a decision that is kept and no more in the list; undefined where there is none. */
  async older(id) {
    this.detail.replaceChildren(this.head(id), empty("Reading…"));
    const told = await text(admin(`admin/records?id=${encodeURIComponent(id)}`, { signal: this.page.signal }));
    const line = told.split("\n").findLast(Boolean);
    return line && JSON.parse(line);
  }

  /** What was typed, if it stands in no line and is a request's id. */
  seek() {
    const id = this.filter.value.trim();
    if (!id || [...this.rows.values()].some(({ row }) => !row.hidden)) return;
    this.page.place(id);
    this.show(id);
  }

  head(id) {
    return h("div", { class: "heading" }, h("h2", { class: "id" }, id),
      h("button", { type: "button", class: "plain", onclick: () => this.shut() }, "Close"));
  }

  shut() {
    const found = [...this.rows.values()].find(({ record }) => record.id === this.chosen);
    this.chosen = null;
    this.detail.hidden = true;
    this.split.classList.remove("open");
    this.page.place(null);
    for (const { row } of this.rows.values()) row.firstElementChild.removeAttribute("aria-current");
    (found?.row.firstElementChild ?? this.filter).focus();
  }
}

function words({ tier, route, status, caller, id, verdict }) {
  return [tier, route.tier, route.rule, route.reason, status, caller, id, verdict?.label].join(" ").toLowerCase();
}

/** What the columns of the lines are; hidden from who hears the page, where each line says it. */
function names() {
  const told = [["at", "ended"], ["tier", "tier"], ["why", "rule, reason"], ["p", "complex"], ["status", "status"], ["ttft", "first token"], ["all", "all"], ["used", "tokens in / out"], ["caller", "caller"]];
  return h("div", { class: "row names", "aria-hidden": "true" }, told.map(([kind, name]) => h("span", { class: kind }, name)));
}

/** One decision in a line. */
function line(record, onclick) {
  const { at, tier, route, verdict, status, ttft, seconds, used, caller } = record;
  const p = verdict?.p_complex;
  return h("button", { type: "button", class: "row", onclick },
    h("span", { class: "at" }, clock(at)),
    h("span", { class: "tier" }, tier ?? h("span", { class: "bad" }, "none")),
    h("span", { class: "why" }, route.rule, " ", h("span", { class: "quiet" }, route.reason),
      tier === null || tier === route.tier ? null : h("span", { class: "bad" }, ` in place of ${route.tier}`)),
    h("span", { class: "p" }, known(p) ? [bar(p), h("span", { class: "num" }, p.toFixed(2))] : verdict && !verdict.label ? h("span", { class: "bad" }, verdict.reason) : null),
    h("span", { class: `status num ${status >= 400 ? "bad" : ""}` }, String(status)),
    h("span", { class: "ttft num" }, unseen("first token "), time(ttft)),
    h("span", { class: "all num" }, unseen("all of it "), time(seconds)),
    h("span", { class: "used num" }, unseen("tokens "), used ? `${count(used.prompt)} / ${count(used.completion)}` : "–"),
    h("span", { class: "caller" }, caller));
}

const unseen = (words) => h("span", { class: "hidden" }, words);

/** What came of it. */
function ended(record) {
  const { at, tier, route, status, ttft, seconds, used, caller, policy, held, outcome } = record;
  return panel("What came of it", pairs([
    ["Ended", new Date(1000 * at).toLocaleString("en-GB")],
    ["Answered by", tier === null ? h("span", { class: "bad" }, "nobody") : tier === route.tier ? tier : `${tier} (${route.tier} was chosen)`],
    ["Status", String(status)],
    ["First token", time(ttft)],
    ["All of it", time(seconds)],
    ["Tokens", used ? `${count(used.prompt)} in (${count(used.cached ?? 0)} cached), ${count(used.completion)} out` : "not counted"],
    ["Caller", caller],
    ["Policy", policy],
    ...(held ? [["Hold-back", `${held.outcome}: ${held.reason}`]] : []),
    ...(outcome ? [["Judged", `${outcome.quality} by ${outcome.source}`]] : []),
  ]));
}
