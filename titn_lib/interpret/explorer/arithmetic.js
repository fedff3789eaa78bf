// The arithmetic behind one row of inner attention: q · k, the scale, the softmax, the weighted values.
//
// The page holds the last block's normalized pixel tokens and the weights of its queries, keys and values.

class Arithmetic {
  constructor(stage) {
    this.stage = stage;
    this.title = make("p");
    this.table = make("table", { "aria-label": "From query and keys to attention" });
    this.element = make("details", { class: "arithmetic", ontoggle: () => stage.explorer.schedule() },
      make("summary", {}, "the arithmetic of one inner attention row"), this.title,
      make("div", { tabindex: 0, role: "region", "aria-label": "The arithmetic" }, this.table)); // may scroll sideways
  }

  load(view) {
    const { qkv } = this.stage.config;
    this.tokens = view.pixel_tokens && numbersOf(view.pixel_tokens); // patch pixel width
    this.element.classList.toggle("gone", !this.tokens);
    if (this.tokens) [this.weight, this.bias] = [numbersOf(qkv.weight), qkv.bias && numbersOf(qkv.bias)];
  }

  /** Query (0), key (1) or value (2) of a pixel token, for one head: a row of the weights for each number. */
  project(which, patch, pixel, head) {
    const { qkv: { weight }, pixels, heads } = this.stage.config, [rows, width] = weight.shape;
    const size = rows / 3 / heads.inner, token = (patch * pixels + pixel) * width;
    return range(size).map((number) => {
      const row = (which * heads.inner + head) * size + number;
      return sum(range(width).map((i) => this.weight[row * width + i] * this.tokens[token + i])) + (this.bias?.[row] ?? 0);
    });
  }

  /** Everything that the table shows. */
  compute(patch, pixel, head) {
    const query = this.project(0, patch, pixel, head), pixels = range(this.stage.config.pixels);
    const [keys, values] = [1, 2].map((which) => pixels.map((one) => this.project(which, patch, one, head)));
    const products = keys.map((key) => sum(key.map((one, i) => one * query[i])));
    const scaled = products.map((product) => product / Math.sqrt(query.length));
    const powers = scaled.map((one) => Math.exp(one - Math.max(...scaled))), total = sum(powers);
    const shares = powers.map((power) => power / total);
    const output = query.map((_, i) => sum(values.map((value, key) => shares[key] * value[i])));
    return { query, keys, products, scaled, shares, values, output };
  }

  draw() {
    const { stage } = this, { state } = stage.explorer, { depth, heads } = stage.config;
    if (!this.tokens || !this.element.open) return;
    const head = Math.max(0, stage.headOf("inner")), pixel = stage.explorer.selectedPixel() ?? 0, patch = state.open;
    if (!stage.changed("arithmetic", stage.loads, patch, pixel, head)) return;
    write(this.title, patch === null ? "Open a patch." : `Block ${depth}, head ${head + 1} of ${heads.inner}, pixel token `
      + `${pixel + 1} of patch ${patch + 1}. Only the last block's numbers are kept. Point at a pixel token, or choose a `
      + "head, to see its row.");
    this.table.replaceChildren(...(patch === null ? [] : this.rows(this.compute(patch, pixel, head), pixel)));
  }

  rows({ query, keys, products, scaled, shares, values, output }, pixel) {
    const size = query.length, row = (...cells) => make("tr", {}, ...cells.flat());
    const head = (name, span = 1) => make("th", { scope: span > 1 ? "colgroup" : "col", colspan: span }, name);
    const side = (name) => make("th", { scope: "row" }, name), blank = (span) => make("td", { colspan: span });
    const cells = (numbers, name) => numbers.map((one) => make("td", { class: name }, decimal(one)));
    const keyRow = (key, i) => row(side(`token ${i + 1}`), cells(key, "vector"), cells([products[i], scaled[i]]),
      make("td", { class: "share" }, percent(shares[i])), cells(values[i], "vector"));
    return [
      row(head("key"), head("k", size), head("q · k"), head(`÷ √${size}`), head("softmax"), head("v", size)),
      row(side(`q of token ${pixel + 1}`), cells(query, "vector"), blank(3 + size)),
      ...keys.map(keyRow),
      row(side("sum of softmax × v"), blank(3 + size), cells(output, "vector")),
    ];
  }
}
