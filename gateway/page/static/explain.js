// Why did a request go where it went?   The whole explanation, as POST /v1/route words it.
import { bar, copier, h, pairs, panel, table } from "./dom.js";
import { known, percent, time, usd } from "./format.js";

/** The explanation as elements; `more` go to its head. */
export function explanation(found, ...more) {
  return h("div", { class: "explained" },
    h("p", { class: "sentence" }, sentence(found)),
    ...more,
    found.verdict ? panel("Verdict", ...verdict(found)) : null,
    panel("Rules", rules(found)),
    found.sides ? panel("With another verdict", sides(found)) : null,
    panel("What an answer costs", costs(found)),
    panel("Facts", facts(found.facts)),
    found.score ? panel("Local score", h("p", {}, `${found.score.value.toFixed(3)}: ${found.score.reasons.join(", ") || "nothing in particular"}`)) : null,
    raw(found));
}

export function raw(found, title = "As JSON") {
  const text = JSON.stringify(found, null, 2);
  return h("details", { class: "raw" }, h("summary", {}, title), copier(() => text), h("pre", { tabindex: "0" }, text));
}

/** One way in words: where it leads, or why nowhere. */
function way(found) {
  if (!found) return "nobody knows";
  if ("refused" in found) return `refused with ${found.status}: ${found.refused}`;
  if ("ask" in found) return `rule ${found.ask} asks the classifier first`;
  return found.tier;
}

function sentence({ route, verdict: said, triaged }) {
  if ("refused" in route) return `Refused with status ${route.status}: ${route.refused}`;
  if ("ask" in route) return `Rule ${route.ask} wants a verdict, and none was given; a draft may start on ${route.draft ?? "no tier"}.`;
  const parts = [h("b", {}, route.tier), ` by ${route.rule === "caller" ? "the caller’s wish" : `rule ${route.rule}`}${route.reason === "rule" ? "" : `: ${route.reason}`}.`];
  if (said?.label && known(said.p_complex)) parts.push(` The classifier’s ${said.p_complex.toFixed(2)} stands ${Math.abs(said.margin).toFixed(2)} ${said.margin >= 0 ? "above" : "below"} the edge at ${said.threshold}.`);
  else if (said && !said.label) parts.push(` The classifier gave no verdict (${said.reason}).`);
  else if (!triaged) parts.push(" Nobody had to be asked.");
  if (route.p < 1) parts.push(` By chance: this tier had ${percent(route.p)}.`);
  if (route.tiers.length > 1) parts.push(` Should it fail: ${route.tiers.slice(1).join(", then ")}.`);
  return parts;
}

function verdict({ verdict: said, instead }) {
  const told = [
    ["Label", said.label ?? h("span", { class: "bad" }, `none: ${said.reason}`)],
    ["Probability of complex", known(said.p_complex) ? said.p_complex.toFixed(4) : "not told"],
    ...(known(said.raw) && said.raw !== said.p_complex ? [["Before calibration", said.raw.toFixed(4)]] : []),
    ["From", said.source],
    ["Asked by", [said.strategy, said.prompt].filter(Boolean).join(", ") || "–"],
    ["Took", time(said.seconds)],
    ...(said.cut ? [["Seen", "head and tail only"]] : []),
    ...(instead ? [["On the other side", `${instead.tier}, ${instead.usd_more >= 0 ? "+" : ""}${usd(instead.usd_more)}`]] : []),
  ];
  return [known(said.p_complex) ? gauge(said) : null, pairs(told)];
}

/** Where a probability stands beside the edge that is nearest. */
function gauge({ p_complex: p, threshold }) {
  const [edge, mark] = [h("span", { class: "edge" }), h("span", { class: "mark" })];
  edge.style.left = `${100 * threshold}%`;
  mark.style.left = `${100 * p}%`;
  return h("div", { class: "gauge" },
    h("div", { class: "track", role: "img", "aria-label": `probability ${p.toFixed(2)}, edge at ${threshold}` }, edge, mark),
    h("div", { class: "ends", "aria-hidden": "true" }, h("span", {}, "0 simple"), h("span", {}, "complex 1")));
}

function rules({ rules: list, route }) {
  const wish = route.rule === "caller" ? [h("li", { class: "decides" }, h("code", {}, "caller"), h("span", { class: "tag" }, "decides"), h("span", {}, "a wish goes before the rules"))] : [];
  return h("ol", { class: "rules" }, wish, list.map(({ id, matched, decides, why }) =>
    h("li", { class: decides ? "decides" : matched ? "matched" : "" },
      h("code", {}, id), h("span", { class: "tag" }, decides ? "decides" : matched ? "matches" : "no"),
      h("span", { class: "quiet" }, why ?? (decides ? "the first that matches" : "an earlier one decides")))));
}

function sides({ sides: ways, verdict: said }) {
  const { otherwise, ...steps } = ways;
  const failed = new Map();
  for (const [name, found] of Object.entries(otherwise)) failed.set(way(found), [...(failed.get(way(found)) ?? []), name]);
  return table("With another verdict", ["verdict", "tier"], [
    ...Object.entries(steps).map(([name, found]) => [name === said?.side ? h("b", {}, `${name} (so it was)`) : name, way(found)]),
    ...[...failed].map(([tier, names]) => [`none: ${names.join(", ")}`, tier]),
  ]);
}

function costs({ cost, route }) {
  const most = Math.max(...Object.values(cost.usd));
  return h("div", {}, table("What an answer costs", ["tier", "#US dollars", ""], Object.entries(cost.usd).map(([tier, price]) =>
    [tier === route.tier ? h("b", {}, tier) : tier, usd(price), bar(most ? price / most : 0, tier === route.tier ? "" : "line-0")])),
  h("p", { class: "quiet" }, `${cost.input_tokens} tokens in, ${cost.output_tokens} out (${cost.output_tokens_from.replaceAll("_", " ")}), nothing cached`));
}

const blank = (value) => value === null || value === false || value === 0 || value === "" || (typeof value === "object" && !Object.keys(value).length);

/** A value of a fact in a line. */
function flat(value) {
  if (value === null || typeof value !== "object") return String(value);
  if (Array.isArray(value)) return value.map(flat).join(", ");
  return Object.entries(value).map(([name, inner]) => `${name} ${flat(inner)}`).join(", ");
}

function facts(found) {
  const entries = Object.entries(found).filter(([name]) => name !== "chance");
  const told = entries.filter(([, value]) => !blank(value));
  const rest = entries.filter(([, value]) => blank(value)).map(([name]) => name);
  return h("div", {},
    pairs(told.map(([name, value]) => [name, flat(value)])),
    rest.length ? h("p", { class: "quiet" }, `None or no: ${rest.join(", ")}`) : null);
}
