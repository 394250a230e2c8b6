// Which view is shown, to whom, in which colours?
import { Failed, admin, json, key, news, poll, send, text } from "./api.js";
import { h, say } from "./dom.js";
import { History, sample } from "./metrics.js";
import * as decisions from "./decisions.js";
import * as overview from "./overview.js";
import * as policy from "./policy.js";
import * as tiers from "./tiers.js";
import * as trial from "./try.js";

const EVERY = 3; // seconds between two looks at the metrics
const NEXT = { auto: "light", light: "dark", dark: null };
const VIEWS = { overview, decisions, try: trial, policy, tiers };
const [root, views, state, forget, theme] = ["main", "views", "state", "forget", "theme"].map((id) => document.getElementById(id));

const watched = new History();
let [shown, watching] = [null, null]; // of the view that is open, of the metrics

/** The view that the address names, and what of it. */
function routed() {
  try {
    const [name, argument = null] = location.hash.slice(1).split("/").map(decodeURIComponent);
    if (Object.hasOwn(VIEWS, name)) return [name, argument];
  } catch {
    // an address that nobody wrote here
  }
  return ["overview", null];
}

function open() {
  if (!key.get()) return locked();
  const [name, argument] = routed();
  if (shown?.name === name && shown.argument === argument) return;
  const first = shown === null;
  shown?.close.abort();
  const close = new AbortController();
  shown = { name, argument, close };
  watching ??= watch();
  views.hidden = forget.hidden = false;
  for (const link of views.children) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${VIEWS[name].title} · Tiergate`;
  root.replaceChildren();
  const place = (said) => {
    const kind = said && shown.argument === null ? "pushState" : "replaceState"; // back leads to the list
    shown.argument = said;
    window.history[kind](null, "", said ? `#${name}/${encodeURIComponent(said)}` : `#${name}`);
  };
  VIEWS[name].open(root, { history: watched, signal: close.signal, argument, place });
  if (!first) root.querySelector("h1")?.focus();
}

function watch() {
  const close = new AbortController();
  const { signal } = close;
  poll(async () => {
    const [metrics, ready] = await Promise.all([text(send("metrics", { signal })), json(send("ready", { signal }))]);
    watched.put(sample(metrics, Date.now() / 1000), ready);
  }, EVERY, signal);
  return close;
}

function locked(why = "") {
  shown?.close.abort();
  watching?.abort();
  shown = watching = null;
  views.hidden = forget.hidden = true;
  document.title = "Tiergate";
  const given = h("input", { type: "password", autocomplete: "off", required: true, "aria-describedby": "wrong" });
  const wrong = h("p", { class: "bad wrong", role: "alert", id: "wrong" }, why);
  const form = h("form", { class: "panel lock", onsubmit: async (event) => {
    event.preventDefault();
    key.set(given.value.trim());
    try {
      await admin("admin/records?limit=1");
    } catch (error) {
      if (!(error instanceof Failed)) throw error;
      key.forget();
      say(wrong, error.message);
      return given.select();
    }
    open();
    root.querySelector("h1")?.focus();
  } },
  h("h1", {}, "Admin key"),
  h("p", { class: "quiet" }, "tiergate demo prints it, tiergate keys admin makes one, or it is what GATEWAY_ADMIN_KEY says. It stays in this tab until that is closed."),
  h("label", { class: "field" }, h("span", {}, "Key"), given),
  wrong,
  h("button", { class: "strong" }, "Open"));
  root.replaceChildren(form);
  given.focus();
}

/** Light, dark, as the system has it: in that order, for as long as this browser remembers. */
function paint(chosen) {
  if (chosen) localStorage.setItem("theme", chosen);
  else localStorage.removeItem("theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
  else delete document.documentElement.dataset.theme;
  say(theme, `Theme: ${chosen ?? "auto"}`);
  document.dispatchEvent(new Event("theme"));
}

function answers(does) {
  if (state.className === (does ? "state up" : "state down")) return;
  state.className = does ? "state up" : "state down";
  state.replaceChildren(h("span", {}, does ? "Connected" : "No answer; trying again"));
}

views.append(...Object.entries(VIEWS).map(([name, view]) => h("a", { href: `#${name}` }, view.title)));
news.addEventListener("up", () => answers(true));
news.addEventListener("down", () => answers(false));
news.addEventListener("locked", ({ detail }) => views.hidden || locked(detail));
forget.addEventListener("click", () => (key.forget(), locked()));
theme.addEventListener("click", () => paint(NEXT[document.documentElement.dataset.theme ?? "auto"]));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("theme")));
document.getElementById("skip").addEventListener("click", () => root.focus());
addEventListener("hashchange", open);
addEventListener("pagehide", () => watched.save());
paint(document.documentElement.dataset.theme ?? null);
open();
