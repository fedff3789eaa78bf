// Hide patches by hand, and see what becomes of the prediction.
//
// The effect of each single patch was computed with the page. That of several together needs a backend (`explorer.ask`).

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

/** From blue (the probability rises) over white to orange (it falls); `share` from −1 to 1. */
function effectColor(share) {
  const end = share > 0 ? [213, 94, 0] : [0, 114, 178];
  return `rgb(${end.map((part) => Math.round(255 + (part - 255) * Math.abs(share)))})`;
}

class Hiding {
  constructor(stage) {
    const { explorer } = stage;
    this.stage = stage;
    this.cursor = null; // the patch that the keyboard is at
    this.image = make("canvas", { tabindex: 0, role: "application", "aria-label": "Patches to hide. Arrow keys move, "
      + "Enter or the space bar hides a patch or shows it again, Escape shows all." });
    [this.effect, this.above] = [make("canvas", { role: "img" }), make("canvas", { role: "img" })];
    this.title = { effect: make("p"), above: make("p") };
    this.range = [make("span"), make("span")];
    this.table = make("table", { "aria-label": "Probabilities before and after hiding" });
    this.status = make("p", { "aria-live": "polite" });
    this.agreement = make("p");
    const all = make("button", { type: "button", onclick: () => explorer.set({ hidden: [] }) }, "show all");
    this.element = make("details", { class: "hiding", ontoggle: () => explorer.schedule() },
      make("summary", {}, "hide patches: which ones matter?"),
      make("p", {}, "Click patches or drag over them: they take the mean color of the training images."),
      this.status,
      make("div", { class: "maps" },
        make("div", {}, make("p", {}, "Image"), this.image, all),
        make("div", {}, this.title.effect, this.effect,
          make("div", { class: "legend" }, this.range[0], make("i", { class: "effect" }), this.range[1])),
        make("div", {}, this.title.above, this.above),
        make("div", { class: "table" }, this.table)),
      this.agreement);
    this.listen();
  }

  load({ hiding }) {
    this.element.classList.toggle("gone", !hiding); // of a model with many patches
    this.known = null;
    if (!hiding) return;
    this.known = { classes: hiding.classes, shares: numbersOf(hiding.shares) }; // without hiding, then without each patch
    this.drop = numbersOf(hiding.drop); // of the predicted class's probability, by patch
    for (const canvas of [this.image, this.effect, this.above])
      canvas.style.aspectRatio = this.stage.canvas.outer.style.aspectRatio;
  }

  /** The model, then each head if there are two. */
  get outputs() {
    const heads = HEADS.slice(0, this.stage.top.length);
    return heads.length > 1 ? ["mean", ...heads] : ["prediction"];
  }

  /** Probabilities with a set of patches hidden: classes, and for each class and output those before and after. */
  probabilities(hidden) {
    const { explorer, number } = this.stage, several = hidden.length > 1;
    const { classes, shares } = several ? explorer.answered(hidden)?.[number] ?? {} : this.known;
    if (!classes) return null;
    const count = this.outputs.length, at = (row, output, i) => shares[(row * count + output) * classes.length + i];
    const after = several ? 1 : hidden.length ? 1 + hidden[0] : 0;
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
    const size = [this.element.clientWidth, window.devicePixelRatio];
    const parts = [state.image, hidden, this.cursor, state.open, map, values, found?.table, explorer.asked, ...size];
    if (!stage.changed("hiding", ...parts)) return;
    const highest = Math.max(...this.drop.map(Math.abs));
    this.paintImage(fit(this.image));
    this.paintEffect(fit(this.effect), highest);
    const above = fit(this.above), small = stage.paint("above", [values], ...data.grid, [Math.max(...values)]);
    above.context.drawImage(small, 0, 0, above.width, above.height);
    write(this.title.effect, `Effect on “${data.classes[this.known.classes[0]]}”`);
    if (state.open !== null) outline(above.context, ...this.box(state.open, above), explorer.accent, 2);
    write(this.title.above, `The map above: ${map}`);
    const points = Number((100 * highest).toPrecision(2)); // percentage points
    write(this.range[0], `+${points}`);
    write(this.range[1], `−${points} points`);
    const strongest = most(this.drop.map(Math.abs));
    this.effect.setAttribute("aria-label", `Effect of hiding one patch. Without patch ${strongest + 1}, whose effect is the `
      + `largest: ${this.inWords([strongest])}.`);
    this.above.setAttribute("aria-label", summaryOf(stage));
    this.tabulate(found, hidden.length);
    write(this.status, this.statusOf(hidden, found));
    write(this.agreement, `Spearman's rank correlation of effect and ${map}, as shown, on this image: ${decimal(
      rankCorrelation(values, this.drop))} (1: the same order of patches; 0: unrelated; −1: the opposite order).`);
  }

  /** A patch's rectangle. */
  box(patch, { width, height }) {
    const [rows, columns] = this.stage.explorer.data.grid, [row, column] = [Math.floor(patch / columns), patch % columns];
    const edge = (index, count, length) => Math.round((index * length) / count);
    const [x, y] = [edge(column, columns, width), edge(row, rows, height)];
    return [x, y, edge(column + 1, columns, width) - x, edge(row + 1, rows, height) - y];
  }

  paintImage(place) {
    const { stage, cursor } = this, { state, data, accent } = stage.explorer, { context, width, height } = place;
    const [red, green, blue] = [0, 1, 2].map((i) => Math.round(255 * (stage.config.mean[i] ?? stage.config.mean[0])));
    context.drawImage(stage.image, 0, 0, width, height);
    context.fillStyle = `rgb(${red}, ${green}, ${blue})`;
    for (const patch of state.hidden) context.fillRect(...this.box(patch, place));
    stage.grid(context, width, height, ...data.grid);
    if (cursor !== null) outline(context, ...this.box(cursor, place), accent, 2);
  }

  paintEffect(place, highest) {
    const { accent, state: { hidden } } = this.stage.explorer;
    this.drop.forEach((drop, patch) => {
      place.context.fillStyle = effectColor(drop / (highest || 1));
      place.context.fillRect(...this.box(patch, place));
    });
    if (hidden.length === 1) outline(place.context, ...this.box(hidden[0], place), accent, 2);
  }

  tabulate(found, hidden) {
    const { classes } = this.stage.explorer.data, head = (name) => make("th", { scope: "col" }, name);
    if (!found) return this.table.replaceChildren();
    const best = this.outputs.map((_, output) => most(found.table.map((row) => row[output][1])));
    const cell = ([before, after], output, row) => make("td", { class: row === best[output] && "share" },
      hidden ? arrow(before, after) : fine(before));
    this.table.replaceChildren(make("tr", {}, head("percent"), ...this.outputs.map(head)),
      ...found.table.map((outputs, row) => make("tr", {}, make("th", { scope: "row" }, classes[found.classes[row]]),
        ...outputs.map((pair, output) => cell(pair, output, row)))));
  }

  statusOf(hidden, found) {
    const { explorer } = this.stage, { cursor } = this;
    const alone = hidden.length === 1 && hidden[0] === cursor;
    const at = cursor === null || alone ? "" : `Patch ${cursor + 1} is ${hidden.includes(cursor) ? "hidden" : "shown"}. `;
    if (!hidden.length) return `${at}Nothing is hidden.`;
    const without = hidden.length > 1 ? `${hidden.length} patches` : `patch ${hidden[0] + 1}`;
    if (found) return `${at}Without ${without}: ${this.inWords(hidden)}.`;
    return at + (explorer.backend ? `Computing … ${explorer.backend.hint}`
      : "Several hidden patches need a running notebook: this page knows the effect of one at a time.");
  }

  // --- pointer and keys

  set(patch, hide) {
    const { explorer } = this.stage, others = explorer.state.hidden.filter((one) => one !== patch);
    explorer.set({ hidden: hide ? [...others, patch] : others });
  }

  listen() {
    const { explorer } = this.stage;
    let hides = null; // whether the pointer hides or shows, while it is down
    this.image.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      this.cursor = this.stage.under(event, ...explorer.data.grid);
      hides = !explorer.state.hidden.includes(this.cursor);
      this.set(this.cursor, hides);
    });
    this.image.addEventListener("pointermove", (event) => {
      const patch = this.stage.under(event, ...explorer.data.grid);
      if (hides === null || patch === this.cursor) return;
      this.cursor = patch;
      this.set(patch, hides);
    });
    for (const end of ["pointerup", "pointerleave", "pointercancel"])
      this.image.addEventListener(end, () => { hides = null; });
  }

  /** Keys over the image; returns whether it took the key. */
  key(key) {
    const { explorer } = this.stage, [rows, columns] = explorer.data.grid, { hidden } = explorer.state;
    const from = this.cursor ?? 0, to = goal(key, [Math.floor(from / columns), from % columns], rows, columns);
    if (to) this.cursor = this.cursor === null ? 0 : clamp(to[0], 0, rows - 1) * columns + clamp(to[1], 0, columns - 1);
    else if (key === "Enter" || key === " ") this.set(this.cursor = from, !hidden.includes(from));
    else if (key === "Escape" && hidden.length) explorer.set({ hidden: [] });
    else return false;
    explorer.schedule();
    return true;
  }
}
