// How do the tiers stand?   Places and breakers as the gateway sees them, load as their servers tell it.
import { bar, empty, h, pairs, table } from "./dom.js";
import { admin, json, poll } from "./api.js";
import { count, known, percent } from "./format.js";
import { sum } from "./metrics.js";

const EVERY = 3; // seconds

export const title = "Tiers";

export function open(root, page) {
  const cards = h("div", { class: "cards" }, empty("Reading…"));
  let told = null;
  const show = () => told && cards.replaceChildren(...told.map((tier) => card(tier, page.history)));
  root.append(h("div", {}, h("div", { class: "heading" }, h("h1", { tabindex: "-1" }, title)), cards));
  page.history.addEventListener("sample", show, { signal: page.signal });
  poll(async () => {
    told = await json(admin("admin/tiers", { signal: page.signal }));
    show();
  }, EVERY, page.signal);
}

function card(tier, { now, ready }) {
  const of = ({ tier: name }) => name === tier.name;
  const [open, queued] = [now ? sum(now.inflight, of) : null, now ? sum(now.queued, of) : null];
  const workers = ready?.workers ?? 1;
  const { input_per_m: input, cached_input_per_m: cached, output_per_m: output } = tier.price;
  return h("section", { class: "panel" },
    h("h2", {}, tier.name, " ", h("span", { class: "quiet" }, tier.model)),
    h("div", { class: "meters" }, meter("In flight", open, workers * tier.max_inflight), meter("Queue", queued, workers * tier.queue)),
    table(`Servers of ${tier.name}`, ["server", "breaker", "#running", "#waiting", "KV cache in use", "#prefix hits"],
      tier.replicas.map(({ url, load }, at) => [h("code", {}, url), breaker(now, tier.name, at), ...says(load)])),
    pairs([
      ["Balanced by", tier.balance.replaceAll("_", " ")],
      ["US dollars a million tokens", `${input} in, ${cached} cached, ${output} out`],
    ]));
}

function meter(name, value, most) {
  return h("div", { class: "meter" }, h("span", { class: "name" }, name),
    h("span", { class: "num" }, known(value) ? `${count(value)} of ${count(most)}` : "–"), bar(known(value) ? value / most : 0));
}

function breaker(now, tier, replica) {
  const found = now?.up.find(([labels]) => labels.tier === tier && labels.replica === String(replica));
  if (!found) return "–";
  return found[1] ? "closed" : h("span", { class: "bad" }, "open: left alone for a while");
}

function says(load) {
  if (!load) return [h("span", { class: "bad" }, "no answer"), "–", "–", "–"];
  const kv = known(load.kv_cache) ? h("span", { class: "amount" }, bar(load.kv_cache), h("span", { class: "num" }, percent(load.kv_cache))) : "–";
  return [count(load.running), count(load.waiting), kv, percent(load.prefix_hits)];
}
