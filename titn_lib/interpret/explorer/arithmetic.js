// The arithmetic behind one row of attention: q · k, the scale, the softmax, the weighted values.
//
// The page holds the normalized tokens of the last block, and the weights of its queries, keys and values.

const ROWS = 16; // keys that are listed; of more, those with the largest shares
const WHOLE = 16, FIRST = 4; // numbers of a vector: a longer one is cut to its first

class Arithmetic {
  constructor(stage, stream) {
    [this.stage, this.stream] = [stage, stream];
    this.title = make("p");
    this.table = make("table", { "aria-label": `From query and keys to attention, ${stream} stream` });
    this.element = make("details", { class: `arithmetic of-${stream}`, ontoggle: () => stage.explorer.schedule() },
      make("summary", {}, `the arithmetic of one ${stream} attention row`), this.title, // the region may scroll sideways
      make("div", { tabindex: 0, role: "region", "aria-label": `The arithmetic, ${stream} stream` }, this.table));
  }

  load(view) {
    const tokens = view[`${this.stream}_tokens`], qkv = this.stage.config.qkv[this.stream];
    this.tokens = tokens && numbersOf(tokens); // "patch pixel width", or "token width"
    this.element.classList.toggle("gone", !tokens);
    if (!tokens) return;
    [this.count, this.width] = tokens.shape.slice(-2);
    [this.weight, this.bias] = [numbersOf(qkv.weight), qkv.bias && numbersOf(qkv.bias)];
  }

  /** Query (0), key (1) or value (2) of a token, for one head: a row of the weights for each number. */
  project(which, patch, token, head) {
    const { stage, stream, width, weight, tokens, bias } = this, heads = stage.config.heads[stream];
    const size = weight.length / width / 3 / heads, from = (patch * this.count + token) * width;
    return range(size).map((number) => {
      const row = (which * heads + head) * size + number;
      let total = bias?.[row] ?? 0;
      for (let i = 0; i < width; i++) total += weight[row * width + i] * tokens[from + i];
      return total;
    });
  }

  /** Everything that the table shows; for the outer stream, the patch is 0. */
  compute(patch, token, head) {
    const query = this.project(0, patch, token, head), all = range(this.count);
    const [keys, values] = [1, 2].map((which) => all.map((one) => this.project(which, patch, one, head)));
    const products = keys.map((key) => sum(key.map((one, i) => one * query[i])));
    const scaled = products.map((product) => product / Math.sqrt(query.length));
    const powers = scaled.map((one) => Math.exp(one)), total = sum(powers);
    const shares = powers.map((power) => power / total);
    const output = query.map((_, i) => sum(values.map((value, key) => shares[key] * value[i])));
    return { query, keys, products, scaled, total, shares, values, output };
  }

  draw() {
    const { stage, stream } = this, { explorer } = stage, { depth, heads } = stage.config, inner = stream === "inner";
    if (!this.tokens || !this.element.open) return;
    const head = Math.max(0, stage.headOf(stream)), patch = inner ? explorer.state.open : 0;
    const token = inner ? explorer.selectedPixel() ?? 0 : explorer.selectedToken();
    const { mode, reversed } = explorer.state, own = stage.heads(stream) < 2 || stage.headOf(stream) === head;
    const map = mode !== "attention" ? mode : `block ${stage.block + 1}, ${own ? `head ${head + 1}` : headName(stage, stream)}`;
    if (!stage.changed(`arithmetic ${stream}`, stage.loads, patch, token, head, map, reversed)) return;
    const known = patch !== null && token < this.count; // a ViT has no distillation token
    const query = inner ? `pixel token ${token + 1} of patch ${patch + 1}` : tokenName(stage, token);
    const other = map === `block ${depth}, head ${head + 1}` ? "" : ` The map shows ${map}.`;
    const column = reversed ? " The map shows a column, who attends to it; this is a row." : "";
    const listed = this.count > ROWS ? ` Of ${this.count} keys, the ${ROWS} with the largest shares are listed.` : "";
    const row = known && this.compute(patch, token, head);
    write(this.title, patch === null ? "Open a patch." : !known ? "This model has no distillation token."
      : `Block ${depth}, head ${head + 1} of ${heads[stream]}, ${query}. Only the last block's numbers are kept.${other}`
      + `${column}${listed} Softmax is e to the score, divided by the sum over all keys, ${decimal(row.total)}. Point at a `
      + `${inner ? "pixel token" : "patch"}, or choose a head, to see its row.`);
    this.table.replaceChildren(...(row ? this.rows(row, token) : []));
  }

  name(token) {
    return this.stream === "inner" ? `token ${token + 1}` : tokenName(this.stage, token);
  }

  rows({ query, keys, products, scaled, shares, values, output }, token) {
    const size = query.length, shown = size > WHOLE ? FIRST : size, row = (...cells) => make("tr", {}, ...cells.flat());
    const wide = shown < size ? shown + 1 : size, of = shown < size ? ` (${shown} of ${size} numbers)` : "";
    const head = (name, span = 1) => make("th", { scope: span > 1 ? "colgroup" : "col", colspan: span }, name);
    const side = (name) => make("th", { scope: "row" }, name), blank = (span) => make("td", { colspan: span });
    const cells = (numbers, name) => numbers.map((one) => make("td", { class: name }, decimal(one)));
    const vector = (numbers) => [...cells(numbers.slice(0, shown), "vector"),
      ...(of ? [make("td", { class: "vector" }, "…")] : [])];
    const share = (value) => make("td", { class: "share" }, percent(value));
    const keyRow = (key) => row(side(this.name(key)), cells([products[key], scaled[key]]), share(shares[key]),
      vector(keys[key]), vector(values[key]));
    const order = range(this.count), rest = [];
    if (order.length > ROWS) rest.push(...order.sort((a, b) => shares[b] - shares[a]).splice(ROWS));
    return [
      row(head("key"), head("q · k"), head(`÷ √${size}`), head("softmax"), head(`k${of}`, wide), head(`v${of}`, wide)),
      row(side(`q of ${this.name(token)}`), blank(3), vector(query), blank(wide)),
      ...order.map(keyRow),
      ...(rest.length ? [row(side(`${rest.length} other key${rest.length > 1 ? "s" : ""}`), blank(2),
        share(sum(rest.map((key) => shares[key]))), blank(2 * wide))] : []),
      row(side("sum of softmax × v"), blank(3 + wide), vector(output)),
    ];
  }
}
