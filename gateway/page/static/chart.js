// How does a figure change?   Lines over the last minutes, drawn by uPlot.
import { h, say } from "./dom.js";

const HEIGHT = 150;
const SHOWN = 600; // seconds at most, and at least
const LEAST = 120;

/** A colour of the page's styles as a canvas understands it: a custom property itself says both schemes. */
function colour(name, element) {
  element.style.color = `var(${name})`;
  return getComputedStyle(element).color;
}

function axes(format, element) {
  const grid = { stroke: colour("--grid", element), width: 1 };
  const common = { stroke: colour("--quiet", element), font: "11px system-ui, sans-serif", grid, ticks: { show: false } };
  return [
    { ...common, size: 24, space: 60, incrs: [60, 120, 300], grid: { show: false }, values: (_, ticks) => ticks.map(minutes) },
    { ...common, size: 58, space: 30, values: (_, ticks) => ticks.map((tick) => (tick ? format(tick) : "0")) },
  ];
}

function minutes(at) {
  return new Date(1000 * at).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
}

/**
 * `lines`: [name, colour], colours as the names of custom properties. `set` takes the times and for each line its values,
 * null where nothing was. Nothing moves when the first values come.
 */
export class Chart {
  constructor(title, lines, format) {
    this.lines = lines;
    this.title = title;
    this.format = format;
    this.values = lines.map(([name, paint]) => [name, h("span", { class: "num" }, "–"), paint]);
    this.space = h("div", { class: "plot", role: "img", "aria-label": title });
    this.hint = h("p", { class: "hint" }, "Nothing yet: charts begin when you look.");
    this.element = h("figure", { class: "panel chart" },
      h("figcaption", {}, h("h2", {}, title), h("span", { class: "legend" }, this.values.map(([name, value, paint]) =>
        h("span", {}, h("i", { class: `swatch ${paint.slice(2)}` }), `${name} `, value)))),
      h("div", { class: "stage" }, this.space, this.hint));
    this.data = [[], ...lines.map(() => [])];
    this.sized = new ResizeObserver(() => this.resize());
    this.sized.observe(this.space);
    this.repaint = () => this.draw();
    document.addEventListener("theme", this.repaint);
  }

  resize() {
    const width = Math.floor(this.space.clientWidth);
    if (!width) return;
    if (this.plot) this.plot.setSize({ width, height: HEIGHT });
    else this.draw();
  }

  draw() {
    const width = Math.floor(this.space.clientWidth);
    if (!width) return;
    this.plot?.destroy();
    const series = this.lines.map(([label, paint]) => ({
      label, stroke: colour(paint, this.space), width: 1.5, points: { show: false }, spanGaps: false,
    }));
    this.plot = new window.uPlot({
      width, height: HEIGHT, padding: [8, 18, 0, 0], legend: { show: false },
      cursor: { y: false, drag: { setScale: false, x: false, y: false }, points: { size: 6 } },
      scales: { x: { range: () => this.span() }, y: { range: (_, __, most) => [0, most > 0 ? 1.15 * most : 1] } },
      axes: axes(this.format, this.space),
      series: [{}, ...series],
      hooks: { setCursor: [(plot) => this.tell(plot.cursor.idx)] },
    }, this.data, this.space);
  }

  span() {
    const now = Date.now() / 1000;
    return [Math.max(now - SHOWN, Math.min(this.data[0][0] ?? now, now - LEAST)), now];
  }

  set(times, ...values) {
    this.data = [times, ...values];
    this.hint.hidden = values.some((line) => line.some((value) => value !== null));
    if (this.plot) this.plot.setData(this.data);
    else this.draw();
    if (!this.plot || this.plot.cursor.idx === null || this.plot.cursor.left < 0) this.tell(null);
  }

  /** The values under the pointer, else the last ones. */
  tell(at) {
    const place = at ?? this.data[0].length - 1;
    this.values.forEach(([, element], line) => say(element, this.format(this.data[line + 1][place] ?? null)));
    const said = this.values.map(([name, element]) => `${name} ${element.textContent}`).join(", ");
    this.space.setAttribute("aria-label", `${this.title}, last ten minutes; now ${said}`);
  }

  close() {
    this.sized.disconnect();
    document.removeEventListener("theme", this.repaint);
    this.plot?.destroy();
  }
}
