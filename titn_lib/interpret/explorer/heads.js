// Every head over many images: how far it looks, how evenly, and the accuracy that is lost without it.

const ORDERS = { // name, and the value that comes first
  block: "as in the model", effect: "effect: what is lost without it, largest first",
  distance: "mean attention distance, farthest first", tokens: "effective number of tokens, largest first",
};

class HeadOverview {
  constructor(stage) {
    this.stage = stage;
    [this.order, this.stream] = ["block", "outer"];
    this.sorting = choice("Order of the heads", ["block", "effect", "distance", "tokens"], (index) =>
      this.show({ order: Object.keys(ORDERS)[index] }));
    this.streams = choice("Stream", ["outer", "inner"], (index) => this.show({ stream: ["outer", "inner"][index] }));
    [this.what, this.chosen] = [make("p"), make("p", { class: "chosen" })];
    this.tiles = make("ol", { class: "heads" });
    this.element = make("details", { class: "overview", ontoggle: () => stage.explorer.schedule() },
      make("summary"), this.what, make("div", { class: "bar" }, this.sorting.element, this.streams.element),
      this.chosen, this.tiles);
    const { heads } = stage.explorer.data;
    this.element.classList.toggle("gone", !heads);
    if (!heads) return;
    write(this.element.firstChild, `every head over ${heads.images} images`);
    this.found = heads.models[stage.number];
    this.streams.element.classList.toggle("gone", !this.found.inner);
    this.maps = Object.fromEntries(Object.entries(this.found).map(([stream, { maps }]) => [stream, new Rows(maps)]));
  }

  /** What the tiles show. */
  explain() {
    const { heads } = this.stage.explorer.data, outer = this.stream === "outer";
    return `On ${heads.images} images of ${heads.data}, of which ${heads.accuracy[this.stage.number].toFixed(1)} % are `
      + "classified correctly. Effect, in points: how accuracy changes if the head's output is 0, ± one standard error. "
      + "Of twenty heads without effect, about one exceeds two standard errors all the same. Distance: how far away the "
      + "attended tokens are, on average. Tokens: the effective number attended to. "
      + `Map: mean attention of ${outer ? "the class token" : "all pixel tokens"}. Select a head to see it on `
      + (outer ? "the image of this page on which its class token attends to the fewest patches." : "this image.");
  }

  show(changes) {
    Object.assign(this, changes);
    this.stage.explorer.schedule();
  }

  /** Block and head, counted from 0, in the chosen order. */
  sorted() {
    const found = this.found[this.stream], all = found.effect.flatMap((row, block) => row.map((_, head) => [block, head]));
    if (this.order === "block") return all;
    const value = ([block, head]) => found[this.order][block][head];
    return all.sort((a, b) => value(b) - value(a));
  }

  draw() {
    if (!this.found || !this.element.open) return;
    const { mode, block } = this.stage.explorer.state, chosen = `${block} ${this.stage.headOf(this.stream)}`;
    if (this.stage.changed("overview", this.order, this.stream)) {
      this.sorting.show(Object.keys(ORDERS).indexOf(this.order));
      this.streams.show(Number(this.stream === "inner"));
      write(this.what, this.explain());
      this.tiles.setAttribute("aria-label", `Heads of the ${this.stream} stream, ${ORDERS[this.order]}`);
      this.tiles.replaceChildren(...this.sorted().map(([block, head]) => this.tile(block, head)));
    }
    const shown = mode === "attention" && this.stage.headOf(this.stream) >= 0, { image } = this.stage.explorer.state;
    for (const button of this.tiles.querySelectorAll("button"))
      button.setAttribute("aria-pressed", shown && button.value === chosen);
    write(this.chosen, !shown ? "No head is selected." : `Shown above: block ${block + 1}, `
      + `${headName(this.stage, this.stream)}, on ${this.stage.explorer.data.images[image].title}.`);
  }

  tile(block, head) {
    const found = this.found[this.stream], count = found.effect[0].length;
    const [points, error] = [found.effect[block][head], found.error[block][head]];
    const effect = `${points > 0 ? "−" : points < 0 ? "+" : ""}${Math.abs(points).toFixed(1)} ± ${error.toFixed(1)}`;
    const far = found.distance[block][head].toFixed(1), tokens = found.tokens[block][head].toFixed(1);
    const name = `block ${block + 1}, head ${head + 1}`, unit = this.stream === "outer" ? "patches" : "pixel tokens";
    const map = this.map(block * count + head), onclick = () => this.choose(block, head);
    return make("li", {}, make("button", { type: "button", value: `${block} ${head}`, onclick,
      "aria-label": `${name}: accuracy ${effect} points without it, distance ${far} ${unit}, ${tokens} tokens` },
      map, make("b", {}, name), make("span", {}, `${effect} points`), make("span", {}, `${far} ${unit} far`),
      make("span", {}, `${tokens} tokens`)));
  }

  map(row) {
    const rows = this.maps[this.stream], values = Float32Array.from(range(rows.width), (key) => rows.at(row, key));
    const { grid } = this.stage.explorer.data, side = Math.sqrt(rows.width);
    const shape = this.stream === "outer" ? grid : [side, side];
    const small = this.stage.paint("head", [values], ...shape, [Math.max(...values)]);
    const canvas = make("canvas", { width: small.width, height: small.height, "aria-hidden": "true" });
    canvas.getContext("2d").drawImage(small, 0, 0);
    return canvas;
  }

  /** Show a head: an outer one on the image on which its class token attends to the fewest patches. */
  choose(block, head) {
    const { explorer } = this.stage, selected = { mode: "attention", reversed: false, block, [this.stream]: head };
    explorer.set(this.stream === "inner" ? selected : { ...selected, token: 0, image: this.narrowest(block, head) });
  }

  narrowest(block, head) {
    const evenness = this.stage.explorer.data.images.map(({ models }) => {
      const rows = new Rows(models[this.stage.number].outer), heads = rows.shape[1];
      const shares = attentionOf(rows, block, heads, Math.min(head, heads - 1), 0, false);
      return -sum(Array.from(shares, (share) => (share > 0 ? share * Math.log(share) : 0)));
    });
    return evenness.indexOf(Math.min(...evenness));
  }
}
