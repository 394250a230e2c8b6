// What do the gateway's metrics say, of all its workers, and how did that change while we looked?

export const NAMES = {
  requests: "gateway_requests_total",
  decisions: "gateway_decisions_total",
  verdicts: "gateway_verdicts_total",
  drafts: "gateway_drafts_total",
  cache: "gateway_cache_requests_total",
  refusals: "gateway_refusals_total",
  cost: "gateway_cost_usd_total",
  saved: "gateway_saved_usd_total",
  dearer: "gateway_dearer_usd_total",
  inflight: "gateway_inflight_requests",
  queued: "gateway_queued_requests",
  up: "gateway_replica_up",
};
export const SPREADS = {
  ttft: "gen_ai_server_time_to_first_token_seconds_bucket",
  overhead: "gateway_overhead_seconds_bucket",
};
const GAUGES = new Set(["inflight", "queued", "up"]);
const LONGEST = 600; // seconds of samples that are kept
const KEPT = "history";
const LINE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const ESCAPED = { n: "\n", '"': '"', "\\": "\\" };

/** Prometheus' text as [name, labels, value] for each sample. */
export function* parse(text) {
  for (const line of text.split("\n")) {
    const found = LINE.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, name, value] of (found[2] ?? "").matchAll(LABEL)) {
      labels[name] = value.replace(/\\(.)/g, (_, letter) => ESCAPED[letter] ?? letter);
    }
    yield [found[1], labels, Number(found[3])];
  }
}

/**
 * What we look at of a text: for each of NAMES a list of [labels, value], for each of SPREADS a map from a bucket's end to
 * how many were at most that.
 */
export function sample(text, at) {
  const found = { at };
  const by = new Map();
  for (const [place, name] of Object.entries({ ...NAMES, ...SPREADS })) by.set(name, place);
  for (const place of Object.keys(NAMES)) found[place] = [];
  for (const place of Object.keys(SPREADS)) found[place] = {};
  for (const [name, labels, value] of parse(text)) {
    const place = by.get(name);
    if (!place) continue;
    if (place in SPREADS) found[place][labels.le] = (found[place][labels.le] ?? 0) + value;
    else found[place].push([labels, value]);
  }
  return found;
}

/** The sum over all series of whose labels `chosen` is true. */
export function sum(list, chosen = () => true) {
  return list.reduce((total, [labels, value]) => total + (chosen(labels) ? value : 0), 0);
}

/** The sums by what `name` makes of the labels, the largest first. */
export function by(list, name) {
  const found = new Map();
  for (const [labels, value] of list) found.set(name(labels), (found.get(name(labels)) ?? 0) + value);
  return [...found].filter(([, value]) => value > 0).sort((one, other) => other[1] - one[1]);
}

/** What happened from `old` to `now`; all that ever did where there is no `old`. */
export function since(now, old) {
  if (!old) return now;
  const less = { at: now.at };
  for (const place of Object.keys(NAMES)) {
    const before = new Map(old[place].map(([labels, value]) => [JSON.stringify(labels), value]));
    less[place] = GAUGES.has(place) ? now[place]
      : now[place].map(([labels, value]) => [labels, value - (before.get(JSON.stringify(labels)) ?? 0)]);
  }
  for (const place of Object.keys(SPREADS)) {
    less[place] = Object.fromEntries(
      Object.entries(now[place]).map(([end, value]) => [end, value - (old[place][end] ?? 0)]));
  }
  return less;
}

/** A quantile of a spread as Prometheus takes it: even within a bucket. Null when there is nothing. */
export function quantile(spread, q) {
  const ends = Object.entries(spread).map(([end, value]) => [end === "+Inf" ? Infinity : Number(end), value]);
  ends.sort((one, other) => one[0] - other[0]);
  const total = ends.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  const rank = q * total;
  let [low, below] = [0, 0];
  for (const [end, upTo] of ends) {
    if (upTo >= rank && upTo > below) return end === Infinity ? low : low + ((end - low) * (rank - below)) / (upTo - below);
    [low, below] = [end, upTo];
  }
  return null;
}

/**
 * The samples of the last ten minutes, and `ready`, what /ready said with the last one; says "sample" when there is another.
 * They survive a reload of the page, but not a restart of the gateway.
 */
export class History extends EventTarget {
  constructor() {
    super();
    this.samples = [];
    this.ready = null;
    this.restarted = null; // when counting was seen to begin anew
    try {
      const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
      const last = kept.at(-1);
      const ours = last && Object.keys({ ...NAMES, ...SPREADS }).every((place) => place in last); // not of another version
      if (ours && Date.now() / 1000 - last.at < LONGEST / 2) this.samples = kept;
    } catch {
      sessionStorage.removeItem(KEPT);
    }
  }

  put(now, ready) {
    const last = this.samples.at(-1);
    if (last && sum(now.requests) < sum(last.requests)) {
      this.samples = [];
      this.restarted = now.at;
    }
    this.samples.push(now);
    while (this.samples[0].at < now.at - LONGEST) this.samples.shift();
    this.ready = ready;
    this.dispatchEvent(new Event("sample"));
  }

  save() {
    try {
      sessionStorage.setItem(KEPT, JSON.stringify(this.samples));
    } catch {
      sessionStorage.removeItem(KEPT); // too large for this browser: charts begin anew
    }
  }

  get now() {
    return this.samples.at(-1) ?? null;
  }

  /** What happened in the `seconds` before sample number `at`. */
  before(at, seconds) {
    const end = this.samples[at];
    let first = at;
    while (first > 0 && this.samples[first].at > end.at - seconds) first -= 1;
    return first === at ? null : { ...since(end, this.samples[first]), seconds: end.at - this.samples[first].at };
  }
}
