// The attention explorer. One module for the widget (`render`) and for a page (`explore`), without dependencies.
//
// A token is its row in the outer attention: 0 the class token, 1 … N the patches, N + 1 the distillation token.
// Blocks and heads count from 0 here and from 1 on the screen. Python is needed only to add an image.

const MEAN = -2, MAX = -1; // in place of a head's index
const MODES = ["attention", "rollout", "relevance"];
const percent = (share) => share > 0 && share < 0.0005 ? "< 0.1\u00a0%"
  : `${share >= 0.0995 ? Math.round(100 * share) : (100 * share).toFixed(1)}\u00a0%`;

// --- arrays

/** Bytes from base64 (in a page) or a DataView (in a widget). */
function bytesOf(packed) {
  if (typeof packed === "string") return Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  return new Uint8Array(packed.buffer ?? packed, packed.byteOffset ?? 0, packed.byteLength);
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

/** One token's row (or, the other way, its column) of an attention matrix; for one head, or the mean or maximum over heads. */
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

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
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

function slider(label, hint, choose) {
  const input = make("input", { type: "range", min: 0, step: 1, "aria-label": label, title: hint });
  const output = make("output");
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
function imageCanvas(packed, [height, width]) {
  const canvas = make("canvas", { width, height }), pixels = new ImageData(width, height), rgb = bytesOf(packed);
  for (let i = 0; i < 4 * width * height; i++) pixels.data[i] = i % 4 < 3 ? rgb[3 * (i >> 2) + (i % 4)] : 255;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
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

// --- one model on one image: two streams, a column each

class Stage {
  constructor(explorer, number) {
    this.explorer = explorer;
    this.number = number;
    this.buffers = {}; // canvases with one pixel per cell, before upsampling
    const one = explorer.data.models.length === 1;
    const keys = "Arrow keys move, Enter opens a patch, Escape closes it.";
    this.canvas = {
      outer: make("canvas", { tabindex: 0, role: "application", "aria-label": `Patches of the image. ${keys}` }),
      inner: make("canvas", { tabindex: 0, role: "application", "aria-label": `Pixel tokens of the opened patch. ${keys}` }),
    };
    this.tiles = { outer: make("canvas"), inner: make("canvas") };
    this.special = ["class", "distillation"].map((name) =>
      make("button", { type: "button", class: "token" }, make("span", {}, name), make("b")));
    this.summary = make("p", { class: "summary", "aria-live": "polite" });
    this.predictions = make("div", { class: "predictions" });
    this.lines = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.lines.setAttribute("aria-hidden", "true");
    this.lines.innerHTML = "<line/><line/>";
    this.close = make("button", { type: "button", class: "close", "aria-label": "Close the patch",
      title: "Close (Escape)", onclick: () => explorer.open(null) }, "×");
    this.opened = make("span");
    this.note = { outer: make("span", { class: "note" }), inner: make("span", { class: "note" }) };
    this.head = {};
    this.legend = {};
    this.caption = {};
    const column = (stream, title, top) => {
      this.head[stream] = slider("head", ", and . on the keyboard", (value) => explorer.set({ [stream]: value - 2 }));
      this.legend[stream] = make("span");
      this.caption[stream] = make("figcaption");
      return make("div", { class: `stream ${stream}` },
        make("h4", {}, title, this.note[stream], this.head[stream].element), top, this.canvas[stream],
        make("div", { class: "legend" }, "0", make("i"), this.legend[stream]),
        make("figure", {}, this.caption[stream], this.tiles[stream]));
    };
    this.element = make("section", { class: "stage", "aria-label": explorer.data.models[number].name },
      ...(one ? [] : [make("h3", {}, explorer.data.models[number].name)]), this.summary,
      make("div", { class: "streams" },
        column("outer", "Outer stream: patches", make("div", { class: "tokens" }, ...this.special)),
        column("inner", "Inner stream: pixel tokens", make("div", { class: "tokens" }, this.opened, this.close)),
        this.predictions, this.lines));
    this.listen();
  }

  /** Show an image's arrays. */
  load(image) {
    const { data } = this.explorer, view = image.models[this.number];
    this.config = data.models[this.number];
    this.rows = {};
    for (const name of ["outer", "inner", "rolled_outer", "rolled_inner", "relevance"])
      if (view[name]) this.rows[name] = new Rows(view[name]);
    this.classes = view.relevance.classes;
    this.side = view.relevance.side; // of a relevance cell, in image pixels
    this.patch = data.size[0] / data.grid[0];
    this.within = this.rows.inner ? Math.sqrt(this.rows.inner.width) : 1;
    this.canvas.outer.style.aspectRatio = `${data.size[1]} / ${data.size[0]}`;
    this.image = imageCanvas(image.rgb, data.size);
    const groups = view.predictions.map((best, head) => [["class head", "distillation head"][head], best]);
    if (image.teacher) groups.push([`teacher, ${data.teacher}`, image.teacher]);
    this.top = view.predictions.map((best) => best[0]);
    const line = ([label, share]) => make("li", { style: `--share: ${100 * share}%` },
      make("span", {}, data.classes[label] + (label === image.label ? " ✓" : "")), make("b", {}, percent(share)));
    this.predictions.replaceChildren(...groups.map(([title, best]) =>
      make("div", {}, make("h4", {}, title), make("ol", {}, ...best.map(line)))));
  }

  // --- values

  get tokens() {
    return this.config.patches + 1 + this.config.distillation;
  }
  get block() {
    return Math.min(this.explorer.state.block, this.config.depth - 1);
  }
  heads(stream) {
    return this.rows[stream]?.shape[stream === "outer" ? 1 : 2] ?? 0;
  }
  headOf(stream) {
    return Math.min(this.explorer.state[stream], this.heads(stream) - 1);
  }
  relevanceMap(map) {
    return Float32Array.from({ length: this.rows.relevance.width }, (_, cell) => this.rows.relevance.at(map, cell));
  }
  relevanceHead() {
    return this.config.distillation && this.explorer.state.token === this.config.patches + 1 ? 1 : 0;
  }

  /** The outer map: a value for every token, or in relevance for every cell. */
  outerValues(block = this.block, head = this.headOf("outer")) {
    const { mode, reversed } = this.explorer.state, token = this.explorer.selectedToken();
    if (token >= this.tokens) return new Float32Array(this.tokens);
    if (mode === "rollout") return attentionOf(this.rows.rolled_outer, block, 1, 0, token, reversed);
    return attentionOf(this.rows.outer, block, this.heads("outer"), head, token, reversed);
  }

  /** The inner map: a value for every pixel token; the mean of all rows while no pixel token is selected. */
  innerValues(block = this.block, head = this.headOf("inner")) {
    const { mode, open, reversed } = this.explorer.state, pixel = this.explorer.selectedPixel();
    const rows = mode === "rollout" ? this.rows.rolled_inner : this.rows.inner;
    const matrix = block * this.config.patches + open, heads = mode === "rollout" ? 1 : this.heads("inner");
    const values = (from, reversed) => attentionOf(rows, matrix, heads, mode === "rollout" ? 0 : head, from, reversed);
    if (pixel !== null) return values(pixel, reversed);
    const all = range(rows.width).map((from) => values(from, false));
    return all[0].map((_, key) => all.reduce((sum, row) => sum + row[key] / all.length, 0));
  }

  /** A relevance map's cells inside the opened patch. */
  inside(cells, patch = this.explorer.state.open) {
    const { data } = this.explorer, across = this.patch / this.side, width = data.grid[1] * across;
    const [row, column] = [Math.floor(patch / data.grid[1]), patch % data.grid[1]];
    return Float32Array.from({ length: across * across }, (_, i) =>
      cells[(row * across + Math.floor(i / across)) * width + column * across + (i % across)]);
  }

  // --- drawing

  draw() {
    const { state, data } = this.explorer, relevance = state.mode === "relevance";
    const map = 2 * this.relevanceHead() + state.weighted;
    const outer = relevance ? this.relevanceMap(map) : this.outerValues();
    const open = state.open !== null && (relevance || this.rows.inner);
    const inner = !open ? null : relevance ? this.inside(outer) : this.innerValues();
    this.shown = { outer, inner }; // for the tests
    const patches = relevance ? outer : outer.subarray(1, 1 + this.config.patches);
    const cells = relevance ? this.patch / this.side : 1;
    const { image, mode, block, reversed, weighted, opacity } = state;
    const size = [this.element.clientWidth, window.devicePixelRatio];
    const both = [image, mode, block, reversed, weighted, opacity, state.open, map, this.explorer.ink, ...size];
    if (this.changed("outer", ...both, state.outer, state.token, state.hover)) {
      this.drawOuter(patches, data.grid.map((count) => count * cells), Math.max(...outer));
      this.drawSpecial(outer, relevance);
      this.drawTiles("outer", relevance, cells);
    }
    if (this.changed("inner", ...both, state.inner, this.explorer.selectedPixel())) {
      this.drawInner(inner, relevance ? Math.max(...outer) : inner && Math.max(...inner), relevance);
      this.drawTiles("inner", relevance, cells);
      this.drawLines();
    }
    this.legend.outer.textContent = `${percent(Math.max(...outer))} of ${state.mode}`;
    for (const stream of ["outer", "inner"]) {
      const count = this.heads(stream), head = this.headOf(stream), attention = state.mode === "attention";
      this.head[stream].element.classList.toggle("gone", !attention || count < 2);
      const name = head === MEAN ? "mean" : head === MAX ? "max" : `${head + 1} of ${count}`;
      this.head[stream].show(head + 2, count + 1, name);
      this.note[stream].textContent = attention && count < this.config.heads[stream] ? "mean over heads" : "";
    }
    write(this.summary, this.describe(outer, inner));
  }

  /** Whether a stream has to be drawn again. */
  changed(stream, ...parts) {
    const before = (this.drawn ??= {})[stream];
    this.drawn[stream] = parts.join();
    return before !== this.drawn[stream];
  }

  color(value, highest) {
    return 3 * Math.min(255, Math.round((255 * value) / (highest || 1))); // where it begins in the palette
  }

  /** Maps as color-mapped grids, `perRow` side by side, on a small canvas that is kept under a name. */
  paint(name, maps, rows, columns, highest, perRow = 1) {
    const width = columns * perRow, height = rows * Math.ceil(maps.length / perRow), { palette } = this.explorer;
    const small = (this.buffers[`${name} ${width} ${height}`] ??= make("canvas", { width, height }));
    const context = small.getContext("2d", { willReadFrequently: true });
    const pixels = context.createImageData(width, height);
    maps.forEach((values, map) => {
      const corner = Math.floor(map / perRow) * rows * width + (map % perRow) * columns;
      for (let i = 0; i < values.length; i++) {
        const from = this.color(values[i], highest[map] ?? highest[0]);
        const to = 4 * (corner + Math.floor(i / columns) * width + (i % columns));
        for (let part = 0; part < 3; part++) pixels.data[to + part] = palette[from + part];
        pixels.data[to + 3] = 255;
      }
    });
    context.putImageData(pixels, 0, 0);
    return small;
  }

  grid(context, width, height, rows, columns) {
    context.fillStyle = "rgba(255, 255, 255, 0.28)";
    for (let row = 1; row < rows; row++) context.fillRect(0, (row * height) / rows - 0.5, width, 1);
    for (let column = 1; column < columns; column++) context.fillRect((column * width) / columns - 0.5, 0, 1, height);
  }

  drawOuter(values, [rows, columns], highest) {
    const { data, state, accent } = this.explorer, { context, width, height } = fit(this.canvas.outer);
    context.drawImage(this.image, 0, 0, width, height);
    context.globalAlpha = state.opacity / 10;
    context.drawImage(this.paint("outer", [values], rows, columns, [highest]), 0, 0, width, height);
    context.globalAlpha = 1;
    this.grid(context, width, height, ...data.grid);
    const box = (patch) => {
      const [down, across] = [height / data.grid[0], width / data.grid[1]];
      return [(patch % data.grid[1]) * across, Math.floor(patch / data.grid[1]) * down, across, down];
    };
    const token = this.explorer.selectedToken(), relevance = state.mode === "relevance";
    if (state.open !== null) outline(context, ...box(state.open), accent);
    if (token > 0 && token <= this.config.patches && token - 1 !== state.open && !(relevance && state.hover === null))
      outline(context, ...box(token - 1), "#fff", 2);
    const best = values.indexOf(Math.max(...values));
    if (!relevance && height / data.grid[0] > 30 && values[best] > 0) {
      const [x, y, across, down] = box(best);
      context.font = `600 ${Math.min(15, across / 3)}px system-ui, sans-serif`;
      [context.textAlign, context.textBaseline] = ["center", "middle"];
      context.fillStyle = "#000";
      context.fillText(percent(values[best]).slice(0, -2), x + across / 2, y + down / 2);
    }
  }

  drawSpecial(values, relevance) {
    const highest = Math.max(...values);
    this.special.forEach((button, which) => {
      const token = which ? this.config.patches + 1 : 0, there = token < this.tokens;
      button.hidden = !there;
      const pressed = relevance ? which === this.relevanceHead() : token === this.explorer.selectedToken();
      button.setAttribute("aria-pressed", pressed);
      button.firstChild.textContent = ["class", "distillation"][which] + (relevance ? " head" : "");
      button.lastChild.textContent = relevance || !there ? "" : percent(values[token]);
      const color = relevance || !there ? "transparent" : this.explorer.rgb(this.color(values[token], highest));
      button.style.setProperty("--map", color);
    });
  }

  drawInner(values, highest, relevance) {
    const { state, data, accent } = this.explorer, { context, width, height } = fit(this.canvas.inner);
    const across = relevance ? this.patch / this.side : this.within, pixel = this.explorer.selectedPixel();
    this.element.classList.toggle("closed", !values);
    this.canvas.inner.tabIndex = values ? 0 : -1;
    this.close.hidden = state.open === null;
    this.legend.inner.textContent = values ? `${percent(highest)} of ${state.mode}` : "";
    this.opened.textContent = !this.rows.inner && !relevance ? "a ViT has no inner stream"
      : state.open === null ? "click a patch to open it"
      : `patch ${state.open + 1}${relevance ? "" : pixel === null ? ", all pixel tokens" : `, pixel token ${pixel + 1}`}`;
    context.clearRect(0, 0, width, height);
    if (state.open === null) return;
    const [row, column] = [Math.floor(state.open / data.grid[1]), state.open % data.grid[1]];
    context.drawImage(this.image, column * this.patch, row * this.patch, this.patch, this.patch, 0, 0, width, height);
    if (values) {
      context.globalAlpha = state.opacity / 10;
      context.drawImage(this.paint("inner", [values], across, across, [highest]), 0, 0, width, height);
      context.globalAlpha = 1;
      this.grid(context, width, height, across, across);
      context.fillStyle = "#000";
      [context.textAlign, context.textBaseline] = ["center", "middle"];
      context.font = `${width / across > 60 ? 15 : 11}px system-ui, sans-serif`;
      const cell = width / across;
      if (cell > 28) values.forEach((value, i) => {
        context.fillStyle = value > 0.45 * highest ? "#000" : "#fff";
        const [x, y] = [((i % across) + 0.5) * cell, (Math.floor(i / across) + 0.5) * cell];
        context.fillText(percent(value).slice(0, -2), x, y);
      });
      if (pixel !== null && !relevance)
        outline(context, (pixel % across) * cell, Math.floor(pixel / across) * cell, cell, cell, "#fff", 2);
    }
    outline(context, 0, 0, width, height, accent);
  }

  /** The small maps: their rows and columns, the values of each, and the effect of a click. */
  plan(stream, relevance) {
    const { explorer } = this, { state } = explorer;
    if (stream === "inner" && (state.open === null || (!relevance && !this.rows.inner))) return null;
    if (relevance) {
      const heads = range(this.classes.length);
      return {
        title: stream === "outer" ? "Both heads; for any class and the predicted one" : "The same inside the patch",
        rows: heads.map((head) => ["class", "dist."][head]), columns: ["any", "pred."],
        chosen: [this.relevanceHead(), state.weighted],
        values: (head, weighted) => {
          const cells = this.relevanceMap(2 * head + weighted);
          return stream === "outer" ? cells : this.inside(cells);
        },
        choose: (head, weighted) => explorer.set({ token: head ? this.config.patches + 1 : 0, weighted }),
      };
    }
    const rolled = state.mode === "rollout", heads = this.heads(stream), single = rolled || heads < 2;
    return {
      title: rolled ? "Through blocks 1 to …" : heads < 2 ? "Every block" : "Every block (across) and head (down)",
      rows: single ? [""] : range(heads).map((head) => String(head + 1)),
      columns: range(this.config.depth).map((block) => String(block + 1)),
      chosen: [single ? 0 : this.headOf(stream), this.block],
      values: (head, block) => (stream === "outer"
        ? this.outerValues(block, head).subarray(1, 1 + this.config.patches) : this.innerValues(block, head)),
      choose: (head, block) => explorer.set(single ? { block } : { block, [stream]: head }),
    };
  }

  drawTiles(stream, relevance, cells) {
    const plan = (this.planned ??= {})[stream] = this.plan(stream, relevance), canvas = this.tiles[stream];
    canvas.parentNode.classList.toggle("gone", !plan);
    if (!plan) return;
    const { data, accent, ink } = this.explorer, top = 20;
    const left = plan.rows[0] === "" ? 2 : relevance ? 44 : 20; // room for the rows' names
    const inside = relevance ? cells : this.within;
    const [rows, columns] = stream === "inner" ? [inside, inside] : data.grid.map((count) => count * cells);
    const width = canvas.parentNode.clientWidth;
    const limit = { outer: relevance ? 110 : 72, inner: relevance ? 72 : 46 }[stream];
    const tile = Math.max(6, Math.min(limit, Math.floor((width - left) / plan.columns.length) - 4));
    const high = (tile * rows) / columns;
    const tall = `${top + plan.rows.length * (high + 4)}px`;
    if (canvas.style.height !== tall) canvas.style.height = tall;
    const { context, width: full, height } = fit(canvas), count = plan.columns.length;
    plan.layout = { left, top, tile, high };
    context.clearRect(0, 0, full, height);
    const values = plan.rows.flatMap((_, row) => plan.columns.map((_, column) => plan.values(row, column)));
    const largest = values.map((one) => Math.max(...one)), highest = Math.max(...largest);
    const small = this.paint(`${stream} tiles`, values, rows, columns, relevance ? largest : [highest], count);
    context.font = "12px system-ui, sans-serif";
    [context.fillStyle, context.strokeStyle, context.lineWidth] = [ink, accent, 2];
    [context.textBaseline, context.textAlign] = ["middle", "right"];
    plan.rows.forEach((name, row) => context.fillText(name, left - 7, top + row * (high + 4) + high / 2));
    context.textAlign = "center";
    plan.columns.forEach((name, column) => context.fillText(name, left + column * (tile + 4) + tile / 2, top / 2 - 1));
    values.forEach((_, map) => {
      const [row, column] = [Math.floor(map / count), map % count];
      const [x, y] = [left + column * (tile + 4), top + row * (high + 4)];
      context.drawImage(small, column * columns, row * rows, columns, rows, x, y, tile, high);
      const all = plan.chosen[0] < 0; // mean or max: the whole column of heads
      if (column === plan.chosen[1] && row === (all ? plan.rows.length - 1 : plan.chosen[0]))
        context.strokeRect(x - 1, all ? top - 1 : y - 1, tile + 2, all ? y + high - top + 2 : high + 2);
    });
    write(this.caption[stream], `${plan.title}, ${relevance ? "each scaled to its own maximum" : `0 to ${percent(highest)}`}`);
  }

  /** Lines from the opened patch to its enlargement. */
  drawLines() {
    const { state, data } = this.explorer, [outer, inner] = [this.canvas.outer, this.canvas.inner];
    this.lines.classList.toggle("gone", state.open === null);
    if (state.open === null) return;
    const high = outer.clientHeight / data.grid[0], wide = outer.clientWidth / data.grid[1];
    const x = outer.offsetLeft + ((state.open % data.grid[1]) + 1) * wide;
    const y = outer.offsetTop + Math.floor(state.open / data.grid[1]) * high;
    [...this.lines.children].forEach((line, end) => {
      const corner = { x2: inner.offsetLeft, y2: inner.offsetTop + end * inner.clientHeight };
      const ends = { x1: x, y1: y + end * high, ...corner };
      for (const [name, value] of Object.entries(ends)) line.setAttribute(name, value);
    });
  }

  // --- the summary sentence

  tokenName(token, query) {
    if (token === query) return "itself";
    return token === 0 ? "the class token" : token <= this.config.patches ? `patch ${token}` : "the distillation token";
  }

  describe(outer, inner) {
    const { state, data } = this.explorer, token = this.explorer.selectedToken(), pixel = this.explorer.selectedPixel();
    const most = (values) => values.indexOf(Math.max(...values));
    if (state.mode === "relevance") {
      const head = this.relevanceHead(), [label, share] = [data.classes[this.top[head][0]], this.top[head][1]];
      const sum = (values) => values.reduce((total, one) => total + one, 0);
      const patches = range(this.config.patches).map((patch) => sum(this.inside(outer, patch)));
      const at = state.hover > 0 && state.hover <= this.config.patches ? state.hover - 1 : most(patches);
      const whole = sum(patches);
      const prediction = `The ${["class", "distillation"][head]} head predicts ${label} (${percent(share)})`;
      return `${prediction}. ${percent(whole)} of the relevance ${state.weighted ? "for this class" : "for any class"} `
        + `comes from the image, ${percent(patches[at])} from ${this.tokenName(at + 1)}${state.hover > 0 ? "" : " alone"}.`;
    }
    const named = (head, count) =>
      head < 0 || count < 2 ? `${head === MAX ? "max" : "mean"} of heads` : `head ${head + 1}`;
    const count = this.heads("outer"), head = this.headOf("outer");
    const where = state.mode === "rollout" ? `Through block${this.block ? `s 1–${this.block + 1}` : " 1"}`
      : `Block ${this.block + 1}, ${named(head, count)}`;
    const verb = state.mode === "rollout" ? (state.reversed ? "contributes most to" : "comes most from")
      : state.reversed ? "is attended to most by" : "attends most to";
    if (inner && pixel !== null) {
      const one = most(inner), other = one === pixel ? "itself" : `pixel token ${one + 1}`;
      const start = state.mode === "rollout" ? where
        : `Block ${this.block + 1}, ${named(this.headOf("inner"), this.heads("inner"))}`;
      return `${start}: pixel token ${pixel + 1} of patch ${state.open + 1} ${verb} ${other} (${percent(inner[one])}).`;
    }
    if (token >= this.tokens) return "This model has no distillation token.";
    const order = [...outer.keys()].sort((a, b) => outer[b] - outer[a]);
    const [first, second] = order.map((other) => `${this.tokenName(other, token)} (${percent(outer[other])})`);
    return `${where}: ${this.tokenName(token)} ${verb} ${first}, then ${second}.`;
  }

  // --- pointer and keys

  /** The cell of a canvas under the pointer. */
  under(event, rows, columns) {
    const box = event.currentTarget.getBoundingClientRect();
    const place = (share, count) => Math.max(0, Math.min(count - 1, Math.floor(share * count)));
    const row = place((event.clientY - box.top) / box.height, rows);
    return row * columns + place((event.clientX - box.left) / box.width, columns);
  }

  listen() {
    const { explorer } = this, { state } = explorer, { outer, inner } = this.canvas;
    const patch = (event) => this.under(event, ...explorer.data.grid);
    outer.addEventListener("pointermove", (event) => explorer.set({ hover: 1 + patch(event) }));
    outer.addEventListener("pointerleave", () => explorer.set({ hover: null }));
    outer.addEventListener("click", (event) => {
      const at = patch(event);
      explorer.set({ hover: null });
      if (state.mode !== "relevance") explorer.set({ token: 1 + at });
      explorer.open(state.open === at ? null : at);
    });
    outer.addEventListener("keydown", (event) => this.move(event));
    const pixel = (event) => this.under(event, this.within, this.within);
    inner.addEventListener("pointermove", (event) => state.open !== null && explorer.set({ hoverPixel: pixel(event) }));
    inner.addEventListener("pointerleave", () => explorer.set({ hoverPixel: null }));
    inner.addEventListener("click", (event) => {
      if (state.open !== null) explorer.set({ pixel: state.pixel === pixel(event) ? null : pixel(event) });
    });
    inner.addEventListener("keydown", (event) => this.moveInside(event));
    this.special.forEach((button, which) => {
      const token = () => (which ? this.config.patches + 1 : 0);
      button.addEventListener("pointerenter", () => state.mode !== "relevance" && explorer.set({ hover: token() }));
      button.addEventListener("pointerleave", () => explorer.set({ hover: null }));
      button.addEventListener("click", () => explorer.set({ token: token(), hover: null }));
    });
    for (const stream of ["outer", "inner"])
      this.tiles[stream].addEventListener("click", (event) => {
        const plan = this.planned[stream], { left, top, tile, high } = plan.layout;
        const row = Math.floor((event.offsetY - top) / (high + 4));
        const column = Math.floor((event.offsetX - left) / (tile + 4));
        if (row in plan.rows && column in plan.columns) plan.choose(row, column);
      });
  }

  /** Arrow keys over the patches; above the first row lie class and distillation token. */
  move(event) {
    const { state, data } = this.explorer, [rows, columns] = data.grid, patches = this.config.patches;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    const distillation = this.config.distillation ? patches + 1 : 0; // without one, the class token
    if (event.key === "Enter" || event.key === " ") {
      if (state.token > 0 && state.token <= patches) {
        this.explorer.open(state.token - 1);
        if (this.rows.inner) this.canvas.inner.focus();
      }
    } else if (!step) return;
    else {
      let token = state.token;
      const column = (token - 1) % columns;
      if (token === 0 || token > patches) {
        if (event.key === "ArrowDown") token = token ? columns : 1;
        else if (Math.abs(step) === 1) token = step > 0 ? distillation : 0;
      } else if (Math.abs(step) === 1) token += column + step >= 0 && column + step < columns ? step : 0;
      else if (token + step < 1) token = column >= columns / 2 ? distillation : 0;
      else if (token + step <= rows * columns) token += step;
      this.explorer.set({ token, hover: null });
    }
    event.preventDefault();
  }

  moveInside(event) {
    const { state } = this.explorer, side = this.within;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -side, ArrowDown: side }[event.key];
    if (!step || state.open === null || !this.rows.inner) return;
    const from = state.pixel ?? 0, column = from % side, to = from + step;
    const fits = Math.abs(step) === 1 ? column + step >= 0 && column + step < side : to >= 0 && to < side * side;
    this.explorer.set({ pixel: state.pixel === null ? 0 : fits ? to : from, hoverPixel: null });
    event.preventDefault();
  }
}

// --- the whole explorer

class Explorer {
  constructor(element, data, send) {
    performance.mark("data");
    this.element = element;
    this.data = data;
    this.palette = bytesOf(data.palette);
    element.style.setProperty("--ramp", `linear-gradient(90deg, ${range(16).map((stop) => this.rgb(51 * stop))})`);
    this.deepest = Math.max(...data.models.map((model) => model.depth));
    this.state = { image: 0, mode: "attention", block: this.deepest - 1, outer: MEAN, inner: MEAN,
      reversed: false, weighted: 0, opacity: 5, token: 0, hover: null, open: null, pixel: null, hoverPixel: null };
    this.stages = data.models.map((_, number) => new Stage(this, number));
    this.thumbs = make("div", { class: "thumbs", role: "group", "aria-label": "Images" });
    this.mode = choice("Map", MODES, (index) => this.set({ mode: MODES[index] }));
    this.direction = choice("Direction", ["attends to", "is attended to by"], (index) => this.set({ reversed: index === 1 }));
    this.weighting = choice("Relevance", ["for any class", "for the predicted class"], (index) => this.set({ weighted: index }));
    this.blocks = slider("block", "[ and ] on the keyboard", (block) => this.set({ block }));
    this.opacity = slider("opacity", "Opacity of the map over the image", (opacity) => this.set({ opacity }));
    this.error = make("p", { class: "error", role: "alert" });
    element.classList.add("titn-explorer");
    element.setAttribute("data-lm-suppress-shortcuts", "true"); // else JupyterLab handles the keys first
    element.replaceChildren(
      make("div", { class: "bar" }, this.thumbs),
      make("div", { class: "bar" },
        ...[this.mode, this.blocks, this.direction, this.weighting, this.opacity].map((control) => control.element)),
      this.error,
      make("div", { class: `stages of${this.stages.length}` }, ...this.stages.map((stage) => stage.element)),
      make("p", { class: "help" }, "Point at a patch or a token to see what it attends to. Click a patch to open it, and a "
        + "small map to select its block and head. Keys: arrows move, Enter opens, Escape closes, [ ] block, , . head, "
        + "t direction, m map."));
    element.addEventListener("keydown", (event) => this.key(event));
    if (send) this.acceptImages(send);
    this.load(data);
    this.watch = new ResizeObserver(() => this.schedule());
    this.watch.observe(element);
    this.theme = window.matchMedia("(prefers-color-scheme: dark)");
    this.theme.addEventListener("change", () => this.schedule());
  }

  /** Load the data; an image that was added is shown. */
  load(data) {
    const more = data.images.length > this.data.images.length;
    this.data = data;
    const buttons = data.images.map((image, index) => {
      const label = image.label === null ? "" : `, ${data.classes[image.label]}`;
      return make("button", { type: "button", title: image.title + label, "aria-label": image.title + label,
        onclick: () => this.set({ image: index }) }, imageCanvas(image.rgb, data.size));
    });
    this.thumbs.replaceChildren(...buttons, ...(this.upload ? [this.upload] : []));
    this.loaded = null;
    this.set({ image: more ? data.images.length - 1 : this.state.image });
    this.draw();
  }

  rgb(from) {
    return `rgb(${this.palette.subarray(from, from + 3)})`;
  }
  selectedToken() {
    return this.state.mode === "relevance" ? this.state.hover ?? -1 : this.state.hover ?? this.state.token;
  }
  selectedPixel() {
    return this.state.hoverPixel ?? this.state.pixel;
  }

  set(changes) {
    Object.assign(this.state, changes);
    this.schedule();
  }
  open(patch) {
    this.set({ open: patch, pixel: null, hoverPixel: null });
  }

  schedule() {
    this.waiting ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    cancelAnimationFrame(this.waiting);
    this.waiting = null;
    if (!this.element.clientWidth) return; // not on the page yet; the observer calls again
    const began = performance.now(), { state, data } = this, style = getComputedStyle(this.element);
    this.accent = style.getPropertyValue("--accent");
    this.ink = style.color;
    if (this.loaded !== state.image) {
      this.stages.forEach((stage) => stage.load(data.images[state.image]));
      this.loaded = state.image;
    }
    if (!this.drawTime) { // at first, the patch that the class token attends to most is open
      const patches = this.stages[0].outerValues().subarray(1, 1 + data.models[0].patches);
      state.open = patches.indexOf(Math.max(...patches));
    }
    [...this.thumbs.querySelectorAll("button")].forEach((button, index) =>
      button.setAttribute("aria-pressed", index === state.image));
    const relevance = state.mode === "relevance", { deepest } = this;
    this.mode.show(MODES.indexOf(state.mode));
    this.direction.show(Number(state.reversed), state.mode === "rollout" ? ["comes from", "contributes to"] : undefined);
    this.weighting.show(state.weighted);
    const start = state.mode === "rollout" ? "1 to " : "";
    this.blocks.show(state.block, deepest - 1, `${start}${state.block + 1} of ${deepest}`);
    this.opacity.show(state.opacity, 10, `${10 * state.opacity} %`);
    this.blocks.element.classList.toggle("gone", relevance);
    this.direction.element.classList.toggle("gone", relevance);
    this.weighting.element.classList.toggle("gone", !relevance);
    this.stages.forEach((stage) => stage.draw());
    this.drawTime = performance.now() - began; // milliseconds
    if (!this.element.dataset.ready) performance.mark("ready");
    this.element.dataset.ready = true;
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { state } = this, stream = event.target.closest?.(".inner") ? "inner" : "outer";
    const most = Math.max(...this.stages.map((stage) => stage.heads(stream))) - 1;
    const turn = (value, by, low, high) => Math.max(low, Math.min(high, value + by));
    if (event.key === "Escape" && state.open !== null) {
      const inside = event.target.closest?.(".inner");
      this.open(null);
      if (inside) this.stages[0].canvas.outer.focus();
    } else if (event.key === "[" || event.key === "]")
      this.set({ block: turn(state.block, event.key === "[" ? -1 : 1, 0, this.deepest - 1) });
    else if (event.key === "," || event.key === ".")
      this.set({ [stream]: turn(state[stream], event.key === "," ? -1 : 1, MEAN, most) });
    else if (event.key === "t") this.set({ reversed: !state.reversed });
    else if (event.key === "m") this.set({ mode: MODES[(MODES.indexOf(state.mode) + 1) % MODES.length] });
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Only with a kernel: dropped or chosen files go to Python, which resizes them and updates `data`. */
  acceptImages(send) {
    const take = async (files) => {
      this.error.textContent = "";
      for (const file of files) send(file.name, await file.arrayBuffer());
    };
    const input = make("input", { type: "file", accept: "image/*", multiple: true });
    input.addEventListener("change", async () => {
      await take(input.files);
      input.value = ""; // so that the same file can be chosen again
    });
    const hint = "Choose an image, or drop one anywhere here";
    this.upload = make("label", { class: "upload", title: hint }, input, "+ your image");
    const over = (event) => {
      event.preventDefault();
      event.stopPropagation();
      this.element.classList.toggle("over", event.type === "dragover");
    };
    for (const name of ["dragover", "dragleave", "drop"]) this.element.addEventListener(name, over);
    this.element.addEventListener("drop", (event) => take(event.dataTransfer.files));
  }

  end() {
    this.watch.disconnect();
    cancelAnimationFrame(this.waiting);
  }
}

/** Show the explorer in an element. */
export function explore(element, data, send) {
  return (element.explorer = new Explorer(element, data, send));
}

/** The entry point of anywidget. */
function render({ model, el }) {
  const send = (name, content) => model.send({ image: name }, undefined, [content]);
  const inside = el.appendChild(document.createElement("div"));
  const explorer = explore(inside, model.get("data"), send);
  const load = () => explorer.load(model.get("data"));
  const showError = (message) => (explorer.error.textContent = message.error ?? "");
  model.on("change:data", load);
  model.on("msg:custom", showError);
  return () => {
    model.off("change:data", load);
    model.off("msg:custom", showError);
    explorer.end();
  };
}

export default { render };
