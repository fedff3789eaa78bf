// Hide patches and pixel tokens by hand, and see what becomes of the prediction.
//
// The effect of each single patch was computed with the page. Any other needs a backend (`explorer.ask`).

/** Spearman's rank correlation: 1 for the same order, 0 for unrelated values. Equal values share their rank. */
function rankCorrelation(first, second) {
  const ranks = (values) => Array.from(values, (one) =>
    sum(Array.from(values, (other) => Math.sign(one - other)))); // centered at 0
  const [a, b] = [ranks(first), ranks(second)], dot = (x, y) => sum(x.map((one, i) => one * y[i]));
  return dot(a, b) / Math.max(1e-30, Math.sqrt(dot(a, a) * dot(b, b)));
}

/** Percent, with one digit more than `percent` has: effects are small. */
const fine = (share) => share < 0.0005 ? "<\u00a00.1" : (100 * share).toFixed(1);
const arrow = (before, after, unit = "") => `${fine(before)}${unit} →\u00a0${fine(after)}${unit}`;

/** A change of a probability in percentage points. */
const inPoints = (change) => Math.abs(change) < 0.0005 ? "less than 0.1 points"
  : `${change < 0 ? "−" : "+"}${fine(Math.abs(change))} points`;

/** From blue (the probability rises) over white to orange (it falls); `share` from −1 to 1. */
function effectColor(share) {
  const end = share > 0 ? [213, 94, 0] : [0, 114, 178];
  return `rgb(${end.map((part) => Math.round(255 + (part - 255) * Math.abs(share)))})`;
}

class Hiding {
  constructor(stage) {
    const { explorer } = stage, { split } = explorer.data, both = explorer.backend && split > 1;
    [this.stage, this.both] = [stage, both]; // whether pixel tokens can be hidden, too
    this.patches = new Board(this, "Patches");
    this.pixels = new Board(this, "Pixel tokens");
    this.boards = [this.patches, this.pixels];
    this.at = null; // the one that the keyboard is in
    [this.effect, this.above] = [make("canvas", { role: "img" }), make("canvas", { role: "img" })];
    this.title = { pixels: make("p"), effect: make("p"), above: make("p") };
    this.range = [make("span"), make("span")];
    this.table = make("table", { "aria-label": "Probabilities before and after hiding" });
    this.status = make("p", { "aria-live": "polite" });
    this.agreement = make("p");
    this.pointed = null; // the patch of the effect map that the pointer is on
    const point = (patch) => [this.pointed = patch, explorer.schedule()];
    this.effect.addEventListener("pointermove", (event) => point(stage.under(event, ...explorer.data.grid)));
    this.effect.addEventListener("pointerleave", () => point(null));
    const all = make("button", { type: "button", onclick: () => explorer.set({ hidden: [] }) }, "show all");
    this.element = make("details", { class: "hiding", ontoggle: () => explorer.schedule() },
      make("summary", {}, `hide patches${both ? " and pixel tokens" : ""}: which ones matter?`),
      make("p", {}, "Click patches or drag over them: they take the mean color of the training images. ",
        both ? "Next to the image are the pixel tokens of the patch that is opened above."
          : explorer.backend ? "" : this.limit()),
      this.status,
      make("div", { class: "maps" },
        make("div", {}, make("p", {}, "Image"), this.patches.canvas, all),
        ...(both ? [make("div", { class: "pixels" }, this.title.pixels, this.pixels.canvas)] : []),
        make("div", {}, this.title.effect, this.effect,
          make("div", { class: "legend" }, this.range[0], make("i", { class: "effect" }), this.range[1])),
        make("div", {}, this.title.above, this.above),
        make("div", { class: "table" }, this.table)),
      this.agreement);
  }

  /** What a page without a model can't do. */
  limit() {
    return "This page knows the effect of one whole patch. For several patches"
      + `${this.stage.explorer.data.split > 1 ? ", or pixel tokens" : ""}, the model must run: in a notebook, or in a page `
      + "that titn explore --live wrote.";
  }

  load({ hiding }) {
    this.element.classList.toggle("gone", !hiding); // of a model with many patches
    this.known = null;
    if (!hiding) return;
    this.known = { classes: hiding.classes, shares: numbersOf(hiding.shares) }; // without hiding, then without each patch
    this.drop = numbersOf(hiding.drop); // of the predicted class's probability, by patch
    for (const canvas of [this.patches.canvas, this.effect, this.above])
      canvas.style.aspectRatio = this.stage.canvas.outer.style.aspectRatio;
  }

  /** The model, then each head if there are two. */
  get outputs() {
    const heads = HEADS.slice(0, this.stage.top.length);
    return heads.length > 1 ? ["mean", ...heads] : ["prediction"];
  }

  /** Probabilities with squares hidden: classes, and for each class and output those before and after. */
  probabilities(hidden) {
    const { explorer, number } = this.stage, { patches, known } = hiddenParts(explorer.data, hidden);
    const { classes, shares } = known ? this.known : explorer.answered(hidden)?.[number] ?? {};
    if (!classes) return null;
    const count = this.outputs.length, at = (row, output, i) => shares[(row * count + output) * classes.length + i];
    const after = !known ? 1 : patches.length ? 1 + patches[0] : 0;
    const pairs = (i) => range(count).map((output) => [at(0, output, i), at(after, output, i)]);
    return { classes, table: classes.map((_, i) => pairs(i)) };
  }

  /** The predicted class before and after, in words. */
  inWords(hidden) {
    const { explorer } = this.stage, { classes, table } = this.probabilities(hidden);
    const name = (i) => explorer.data.classes[classes[i]], best = most(table.map((outputs) => outputs[0][1]));
    return `“${name(0)}” ${arrow(...table[0][0], "\u00a0%")}${best ? `, now “${name(best)}”` : ""}`;
  }

  // --- drawing

  draw() {
    if (!this.known || !this.element.open) return;
    const { stage } = this, { explorer } = stage, { state, data } = explorer, { hidden } = state;
    const values = stage.perPatch(stage.shown.outer), found = this.probabilities(hidden), map = mapName(stage);
    const size = [this.element.clientWidth, window.devicePixelRatio], cursors = this.boards.map(({ cursor }) => cursor);
    const at = this.pointed, parts = [stage.loads, hidden, ...cursors, at, state.open, map, values, found?.table,
      explorer.asked, ...size];
    if (!stage.changed("hiding", ...parts)) return;
    const highest = Math.max(...this.drop.map(Math.abs));
    this.drawBoards();
    this.paintEffect(fit(this.effect), highest);
    const above = fit(this.above), small = stage.paint("above", [values], ...data.grid, [Math.max(...values)]);
    above.context.drawImage(small, 0, 0, above.width, above.height);
    const name = `“${data.classes[this.known.classes[0]]}”`;
    write(this.title.effect, at === null ? `Effect on ${name}` : `${name} without patch ${at + 1}: ${inPoints(-this.drop[at])}`);
    if (state.open !== null) outline(above.context, ...boxOf(state.open, data.grid, above), explorer.accent, 2);
    write(this.title.above, `The map above: ${map}`);
    const points = Number((100 * highest).toPrecision(2)); // percentage points
    write(this.range[0], `+${points}`);
    write(this.range[1], `−${points} points`);
    const strongest = most(this.drop.map(Math.abs));
    this.effect.setAttribute("aria-label", `Effect of hiding one patch. Without patch ${strongest + 1}, whose effect is the `
      + `largest: ${this.inWords(squaresOf(data, strongest))}.`);
    this.above.setAttribute("aria-label", summaryOf(stage, "outer"));
    const fall = most(this.drop), largest = this.drop[fall] > 0
      ? `The largest fall is without patch ${fall + 1}: ${this.inWords(squaresOf(data, fall))}. ` : "No single patch lowers it. ";
    this.tabulate(found, hidden.length);
    write(this.status, this.statusOf(hidden, found));
    write(this.agreement, `${largest}Spearman's rank correlation of effect and ${map}, as shown, on this image: ${decimal(
      rankCorrelation(values, this.drop))} (1: the same order of patches; 0: unrelated; −1: the opposite order).`);
  }

  /** The image without what is hidden, in its own pixels. */
  masked() {
    const { stage } = this, { explorer: { state, data: { grid, split, size } }, config: { mean } } = stage;
    const [red, green, blue] = [0, 1, 2].map((i) => Math.round(255 * (mean[i] ?? mean[0]))), side = stage.patch / split;
    const canvas = make("canvas", { width: size[1], height: size[0] }), context = canvas.getContext("2d");
    context.drawImage(stage.image, 0, 0);
    context.fillStyle = `rgb(${red}, ${green}, ${blue})`;
    for (const square of state.hidden) {
      const [x, y] = stage.cornerOf(Math.floor(square / split ** 2)), i = square % split ** 2;
      context.fillRect(x + (i % split) * side, y + Math.floor(i / split) * side, side, side);
    }
    return canvas;
  }

  drawBoards() {
    const { stage, patches, pixels } = this, { state: { open }, data } = stage.explorer, image = this.masked();
    const place = patches.draw(image, [0, 0, image.width, image.height], data.grid, (patch) => `Patch ${patch + 1}`,
      (patch) => squaresOf(data, patch));
    write(this.title.pixels, open === null ? "Pixel tokens: open a patch above" : `Patch ${open + 1}: pixel tokens`);
    if (pixels.patch !== open) [pixels.patch, pixels.cursor] = [open, null];
    pixels.canvas.classList.toggle("gone", open === null);
    if (!pixels.canvas.clientWidth) return; // a page without a model has none
    outline(place.context, ...boxOf(open, data.grid, place), "#fff", 1);
    pixels.draw(image, [...stage.cornerOf(open), stage.patch, stage.patch], [data.split, data.split],
      (pixel) => `Pixel token ${pixel + 1} of patch ${open + 1}`, (pixel) => [squaresOf(data, open)[pixel]]);
  }

  paintEffect(place, highest) {
    const { accent, data, state: { hidden } } = this.stage.explorer, { patches, known } = hiddenParts(data, hidden);
    this.drop.forEach((drop, patch) => {
      place.context.fillStyle = effectColor(drop / (highest || 1));
      place.context.fillRect(...boxOf(patch, data.grid, place));
    });
    if (known && patches.length) outline(place.context, ...boxOf(patches[0], data.grid, place), accent, 2);
  }

  tabulate(found, hidden) {
    const { backend, data: { classes } } = this.stage.explorer, head = (name) => make("th", { scope: "col" }, name);
    this.table.className = found ? "" : backend ? "old" : "unknown"; // in its place, so that nothing moves
    if (!found) return;
    const best = this.outputs.map((_, output) => most(found.table.map((row) => row[output][1])));
    const cell = ([before, after], output, row) => make("td", { class: row === best[output] && "share" },
      hidden ? arrow(before, after) : fine(before));
    this.table.replaceChildren(make("tr", {}, head("percent"), ...this.outputs.map(head)),
      ...found.table.map((outputs, row) => make("tr", {}, make("th", { scope: "row" }, classes[found.classes[row]]),
        ...outputs.map((pair, output) => cell(pair, output, row)))));
  }

  statusOf(hidden, found) {
    const { explorer } = this.stage, at = this.at?.inWords() ?? "";
    if (!hidden.length) return `${at}Nothing is hidden.`;
    if (found) return `${at}Without ${hiddenWords(explorer.data, hidden)}: ${this.inWords(hidden)}.`;
    return at + (explorer.backend ? `Computing … ${explorer.backend.hint}`
      : `Without ${hiddenWords(explorer.data, hidden)}: this page doesn't know.`);
  }
}
