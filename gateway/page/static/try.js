// What would become of a prompt, and what becomes of it?   Asked with a caller's key, as any caller asks.
import { copier, empty, h, pairs, say } from "./dom.js";
import { Failed, json, send } from "./api.js";
import { explanation } from "./explain.js";
import { time, usd } from "./format.js";

const KEY = "caller-key";
const DRAFT = "prompt";
const TOLD = [["Tier", "x-route-tier"], ["Rule", "x-route-rule"], ["Reason", "x-route-reason"], ["Cache", "x-route-cache"], ["Policy", "x-route-policy"], ["Request", "x-request-id"]];

export const title = "Try it";

export function open(root, page) {
  const view = new Try(page);
  root.append(view.element);
  view.names();
}

class Try {
  constructor(page) {
    this.page = page;
    this.running = null;
    const kept = (name) => sessionStorage.getItem(name) ?? "";
    this.prompt = h("textarea", { rows: "6", required: true, placeholder: "Prove that there are infinitely many primes of the form 4k+3.", oninput: () => sessionStorage.setItem(DRAFT, this.prompt.value) });
    this.prompt.value = kept(DRAFT);
    this.known = h("datalist", { id: "models" });
    this.model = h("input", { value: "auto", list: "models", autocomplete: "off", spellcheck: "false" });
    this.most = h("input", { type: "number", min: "1", max: "100000", value: "300" });
    this.key = h("input", { type: "password", autocomplete: "off", placeholder: "none", onchange: () => {
      sessionStorage.setItem(KEY, this.key.value.trim());
      this.names();
    } });
    this.key.value = kept(KEY);
    this.explain = h("button", { class: "strong" }, "Explain");
    this.submit = h("button", { type: "button", onclick: () => this.form.reportValidity() && this.start(this.stream) }, "Send and stream");
    this.stop = h("button", { type: "button", class: "plain", disabled: true, onclick: () => this.running?.abort() }, "Stop");
    this.form = h("form", { class: "panel ask", onsubmit: (event) => {
      event.preventDefault();
      this.start(this.decide);
    } },
    field("Prompt", this.prompt, "wide"),
    field("Model", this.model), this.known, field("Longest answer, tokens", this.most), field("Key of a caller, if the gateway wants one", this.key),
    h("div", { class: "tools wide" }, this.explain, this.submit, this.stop, copier(() => this.curl(), "Copy as curl")));
    this.out = h("div", { class: "out", "aria-live": "polite" }, this.hint());
    this.element = h("div", {}, h("div", { class: "heading" }, h("h1", { tabindex: "-1" }, title)), h("div", { class: "halves" }, this.form, this.out));
  }

  hint() {
    return empty("Explain asks where the prompt would go, and why, and sends it nowhere but to the classifier. Send and stream has it answered, too.");
  }

  get bearer() {
    return this.key.value.trim() || undefined;
  }

  body(more = {}) {
    return { model: this.model.value.trim() || "auto", messages: [{ role: "user", content: this.prompt.value }], max_tokens: Number(this.most.value) || 300, ...more };
  }

  curl() {
    const quoted = JSON.stringify(this.body({ stream: true })).replaceAll("'", "'\\''");
    const key = this.bearer ? " -H \"authorization: Bearer $KEY\"" : "";
    return `curl -N ${new URL("../v1/chat/completions", document.baseURI)}${key} -H 'x-route-explain: 1' --json '${quoted}'`;
  }

  /** The names that `model` may have. */
  async names() {
    try {
      const { data } = await json(send("v1/models", { bearer: this.bearer, signal: this.page.signal }));
      this.known.replaceChildren(...data.map(({ id }) => h("option", { value: id })));
    } catch (error) {
      if (!(error instanceof Failed) && error.name !== "AbortError") throw error;
    }
  }

  async start(work) {
    this.running?.abort();
    const running = this.running = new AbortController();
    this.stop.disabled = false;
    this.out.setAttribute("aria-busy", "true");
    try {
      await work.call(this, AbortSignal.any([running.signal, this.page.signal]));
    } catch (error) {
      if (error.name === "AbortError") {
        if (this.running === running) this.out.append(h("p", { class: "quiet" }, "Stopped."));
      } else {
        this.out.append(h("p", { class: "bad", role: "alert" }, error.status === 401 ? `${error.message} Give the key of a caller: tiergate keys create NAME makes one.` : error.message));
      }
    } finally {
      if (this.running === running) {
        this.stop.disabled = true;
        this.out.removeAttribute("aria-busy");
      }
    }
  }

  async decide(signal) {
    this.out.replaceChildren(h("p", { class: "quiet" }, "Asking the classifier…"));
    const found = await json(send("v1/route", { bearer: this.bearer, body: this.body(), signal }).catch((error) => {
      this.out.replaceChildren();
      throw error;
    }));
    this.out.replaceChildren(explanation(found));
  }

  async stream(signal) {
    const [started, said, thought] = [performance.now(), h("div", { class: "answer" }), h("div", { class: "answer quiet" })];
    const figures = h("div", {});
    this.out.replaceChildren(h("section", { class: "panel" }, thought, said), figures);
    const answer = await send("v1/chat/completions", { bearer: this.bearer, body: this.body({ stream: true }), headers: { "x-route-explain": "1" }, signal });
    const told = TOLD.map(([name, header]) => [name, answer.headers.get(header) ?? "–"]);
    const own = Number(answer.headers.get("x-gateway-overhead-ms")) / 1000;
    const shown = (more) => figures.replaceChildren(pairs([...told, ["Gateway’s own time", time(own)], ...more]));
    shown([]);
    let [first, paid] = [null, null];
    for await (const event of events(answer.body)) {
      if (event.error) throw new Failed(0, event.error.message ?? "The answer broke off.");
      if (event.route) {
        paid = event.route.answer_usd;
        this.out.append(explanation(event.route));
      }
      const delta = event.choices?.[0]?.delta ?? {};
      const [thinks, says] = [delta.reasoning_content ?? delta.reasoning ?? "", delta.content ?? ""];
      if ((thinks || says) && first === null) {
        first = (performance.now() - started) / 1000;
        shown([["First token here", time(first)]]);
      }
      thought.append(thinks);
      said.append(says);
    }
    shown([["First token here", time(first)], ["All of it", time((performance.now() - started) / 1000)], ["Its caller pays", usd(paid)]]);
  }
}

function field(name, input, kind = "") {
  return h("label", { class: `field ${kind}` }, h("span", {}, name), input);
}

/** The data of a stream's events as JSON. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    const whole = ((rest += value ?? "")).split(/\r?\n\r?\n/);
    rest = done ? "" : whole.pop();
    for (const event of whole) {
      const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
    if (done) return;
  }
}
