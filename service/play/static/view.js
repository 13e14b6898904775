// Parts of the page as elements: options, fields, sliders, rows of a ranking with their bars, tables of a candidate.
// Text goes in as text alone, so that no id or name can be markup.

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 8;

/** An element with attributes and children. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function makeSvg(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** Replace the options of a select: pairs of value and text. */
export function fillOptions(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value, false, value === chosen)));
}

/** A number for people. */
export function shownNumber(value) {
  return value === 0 || Math.abs(value) >= 1e-4 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

/** A labelled text field. `take` gets its text whenever it changes. */
export function makeField(name, text, note, take) {
  const input = make("input", { type: "text", value: text, spellcheck: "false", title: note });
  input.addEventListener("input", () => take(input.value));
  return make("label", {}, name, input);
}

/** A slider with a number beside it, both of one value. `take` gets it. */
export function makeSlider(name, value, id, take) {
  const step = 10 ** Math.floor(Math.log10(Math.max(Math.abs(value), 0.5) / 50));
  const bound = Math.ceil(Math.max(2 * Math.abs(value), 1) / step) * step;
  const range = make("input", { type: "range", id, min: -bound, max: bound, step, value });
  const number = make("input", { type: "number", step: "any", value, "aria-label": `${name}, exact` });
  range.addEventListener("input", () => {
    number.value = range.value;
    take(Number(range.value));
  });
  number.addEventListener("input", () => {
    if (number.value === "" || !Number.isFinite(number.valueAsNumber)) return;
    range.value = number.value;
    take(number.valueAsNumber);
  });
  return make("div", { class: "weight" }, make("label", { for: id }, name), range, number);
}

/** The outputs of a ranking in their colours. */
export function fillLegend(element, outputs) {
  element.replaceChildren(...outputs.map((output, at) => make("span", { class: colourOf(at) }, output)));
}

function colourOf(at) {
  return `f${at % COLOURS}`;
}

/** The rows of one ranking, made once and then moved: a slider changes them many times a second. */
export class Rows {
  constructor(ids, outputs, pick) {
    this.outputs = outputs;
    this.rows = ids.map((id, row) => this.#makeRow(id, row, pick));
  }

  #makeRow(id, row, pick) {
    const place = make("td", { class: "place" });
    const move = make("td", { class: "move" });
    const button = make("button", { type: "button" }, id);
    button.addEventListener("click", () => pick(row));
    const score = make("td", { class: "number" });
    const bar = makeSvg("svg", { class: "bar", role: "img", viewBox: "0 0 100 10", preserveAspectRatio: "none" });
    const parts = this.outputs.map((_, at) => makeSvg("rect", { y: 1, height: 8, class: colourOf(at) }));
    const zero = makeSvg("line", { y1: 0, y2: 10 });
    bar.append(...parts, zero);
    const line = make("tr", {}, place, move, make("th", { scope: "row" }, button), score, make("td", { class: "wide" }, bar));
    return { line, place, move, score, bar, parts, zero };
  }

  /** Show an order of the rows with its scores, contributions by output, and moves by row. */
  show(body, { order, scores, contributions, moves, selected }) {
    const [low, high] = this.#range(order, contributions);
    const scale = 100 / (high - low || 1);
    const lines = order.map((row, at) => {
      const one = this.rows[row];
      one.place.textContent = at + 1;
      one.score.textContent = shownNumber(scores[row]);
      showMove(one.move, moves?.get(row));
      this.#draw(one, row, contributions, -low * scale, scale);
      return one.line;
    });
    // Rows that stand where they stood stay, as moving one costs more than asking.
    lines.forEach((line, at) => {
      if (body.children[at] !== line) body.insertBefore(line, body.children[at] ?? null);
    });
    while (body.children.length > lines.length) body.lastChild.remove();
    this.select(selected);
  }

  /** Mark one row. */
  select(row) {
    this.selected?.removeAttribute("aria-selected");
    this.selected = this.rows[row]?.line;
    this.selected?.setAttribute("aria-selected", "true");
  }

  #range(order, contributions) {
    let low = 0;
    let high = 0;
    for (const row of order) {
      let under = 0;
      let over = 0;
      for (const output of this.outputs) {
        const value = contributions[output][row];
        if (value < 0) under += value;
        else over += value;
      }
      low = Math.min(low, under);
      high = Math.max(high, over);
    }
    return [low, high];
  }

  #draw(one, row, contributions, zero, scale) {
    let left = zero;
    let right = zero;
    const told = [];
    this.outputs.forEach((output, at) => {
      const value = contributions[output][row];
      const width = Math.abs(value) * scale;
      if (value < 0) left -= width;
      one.parts[at].setAttribute("x", value < 0 ? left : right);
      one.parts[at].setAttribute("width", width);
      if (value >= 0) right += width;
      told.push(`${output} ${shownNumber(value)}`);
    });
    one.zero.setAttribute("x1", zero);
    one.zero.setAttribute("x2", zero);
    one.bar.setAttribute("aria-label", told.join(", "));
  }
}

function showMove(cell, moved) {
  if (moved === undefined || moved === 0) {
    cell.className = "move";
    cell.textContent = moved === 0 ? "=" : "";
    return;
  }
  const isUp = moved === null || moved > 0;
  cell.className = `move ${isUp ? "up" : "down"}`;
  const sign = make("span", { "aria-hidden": "true" }, moved === null ? "new" : `${isUp ? "▲" : "▼"}${Math.abs(moved)}`);
  const words = moved === null ? "was not answered" : `${isUp ? "up" : "down"} ${Math.abs(moved)}`;
  cell.replaceChildren(sign, make("span", { class: "hidden-text" }, words));
}

/** A table of texts and numbers. The first cell of a line is its heading. */
export function makeTable(caption, heads, lines) {
  const head = make("tr", {}, ...heads.map((text, at) => make("th", { scope: "col", ...(at ? { class: "number" } : {}) }, text)));
  const body = lines.map(([first, ...cells]) =>
    make("tr", {}, make("th", { scope: "row" }, first), ...cells.map((cell) => make("td", { class: "number" }, String(cell)))));
  return make("table", {}, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body));
}

/** Lines that say how many values of which feature were missing, unknown, cut or from the state store. */
export function fillInputs(list, inputs) {
  const names = { missing: "missing", unknown: "unknown ids", cut: "lists cut", state: "from the state store" };
  const lines = Object.entries(inputs)
    .filter(([, counts]) => Object.keys(counts).length)
    .map(([what, counts]) => {
      const told = Object.entries(counts).map(([feature, count]) => `${feature} ${count}`).join(", ");
      return make("li", {}, `${names[what] ?? what}: ${told}`);
    });
  list.replaceChildren(...lines);
}
