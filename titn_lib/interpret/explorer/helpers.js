// Arrays, elements and canvases: what both classes of the explorer use.

const MEAN = -2, MAX = -1; // in place of a head's index
const percent = (share) => share < 0.0005 ? "< 0.1\u00a0%"
  : `${share >= 0.0995 ? Math.round(100 * share) : (100 * share).toFixed(1)}\u00a0%`;

// --- arrays

/** Bytes from base64 (in a page) or a DataView (in a widget). */
function bytesOf(packed) {
  if (typeof packed === "string") return Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  return new Uint8Array(packed.buffer ?? packed, packed.byteOffset ?? 0, packed.byteLength);
}

/** The same pixels in gray, from "height width color" bytes. */
function grayOf(rgb) {
  const gray = (first) => 0.299 * rgb[first] + 0.587 * rgb[first + 1] + 0.114 * rgb[first + 2];
  return rgb.map((_, i) => gray(i - (i % 3)));
}

/** Packed rows; `at(row, key)` is the model's value, within 1/510 of its row's maximum. */
class Rows {
  constructor(packed) {
    this.shape = packed.shape;
    this.width = packed.shape[packed.shape.length - 1];
    this.bytes = bytesOf(packed.bytes);
    this.scale = new Float32Array(bytesOf(packed.scale).slice().buffer);
  }
  at(row, key) {
    return (this.bytes[row * this.width + key] * this.scale[row]) / 255;
  }
}

/** Numbers in 16 bits: shares of the largest. */
function numbersOf({ bytes, scale }) {
  return Float32Array.from(new Int16Array(bytesOf(bytes).slice().buffer), (one) => (one * scale) / 32767);
}

/** A token's row (reversed: its column) of an attention matrix; of one head, or the mean or maximum over heads. */
function attentionOf(rows, matrix, heads, head, token, reversed) {
  const tokens = rows.width, values = new Float32Array(tokens);
  const chosen = head >= 0 ? [Math.min(head, heads - 1)] : range(heads);
  for (const one of chosen) {
    const start = (matrix * heads + one) * tokens;
    for (let other = 0; other < tokens; other++) {
      const share = reversed ? rows.at(start + other, token) : rows.at(start + token, other);
      values[other] = head === MAX ? Math.max(values[other], share) : values[other] + share / chosen.length;
    }
  }
  return values;
}

// --- small helpers

const range = (count) => [...Array(count).keys()];
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
const sum = (values) => values.reduce((total, one) => total + one, 0);
const decimal = (number) => number.toFixed(2).replace(/^-0.00$/, "0.00").replace("-", "−");
const verdict = (label, truth) => truth === null ? "" : label === truth ? " ✓" : " ✗";
const most = (values) => values.indexOf(Math.max(...values));

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  // Notebook 7 sees a key before the explorer: without this, x would cut the cell. (JupyterLab: see `Explorer.key`.)
  if (tag.match(/button|input|summary/) || "tabindex" in attributes) element.dataset.lmSuppressShortcuts = "true";
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** Text, only where it is new: the page is laid out again less often. */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A group of buttons, one of them pressed. */
function choice(label, names, choose) {
  const buttons = names.map((name, index) => make("button", { type: "button", onclick: () => choose(index) }, name));
  const element = make("div", { class: "choice", role: "group", "aria-label": label }, ...buttons);
  const show = (index, texts = names) => buttons.forEach((button, i) => {
    button.setAttribute("aria-pressed", i === index);
    write(button, texts[i]);
  });
  return { element, show };
}

function slider(label, hint, choose, name = label) {
  const input = make("input", { type: "range", min: 0, step: 1, "aria-label": name, title: hint });
  const output = make("output", { "aria-live": "off" }); // the summary speaks
  input.addEventListener("input", () => choose(Number(input.value)));
  const element = make("label", { class: "slider" }, make("span", {}, label), input, output);
  const show = (value, last, text) => {
    input.max = last;
    input.value = value;
    input.setAttribute("aria-valuetext", text);
    write(output, text);
  };
  return { element, show };
}

/** Match a canvas's resolution to the screen's; returns its context and its size in CSS pixels. */
function fit(canvas) {
  const dense = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  const [across, down] = [Math.round(width * dense), Math.round(height * dense)];
  if (canvas.width !== across || canvas.height !== down) [canvas.width, canvas.height] = [across, down];
  const context = canvas.getContext("2d");
  context.setTransform(dense, 0, 0, dense, 0, 0);
  context.imageSmoothingEnabled = false;
  return { context, width, height };
}

/** A canvas with an image, from "height width color" bytes. */
function imageCanvas(rgb, [height, width]) {
  const canvas = make("canvas", { width, height }), pixels = new ImageData(width, height);
  for (let i = 0; i < 4 * width * height; i++) pixels.data[i] = i % 4 < 3 ? rgb[3 * (i >> 2) + (i % 4)] : 255;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/** The rectangle of a grid's cell. */
function boxOf(cell, [rows, columns], { width, height }) {
  const edge = (index, count, length) => Math.round((index * length) / count);
  const [row, column] = [Math.floor(cell / columns), cell % columns];
  const [x, y] = [edge(column, columns, width), edge(row, rows, height)];
  return [x, y, edge(column + 1, columns, width) - x, edge(row + 1, rows, height) - y];
}

/** A frame around a cell that is visible on any color. */
function outline(context, x, y, width, height, color, thick = 3) {
  context.lineWidth = thick + 2;
  context.strokeStyle = "rgba(0, 0, 0, 0.55)";
  context.strokeRect(x, y, width, height);
  context.lineWidth = thick;
  context.strokeStyle = color;
  context.strokeRect(x, y, width, height);
}

/** A number that is legible on any color. */
function writeNumber(context, share, x, y, size) {
  context.font = `600 ${size}px system-ui, sans-serif`;
  [context.textAlign, context.textBaseline, context.lineJoin, context.lineWidth] = ["center", "alphabetic", "round", 3];
  [context.strokeStyle, context.fillStyle] = ["#000", "#fff"];
  for (const how of ["strokeText", "fillText"]) context[how](percent(share).slice(0, -2), x, y + 0.36 * size);
}

/** The row and column that a key leads to, perhaps outside the grid; undefined for other keys. */
function goal(key, [row, column], rows, columns) {
  return {
    ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
    ArrowUp: [row - 1, column], ArrowDown: [row + 1, column],
    Home: [row, 0], End: [row, columns - 1], PageUp: [Math.min(row, 0), column], PageDown: [rows - 1, column],
  }[key];
}
