// How does text become elements?   Text is only ever set as text: nothing here reads markup.

/** An element. `given`: attributes; `on…` are listeners; null, undefined and false are left out. */
export function h(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** Sets an element's text where it is another one: what did not change is not drawn again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A part from 0 to 1 as a bar. */
export function bar(part, kind = "") {
  const fill = h("span", { class: `fill ${kind}` });
  fill.style.width = `${100 * Math.min(1, Math.max(0, part || 0))}%`;
  return h("span", { class: "bar", "aria-hidden": "true" }, fill);
}

/** A table in a box that scrolls by itself. `columns`: names, those that begin with "#" are numbers, "" is of bars. */
export function table(name, columns, rows) {
  const number = columns.map((column) => column.startsWith("#"));
  const cell = (value, at) => h("td", { class: number[at] ? "num" : null }, value);
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name },
    h("table", {},
      h("thead", {}, h("tr", {}, columns.map((column, at) =>
        column ? h("th", { scope: "col", class: number[at] ? "num" : null }, column.replace("#", "")) : h("td")))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map(cell))))));
}

export function panel(title, ...children) {
  return h("section", { class: "panel" }, h("h2", {}, title), ...children);
}

export function empty(...words) {
  return h("p", { class: "empty" }, ...words);
}

/** Pairs of a name and what it is. */
export function pairs(list) {
  return h("dl", { class: "pairs" }, list.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

/** A button that copies text and says that it did. */
export function copier(text, name = "Copy") {
  const button = h("button", { type: "button", class: "plain", onclick: async () => {
    try {
      await navigator.clipboard.writeText(text());
      say(button, "Copied");
    } catch {
      say(button, "Not allowed");
    }
    setTimeout(() => say(button, name), 1500);
  } }, name);
  return button;
}
