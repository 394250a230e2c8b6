// What is served, what does it take, and what does it give?   The gateway's OpenAPI document, for people; no key is needed.
import { Failed, json, send } from "./api.js";
import { empty, h, panel, table } from "./dom.js";

const DEEPEST = 3; // fields within fields that are listed
const root = document.getElementById("main");
let told = {};

/** A schema; of a reference what it stands for. */
function found(schema = {}) {
  return schema.$ref ? found(schema.$ref.split("/").slice(1).reduce((inside, name) => inside[name], told)) : schema;
}

/** A value's type in words. */
function kind(schema) {
  const { type = "object", anyOf, items, enum: words, const: word } = found(schema);
  if (anyOf) return anyOf.map(kind).join(" or ");
  if (words ?? word) return (words ?? [word]).join(" or ");
  return [type].flat().map((one) => (one === "array" && items ? `list of ${kind(items)}` : one)).join(" or ");
}

/** The fields of an object, of those that may be in its place, and of the objects in a list, those within them too. */
function fields(schema, before = "", depth = 0) {
  const { anyOf = [], items, properties = {}, required = [] } = found(schema);
  const own = Object.entries(properties).flatMap(([name, value]) => [
    field(before + name, value, required.includes(name)),
    ...(depth < DEEPEST ? fields(value, `${before}${name}.`, depth + 1) : []),
  ]);
  return [...own, ...[...anyOf, ...(items ? [items] : [])].flatMap((one) => fields(one, before, depth))];
}

function field(name, schema, needed) {
  const { description, default: otherwise } = found(schema);
  const said = [description, otherwise === undefined || otherwise === null ? null : `Else ${JSON.stringify(otherwise)}.`];
  return [h("code", {}, name), kind(schema), needed ? "yes" : "", said.filter(Boolean).join(" ")];
}

/** A title and a table below it; `where` they stand makes the table's name unique. */
function listed(where, title, rows) {
  return rows.length ? [h("h3", {}, title), table(`${where}: ${title}`, ["name", "type", "needed", ""], rows)] : [];
}

/** What is sent or given as JSON: its fields, else its type. */
function content(where, title, { content: kinds = {} }) {
  const schema = kinds["application/json"]?.schema;
  const rows = schema ? fields(schema) : [];
  const others = Object.keys(kinds).filter((one) => one !== "application/json");
  const also = schema && !rows.length ? [kind(schema)] : [];
  if (rows.length || also.length + others.length === 0) return listed(where, title, rows);
  return [h("p", {}, `${title}: ${[...also, ...others].join(", ")}`)];
}

function answer(where, status, one) {
  const headers = Object.entries(one.headers ?? {}).map(([name, { schema, description }]) =>
    field(name, { ...schema, description }, false));
  const title = status === "default" ? "Any other answer" : `Answer ${status}`;
  return [...listed(where, `${title}: headers`, headers), ...content(where, `${title}: ${one.description}`, one)];
}

function operation(where, one) {
  const asked = (one.parameters ?? []).map((each) =>
    field(`${each.name} (${each.in})`, { ...found(each.schema), description: each.description }, each.required));
  return h("details", { class: "operation" },
    h("summary", {}, h("code", {}, where), " ", h("span", { class: "quiet" }, one.summary ?? "")),
    one.description ? h("p", {}, one.description) : null,
    listed(where, "Parameters and headers", asked),
    one.requestBody ? content(where, "Body", one.requestBody) : [],
    Object.entries(one.responses).flatMap(([status, each]) => answer(where, status, each)));
}

async function open() {
  told = await json(send("openapi.json"));
  const all = Object.entries(told.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, one]) => ({ path, shown: operation(`${method.toUpperCase()} ${path}`, one) })));
  const part = (admin) => all.filter(({ path }) => path.startsWith("/admin/") === admin).map(({ shown }) => shown);
  root.replaceChildren(h("div", { class: "stack" },
    h("h1", {}, `${told.info.title} ${told.info.version}`),
    h("p", { class: "quiet" }, "For programs: ", h("a", { href: "../openapi.json" }, "openapi.json")),
    panel("For callers and probes", ...part(false)),
    panel("For operators, with the admin key", ...part(true))));
}

open().catch((error) => {
  if (!(error instanceof Failed)) throw error;
  root.replaceChildren(empty(error.message));
});
