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
    this.layout = {}; // of the small maps
    this.tiles = { outer: make("canvas", { role: "img" }), inner: make("canvas", { role: "img" }) };
    this.special = ["class", "distillation"].map((name) =>
      make("button", { type: "button", class: "token" }, make("span", {}, name), make("b")));
    this.summary = make("p", { class: "summary", "aria-live": "polite" });
    this.words = make("p", { class: "unseen" }); // for screen readers
    this.predictions = new Predictions(explorer, number);
    [this.hiding, this.arithmetic, this.overview] = [new Hiding(this), new Arithmetic(this), new HeadOverview(this)];
    this.lines = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.lines.setAttribute("aria-hidden", "true");
    this.lines.innerHTML = "<line/><line/>";
    this.close = make("button", { type: "button", class: "close", "aria-label": "Close the patch",
      title: "Close (Escape)", onclick: () => explorer.press("Escape", this.close) }, "×");
    this.opened = make("span");
    this.note = { outer: make("span", { class: "note" }), inner: make("span", { class: "note" }) };
    this.head = {};
    this.legend = {};
    this.table = {};
    this.caption = {};
    const column = (stream, title, top) => {
      const choose = (value) => explorer.set({ [stream]: value - 2 });
      this.head[stream] = slider("head", ", and . on the keyboard", choose, `head, ${stream} stream`);
      this.legend[stream] = make("span");
      this.table[stream] = make("details", { ontoggle: () => explorer.schedule() }, make("summary", {}, "values"),
        make("div", {}, make("table", { "aria-label": `${title}, in percent` })));
      this.caption[stream] = make("figcaption");
      return make("div", { class: `stream ${stream}` },
        make("div", { class: "title" }, make("h3", {}, `${title} `, this.note[stream]), this.head[stream].element),
        top, this.canvas[stream], make("div", { class: "legend" }, "0", make("i"), this.legend[stream]),
        this.table[stream], make("figure", {}, this.caption[stream], this.tiles[stream]));
    };
    const { name, data } = explorer.data.models[number];
    this.element = make("section", { class: "stage", "aria-label": name },
      make("h2", {}, `${name} `, make("span", { class: "note" }, `trained on ${data}`)),
      this.words, make("div", { class: "streams" }, this.summary,
        column("outer", "Outer stream: patches", make("div", { class: "tokens" }, ...this.special)),
        column("inner", "Inner stream: pixel tokens", make("div", { class: "tokens" }, this.opened, this.close)),
        this.predictions.lists, this.predictions.lens, this.lines),
      this.hiding.element, this.arithmetic.element, this.overview.element);
    this.listen();
  }

  /** Show an image's arrays. */
  load(image) {
    const { data } = this.explorer, view = image.models[this.number];
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
    this.arithmetic.load(view);
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
    this.planned = { outer: this.plan("outer", relevance), inner: this.plan("inner", relevance) };
    const highest = (maps) => Math.max(0, ...maps.map((values) => Math.max(...values)));
    this.highest = {
      outer: highest([this.patches]), inner: highest(!inner ? [] : [relevance ? outer : inner]),
      outerTiles: highest(this.planned.outer.maps), innerTiles: highest(this.planned.inner?.maps ?? []),
    };
  }

  // --- drawing

  /** Draw what `compute` found. The scales are the same for both models. */
  draw(highest) {
    this.scale = highest;
    const { state, data, ink, em } = this.explorer, relevance = state.mode === "relevance";
    const { outer, inner } = this.shown, cells = relevance ? this.patch / this.side : 1;
    const { image, mode, block, reversed, weighted, opacity, open, token, hover } = state;
    const size = [this.element.clientWidth, window.devicePixelRatio, ink, em, ...Object.values(highest)];
    const both = [image, mode, block, reversed, weighted, opacity, state.head, open, ...size];
    const grid = data.grid.map((count) => count * cells), side = relevance ? cells : this.within;
    if (this.changed("outer", ...both, state.outer, token, hover, this.table.outer.open)) {
      this.paintOuter(fit(this.canvas.outer));
      this.drawSpecial(outer, highest.outer, relevance);
      this.drawTiles("outer", relevance, grid, highest.outerTiles);
      this.tabulate("outer", this.patches, grid[1]);
    }
    if (this.changed("inner", ...both, state.inner, this.explorer.selectedPixel(), this.table.inner.open)) {
      this.labelInner();
      this.paintInner(fit(this.canvas.inner));
      this.drawTiles("inner", relevance, [side, side], highest.innerTiles);
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
    this.arithmetic.draw();
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

  /** An image under its map. Up to 50 % the map fades in; above, the image, by now its shading, fades out. */
  blend(context, map, part, width, height) {
    const opacity = this.explorer.state.opacity / 10;
    const layer = (canvas, alpha, operation, ...area) => {
      [context.globalAlpha, context.globalCompositeOperation] = [alpha, operation];
      context.drawImage(canvas, ...area, 0, 0, width, height);
    };
    layer(this.image, 1, "source-over", ...part);
    layer(map, Math.min(1, 2 * opacity), "source-over");
    layer(this.shading, Math.min(opacity, 1 - opacity), "multiply", ...part); // so that brightness follows the map
    [context.globalAlpha, context.globalCompositeOperation] = [1, "source-over"];
  }

  /** The outer map, on the screen or in a figure. */
  paintOuter({ context, width, height }) {
    const { data, state, accent, em } = this.explorer, values = this.patches;
    const cells = state.mode === "relevance" ? this.patch / this.side : 1;
    const [rows, columns] = data.grid.map((count) => count * cells), whole = [0, 0, data.size[1], data.size[0]];
    this.blend(context, this.paint("outer", [values], rows, columns, [this.scale.outer]), whole, width, height);
    this.grid(context, width, height, ...data.grid);
    const box = (patch) => {
      const [down, across] = [height / data.grid[0], width / data.grid[1]];
      return [(patch % data.grid[1]) * across, Math.floor(patch / data.grid[1]) * down, across, down];
    };
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
    const { state, data, accent, em } = this.explorer, values = this.shown.inner;
    context.clearRect(0, 0, width, height);
    if (state.open === null) return;
    const across = state.mode === "relevance" ? this.patch / this.side : this.within;
    const [row, column] = [Math.floor(state.open / data.grid[1]), state.open % data.grid[1]];
    const part = [column * this.patch, row * this.patch, this.patch, this.patch], pixel = this.explorer.selectedPixel();
    if (values) {
      this.blend(context, this.paint("inner", [values], across, across, [this.scale.inner]), part, width, height);
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

  /** The small maps: their rows and columns, the values of each, and the effect of a click. */
  plan(stream, relevance) {
    if (stream === "inner" && !this.shown.inner) return null;
    const plan = relevance ? this.planRelevance(stream) : this.planAttention(stream);
    plan.maps = plan.rows.flatMap((_, row) => plan.columns.map((_, column) => plan.values(row, column)));
    return plan;
  }

  planRelevance(stream) {
    const heads = range(this.top.length), title = "both heads; for any class and the predicted one";
    return {
      title: stream === "outer" ? `Outer stream, ${title}` : "Inner stream, the same inside the patch",
      rows: heads.map((head) => ["class", "dist."][head]), columns: ["any", "pred."],
      chosen: [this.relevanceHead(), this.explorer.state.weighted],
      values: (head, weighted) => {
        const cells = this.relevanceMap(2 * head + weighted);
        return stream === "outer" ? cells : this.inside(cells);
      },
      choose: (head, weighted) => {
        this.select(head ? this.config.patches + 1 : 0);
        this.explorer.set({ weighted });
      },
    };
  }

  planAttention(stream) {
    const rolled = this.explorer.state.mode === "rollout", heads = this.heads(stream), single = rolled || heads < 2;
    const title = rolled ? "through blocks 1 to …" : `every block${single ? "" : " (across) and head (down)"}`;
    return {
      title: `${stream === "outer" ? "Outer" : "Inner"} stream, ${title}`,
      rows: single ? [""] : range(heads).map((head) => String(head + 1)),
      columns: range(this.config.depth).map((block) => String(block + 1)),
      chosen: [single ? 0 : this.headOf(stream), this.block],
      values: (head, block) => (stream === "outer"
        ? this.perPatch(this.outerValues(block, head)) : this.innerValues(block, head)),
      choose: (head, block) => this.explorer.set(single ? { block } : { block, [stream]: head }),
    };
  }

  drawTiles(stream, relevance, [rows, columns], highest) {
    const plan = this.planned[stream], canvas = this.tiles[stream];
    canvas.parentNode.classList.toggle("gone", !plan);
    if (!plan) return;
    const { accent, ink, em } = this.explorer, top = 1.35 * em;
    const left = plan.rows[0] === "" ? 2 : (relevance ? 3 : 1.35) * em; // room for the rows' names
    const width = canvas.parentNode.clientWidth;
    const limit = { outer: relevance ? 110 : 72, inner: relevance ? 72 : 46 }[stream];
    const tile = Math.max(6, Math.min(limit, Math.floor((width - left) / plan.columns.length) - 4));
    const high = (tile * rows) / columns;
    const tall = `${top + plan.rows.length * (high + 4)}px`;
    if (canvas.style.height !== tall) canvas.style.height = tall;
    const { context, width: full, height } = fit(canvas), count = plan.columns.length;
    this.layout[stream] = { left, top, tile, high };
    context.clearRect(0, 0, full, height);
    const scale = relevance ? plan.maps.map((values) => Math.max(...values)) : [highest];
    const small = this.paint(`${stream} tiles`, plan.maps, rows, columns, scale, count);
    context.font = `${0.8 * em}px system-ui, sans-serif`;
    [context.fillStyle, context.strokeStyle, context.lineWidth] = [ink, accent, 2];
    [context.textBaseline, context.textAlign] = ["middle", "right"];
    plan.rows.forEach((name, row) => context.fillText(name, left - 0.45 * em, top + row * (high + 4) + high / 2));
    context.textAlign = "center";
    plan.columns.forEach((name, column) => context.fillText(name, left + column * (tile + 4) + tile / 2, top / 2 - 1));
    plan.maps.forEach((_, map) => {
      const [row, column] = [Math.floor(map / count), map % count];
      const [x, y] = [left + column * (tile + 4), top + row * (high + 4)];
      context.drawImage(small, column * columns, row * rows, columns, rows, x, y, tile, high);
      const all = plan.chosen[0] < 0; // mean or max: the whole column of heads
      if (column === plan.chosen[1] && row === (all ? plan.rows.length - 1 : plan.chosen[0]))
        context.strokeRect(x - 1, all ? top - 1 : y - 1, tile + 2, all ? y + high - top + 2 : high + 2);
    });
    const title = `${plan.title}, ${relevance ? "each scaled to its own maximum" : `0 to ${percent(highest)}`}`;
    write(this.caption[stream], title);
    canvas.setAttribute("aria-label", title);
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
    for (const stream of ["outer", "inner"])
      this.tiles[stream].addEventListener("click", (event) => {
        const plan = this.planned[stream], { left, top, tile, high } = this.layout[stream];
        const row = Math.floor((event.offsetY - top) / (high + 4));
        const column = Math.floor((event.offsetX - left) / (tile + 4));
        if (row in plan.rows && column in plan.columns) plan.choose(row, column);
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
