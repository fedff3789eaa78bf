// One model on one image: the values, the two streams, a column each, and their pointer and keys.
//
// A token is its row in the outer attention: 0 the class token, 1 … N the patches, N + 1 the distillation token.
// Blocks and heads count from 0 here and from 1 on the screen.

class Stage {
  constructor(explorer, number) {
    this.explorer = explorer;
    this.number = number;
    this.buffers = {}; // canvases with one pixel per cell, before upsampling
    const map = (label) => make("canvas", { tabindex: 0, role: "application", "aria-label": label });
    this.canvas = { outer: map("Patches of the image. Arrow keys move, Enter opens a patch, Escape closes it."),
      inner: map("Pixel tokens of the opened patch. Arrow keys move, Escape closes the patch.") };
    this.small = { outer: new SmallMaps(this, "outer"), inner: new SmallMaps(this, "inner") };
    this.special = ["class", "distillation"].map((name) =>
      make("button", { type: "button", class: "token" }, make("span", {}, name), make("b")));
    this.summary = make("p", { class: "summary", "aria-live": "polite" });
    this.words = make("p", { class: "unseen" }); // for screen readers
    this.predictions = new Predictions(explorer, number);
    [this.hiding, this.overview] = [new Hiding(this), new HeadOverview(this)];
    this.arithmetic = ["inner", "outer"].map((stream) => new Arithmetic(this, stream));
    this.lines = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.lines.setAttribute("aria-hidden", "true");
    this.lines.innerHTML = "<line/><line/>";
    this.close = make("button", { type: "button", class: "close", "aria-label": "Close the patch",
      title: "Close (Escape)", onclick: () => explorer.press("Escape", this.close) }, "×");
    this.opened = make("span");
    this.note = { outer: make("span", { class: "note" }), inner: make("span", { class: "note" }) };
    [this.head, this.legend, this.table] = [{}, {}, {}];
    const column = (stream, title, top) => {
      const choose = (value) => explorer.set({ [stream]: value - 2 });
      this.head[stream] = slider("head", ", and . on the keyboard", choose, `head, ${stream} stream`);
      this.legend[stream] = make("span");
      this.table[stream] = make("details", { ontoggle: () => explorer.schedule() }, make("summary", {}, "values"),
        make("div", {}, make("table", { "aria-label": `${title}, in percent` })));
      return make("div", { class: `stream ${stream}` },
        make("div", { class: "title" }, make("h3", {}, `${title} `, this.note[stream]), this.head[stream].element),
        top, this.canvas[stream], make("div", { class: "legend" }, "0", make("i"), this.legend[stream]),
        this.table[stream], this.small[stream].element);
    };
    const { name, data } = explorer.data.models[number];
    this.element = make("section", { class: "stage", "aria-label": name },
      make("h2", {}, `${name} `, make("span", { class: "note" }, `trained on ${data}`)),
      this.words, make("div", { class: "streams" }, this.summary,
        column("outer", "Outer stream: patches", make("div", { class: "tokens" }, ...this.special)),
        column("inner", "Inner stream: pixel tokens", make("div", { class: "tokens" }, this.opened, this.close)),
        this.predictions.lists, this.predictions.lens, this.lines),
      this.hiding.element, ...this.arithmetic.map((one) => one.element), this.overview.element);
    this.listen();
  }

  /** Show an image's arrays. */
  load(image) {
    const { data } = this.explorer, view = image.models[this.number];
    this.loads = (this.loads ?? 0) + 1; // what was drawn before is another image's
    this.config = data.models[this.number];
    this.rows = {};
    for (const name of ["outer", "inner", "rolled_outer", "rolled_inner", "relevance"])
      if (view[name]) this.rows[name] = new Rows(view[name]);
    this.side = view.relevance?.side; // of a relevance cell, in image pixels
    this.patch = data.size[0] / data.grid[0];
    this.within = this.rows.inner ? Math.sqrt(this.rows.inner.width) : 1;
    this.canvas.outer.style.aspectRatio = `${data.size[1]} / ${data.size[0]}`;
    const rgb = bytesOf(image.rgb);
    this.image = imageCanvas(rgb, data.size);
    this.shading = imageCanvas(grayOf(rgb), data.size);
    this.top = view.predictions.map((best) => best[0]); // what each head predicts: [class, probability]
    this.predictions.load(image);
    for (const one of this.arithmetic) one.load(view);
    this.hiding.load(view);
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
    return Math.min(this.explorer.state.head, this.top.length - 1);
  }
  isPatch(token) {
    return token > 0 && token <= this.config.patches;
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

  /** A patch's upper left corner in the image. */
  cornerOf(patch) {
    const { grid: [, columns] } = this.explorer.data;
    return [(patch % columns) * this.patch, Math.floor(patch / columns) * this.patch];
  }

  /** A number for every patch, from the outer map's values. */
  perPatch(values) {
    if (this.explorer.state.mode !== "relevance") return values.subarray(1, 1 + this.config.patches);
    return Float32Array.from(range(this.config.patches), (patch) => sum(this.inside(values, patch)));
  }

  /** What is to be drawn: both maps, the small maps, and the highest value of each, for the color scale. */
  compute() {
    const { state } = this.explorer, relevance = state.mode === "relevance";
    const outer = relevance ? this.relevanceMap(2 * this.relevanceHead() + state.weighted) : this.outerValues();
    const open = state.open !== null && (relevance || this.rows.inner);
    const inner = !open ? null : relevance ? this.inside(outer) : this.innerValues();
    this.shown = { outer, inner }; // for the tests, too
    this.patches = relevance ? outer : this.perPatch(outer);
    const highest = (maps) => Math.max(0, ...maps.map((values) => Math.max(...values)));
    this.highest = {
      outer: highest([this.patches]), inner: highest(!inner ? [] : [relevance ? outer : inner]),
      outerTiles: highest(this.small.outer.compute(relevance)), innerTiles: highest(this.small.inner.compute(relevance)),
    };
  }

  // --- drawing

  /** Draw what `compute` found. The scales are the same for both models. */
  draw(highest) {
    this.scale = highest;
    const { state, data, ink, em } = this.explorer, relevance = state.mode === "relevance";
    const { outer, inner } = this.shown, cells = relevance ? this.patch / this.side : 1;
    const { mode, block, reversed, weighted, opacity, open, token, hover } = state;
    const size = [this.element.clientWidth, window.devicePixelRatio, ink, em, ...Object.values(highest)];
    const both = [this.loads, mode, block, reversed, weighted, opacity, state.head, open, ...size];
    const grid = data.grid.map((count) => count * cells), side = relevance ? cells : this.within;
    if (this.changed("outer", ...both, state.outer, token, hover, this.table.outer.open)) {
      this.paintOuter(fit(this.canvas.outer));
      this.drawSpecial(outer, highest.outer, relevance);
      this.small.outer.draw(relevance, grid, highest.outerTiles);
      this.tabulate("outer", this.patches, grid[1]);
    }
    if (this.changed("inner", ...both, state.inner, this.explorer.selectedPixel(), this.table.inner.open)) {
      this.labelInner();
      this.paintInner(fit(this.canvas.inner));
      this.small.inner.draw(relevance, [side, side], highest.innerTiles);
      this.tabulate("inner", inner ?? [], side);
      this.drawLines();
    }
    write(this.legend.outer, `${percent(highest.outer)} of ${mode}`);
    for (const stream of ["outer", "inner"]) {
      const count = this.heads(stream), head = this.headOf(stream), attention = mode === "attention";
      this.head[stream].element.classList.toggle("gone", !attention || count < 2);
      const name = head === MEAN ? "mean" : head === MAX ? "max" : `${head + 1} of ${count}`;
      this.head[stream].show(head + 2, count + 1, name);
      write(this.note[stream], attention && count < this.config.heads[stream] ? "mean over heads" : "");
    }
    this.predictions.mark(relevance ? -1 : this.block);
    for (const one of this.arithmetic) one.draw();
    this.hiding.draw();
    this.overview.draw();
    write(this.summary, summaryOf(this));
    write(this.words, inWords(this));
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

  /** A part of the image under its map, in the image's pixels. Up to 50 % the map fades in; above, the shading fades out. */
  blend(map, part) {
    const opacity = this.explorer.state.opacity / 10, [, , width, height] = part;
    const blended = (this.buffers[`blended ${width} ${height}`] ??= make("canvas", { width, height }));
    const context = blended.getContext("2d");
    context.imageSmoothingEnabled = false;
    const layer = (canvas, alpha, operation, ...area) => {
      [context.globalAlpha, context.globalCompositeOperation] = [alpha, operation];
      context.drawImage(canvas, ...area, 0, 0, width, height);
    };
    layer(this.image, 1, "source-over", ...part);
    layer(map, Math.min(1, 2 * opacity), "source-over");
    layer(this.shading, Math.min(opacity, 1 - opacity), "multiply", ...part); // so that brightness follows the map
    return blended;
  }

  /** The outer map, on the screen or in a figure. */
  paintOuter({ context, width, height }) {
    const { data, state, accent, em } = this.explorer, values = this.patches;
    const cells = state.mode === "relevance" ? this.patch / this.side : 1;
    const [rows, columns] = data.grid.map((count) => count * cells), whole = [0, 0, data.size[1], data.size[0]];
    const map = this.paint("outer", [values], rows, columns, [this.scale.outer]);
    context.drawImage(this.blend(map, whole), 0, 0, width, height);
    this.grid(context, width, height, ...data.grid);
    const box = (patch) => boxOf(patch, data.grid, { width, height });
    const token = this.explorer.selectedToken(), relevance = state.mode === "relevance";
    if (state.open !== null) outline(context, ...box(state.open), accent);
    if (this.isPatch(token) && token - 1 !== state.open) outline(context, ...box(token - 1), "#fff", 2);
    const best = most(values);
    if (!relevance && height / data.grid[0] > 30 && values[best] > 0) {
      const [x, y, across, down] = box(best);
      writeNumber(context, values[best], x + across / 2, y + down / 2, Math.min(em, across / 3));
    }
  }

  drawSpecial(values, highest, relevance) {
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

  labelInner() {
    const { state } = this.explorer, pixel = this.explorer.selectedPixel(), values = this.shown.inner;
    this.element.classList.toggle("closed", !values);
    this.canvas.inner.tabIndex = values ? 0 : -1;
    this.close.hidden = state.open === null;
    this.legend.inner.textContent = values ? `${percent(this.scale.inner)} of ${state.mode}` : "";
    this.opened.textContent = !this.rows.inner && state.mode !== "relevance" ? "a ViT has no inner stream"
      : state.open === null ? "click a patch to open it"
      : !this.rows.inner ? `patch ${state.open + 1}`
      : `patch ${state.open + 1}, ${pixel === null ? "all tokens" : `token ${pixel + 1}`}`;
  }

  /** The opened patch, on the screen or in a figure. */
  paintInner({ context, width, height }) {
    const { state, accent, em } = this.explorer, values = this.shown.inner;
    context.clearRect(0, 0, width, height);
    if (state.open === null) return;
    const across = state.mode === "relevance" ? this.patch / this.side : this.within;
    const part = [...this.cornerOf(state.open), this.patch, this.patch], pixel = this.explorer.selectedPixel();
    if (values) {
      const map = this.paint("inner", [values], across, across, [this.scale.inner]);
      context.drawImage(this.blend(map, part), 0, 0, width, height);
      this.grid(context, width, height, across, across);
      const cell = width / across, size = cell > 60 ? em : 0.75 * em;
      const corner = (i) => [(i % across) * cell, Math.floor(i / across) * cell];
      if (cell > 1.9 * em) values.forEach((value, i) => {
        const [x, y] = corner(i);
        writeNumber(context, value, x + cell / 2, y + cell / 2, size);
      });
      if (pixel !== null) outline(context, ...corner(pixel), cell, cell, "#fff", 2);
    } else context.drawImage(this.image, ...part, 0, 0, width, height);
    outline(context, 0, 0, width, height, accent);
  }

  /** A map as a table, if it is open. */
  tabulate(stream, values, columns) {
    if (!this.table[stream].open) return;
    const row = (first) => make("tr", {}, ...range(columns).map((i) => make("td", {}, percent(values[first + i]))));
    const rows = range(values.length / columns).map((number) => row(number * columns));
    this.table[stream].querySelector("table").replaceChildren(...rows);
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

  // --- pointer and keys

  /** The cell of a canvas under the pointer. */
  under(event, rows, columns) {
    const box = event.currentTarget.getBoundingClientRect();
    const place = (share, count) => clamp(Math.floor(share * count), 0, count - 1);
    const row = place((event.clientY - box.top) / box.height, rows);
    return row * columns + place((event.clientX - box.left) / box.width, columns);
  }

  listen() {
    const { explorer } = this, { state } = explorer, { outer, inner } = this.canvas;
    const patch = (event) => this.under(event, ...explorer.data.grid);
    outer.addEventListener("pointermove", (event) => explorer.set({ hover: 1 + patch(event) }));
    outer.addEventListener("pointerleave", () => explorer.set({ hover: null }));
    outer.addEventListener("click", (event) => {
      const at = patch(event), again = state.open === at && state.token === 1 + at;
      this.select(1 + at);
      explorer.open(again ? null : at);
      if (!again) inner.scrollIntoView({ block: "nearest" }); // on a phone it lies below
    });
    const closed = () => state.open === null || !this.rows.inner;
    const pixel = (event) => (closed() ? null : this.under(event, this.within, this.within));
    inner.addEventListener("pointermove", (event) => explorer.set({ hoverPixel: pixel(event) }));
    inner.addEventListener("pointerleave", () => explorer.set({ hoverPixel: null }));
    inner.addEventListener("click", (event) =>
      explorer.set({ pixel: state.pixel === pixel(event) ? null : pixel(event) }));
    this.special.forEach((button, which) => {
      const token = () => (which ? this.config.patches + 1 : 0);
      button.addEventListener("pointerenter", () => explorer.set({ hover: token() }));
      button.addEventListener("pointerleave", () => explorer.set({ hover: null }));
      button.addEventListener("click", () => this.select(token()));
    });
  }

  /** Select a token. Class and distillation token also choose the head that relevance explains. */
  select(token) {
    this.explorer.set({ token, hover: null, ...(!this.isPatch(token) && { head: Number(token > 0) }) });
  }

  /** Keys over the patches; above the first row lie class and distillation token. Returns whether it took the key. */
  move(key) {
    const { token } = this.explorer.state, [rows, columns] = this.explorer.data.grid, patches = this.config.patches;
    if (key === "Enter" || key === " ") { // a patch, or the one that the class or distillation token attends to most
      this.explorer.open(this.isPatch(token) ? token - 1 : most(this.perPatch(this.shown.outer)));
      if (this.rows.inner) this.canvas.inner.focus();
      return true;
    }
    const from = this.isPatch(token) ? [Math.floor((token - 1) / columns), (token - 1) % columns]
      : [-1, token ? columns - 1 : 0];
    const to = goal(key, from, rows, columns);
    if (!to) return false;
    const [row, column] = [Math.min(to[0], rows - 1), clamp(to[1], 0, columns - 1)];
    const right = { ArrowLeft: false, ArrowRight: true }[key] ?? column >= columns / 2;
    const special = right && this.config.distillation ? patches + 1 : 0;
    this.select(row < 0 ? special : 1 + row * columns + column);
    return true;
  }

  moveInside(key) {
    const { pixel, open } = this.explorer.state, side = this.within;
    const from = pixel ?? 0, to = goal(key, [Math.floor(from / side), from % side], side, side);
    if (!to || open === null || !this.rows.inner) return false;
    const [row, column] = to.map((place) => clamp(place, 0, side - 1));
    this.explorer.set({ pixel: pixel === null ? 0 : row * side + column, hoverPixel: null });
    return true;
  }
}
