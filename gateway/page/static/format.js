// How are figures written?

const none = "–";
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

export function count(value) {
  if (!known(value)) return none;
  return value < 10000 ? Math.round(value).toLocaleString("en") : compact.format(value);
}

export function rate(value) {
  return known(value) ? value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0) : none;
}

export function percent(part) {
  return known(part) ? `${(100 * part).toFixed(part > 0 && part < 0.1 ? 1 : 0)} %` : none;
}

/** Seconds with the unit that suits them. */
export function time(seconds) {
  if (!known(seconds)) return none;
  if (seconds === 0) return "0 ms";
  if (seconds < 0.01) return `${(1000 * seconds).toFixed(seconds < 0.001 ? 2 : 1)} ms`;
  if (seconds < 1) return `${(1000 * seconds).toFixed(0)} ms`;
  return seconds < 100 ? `${seconds.toFixed(seconds < 10 ? 2 : 1)} s` : `${(seconds / 60).toFixed(1)} min`;
}

/** US dollars, with the digits that tell something. */
export function usd(value) {
  if (!known(value)) return none;
  const size = Math.abs(value);
  const sign = value < 0 ? "−" : "";
  if (size === 0) return "$0";
  if (size >= 1000) return `${sign}$${compact.format(size)}`;
  return `${sign}$${size >= 0.01 ? size.toFixed(2) : Number(size.toPrecision(2)).toFixed(Math.min(9, 1 - Math.floor(Math.log10(size))))}`;
}

export function clock(seconds) {
  return new Date(1000 * seconds).toLocaleTimeString("en-GB");
}
