// What can be hidden by hand: the patches of the image, and the pixel tokens of the opened patch. Both are one thing.
//
// What is hidden is a list of squares, the pixel tokens of all patches, numbered patch by patch. A patch is hidden if all
// of its squares are. (Of two students, a square is the largest that fits into the pixel tokens of both.)

const squaresOf = ({ split }, patch) => range(split ** 2).map((i) => patch * split ** 2 + i);

/** The patches that are hidden altogether, and single squares of others; and whether a page knows their effect. */
function hiddenParts(data, hidden) {
  const count = data.split ** 2, all = new Set(hidden), patchOf = (square) => Math.floor(square / count);
  const touched = [...new Set(hidden.map(patchOf))];
  const patches = touched.filter((patch) => squaresOf(data, patch).every((square) => all.has(square)));
  const pixels = hidden.filter((square) => !patches.includes(patchOf(square)));
  return { patches, pixels, known: patches.length < 2 && !pixels.length };
}

/** Hidden parts by name: "3,8,7.2" are patches 3 and 8, and pixel token 2 of patch 7. */
function hiddenText(data, hidden) {
  const { patches, pixels } = hiddenParts(data, hidden), count = data.split ** 2;
  return [...patches.map((patch) => patch + 1),
    ...pixels.map((square) => `${Math.floor(square / count) + 1}.${(square % count) + 1}`)].join();
}

/** The same in words: up to four patches by number, more by their count. */
function hiddenWords(data, hidden) {
  const { patches, pixels } = hiddenParts(data, hidden), count = data.split ** 2, numbers = patches.map((patch) => patch + 1);
  const within = [...new Set(pixels.map((square) => Math.floor(square / count) + 1))], few = numbers.length < 5;
  const words = !numbers.length ? [] : numbers.length < 2 ? [`patch ${numbers}`]
    : [few ? `patches ${numbers.slice(0, -1).join(", ")} and ${numbers.at(-1)}` : `${numbers.length} patches`];
  const tokens = pixels.length > 1 ? `${pixels.length} pixel tokens` : `pixel token ${pixels[0] % count + 1}`;
  if (pixels.length) words.push(tokens + (within.length > 1 ? "" : ` of patch ${within[0]}`));
  return words.join(few && numbers.length > 1 ? ", and " : " and ");
}

/** A part of the image, as a grid of cells that a click, a drag or a key hides or shows. */
class Board {
  constructor(hiding, what) {
    this.hiding = hiding;
    this.cursor = null; // the cell that the keyboard is at
    this.canvas = make("canvas", { tabindex: 0, role: "application", "aria-label": `${what} to hide. Arrow keys move, `
      + "Enter or the space bar hides one or shows it again, Escape shows all." });
    this.listen();
  }

  /** Draw a part of the image, given by its rectangle. */
  draw(image, part, grid, name, squares) {
    Object.assign(this, { grid, name, squares }); // rows and columns; a cell's name; and its squares
    const place = fit(this.canvas), { context, width, height } = place, { stage } = this.hiding;
    context.drawImage(image, ...part, 0, 0, width, height);
    stage.grid(context, width, height, ...grid);
    if (this.cursor !== null) outline(context, ...boxOf(this.cursor, grid, place), stage.explorer.accent, 2);
    return place;
  }

  get explorer() {
    return this.hiding.stage.explorer;
  }
  isHidden(cell) {
    return this.squares(cell).every((square) => this.explorer.state.hidden.includes(square));
  }

  /** Hide a cell, or show it. */
  set(cell, hide) {
    const squares = this.squares(cell), others = this.explorer.state.hidden.filter((one) => !squares.includes(one));
    this.cursor = cell;
    this.explorer.set({ hidden: hide ? [...others, ...squares].sort((a, b) => a - b) : others });
  }

  /** The cell that the keyboard is at, in words. */
  inWords() {
    const { hidden } = this.explorer.state, squares = this.cursor === null ? [] : this.squares(this.cursor);
    if (!squares.length || (hidden.length === squares.length && this.isHidden(this.cursor))) return ""; // nothing new
    const some = squares.some((square) => hidden.includes(square));
    return `${this.name(this.cursor)} is ${this.isHidden(this.cursor) ? "hidden" : some ? "hidden in part" : "shown"}. `;
  }

  listen() {
    let hides = null, before; // whether the pointer hides or shows, while it is down
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      const cell = this.hiding.stage.under(event, ...this.grid);
      [hides, before, this.hiding.at] = [!this.isHidden(cell), this.explorer.state.hidden, null];
      this.set(cell, hides);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (hides === null) return;
      const cell = this.hiding.stage.under(event, ...this.grid);
      if (cell !== this.cursor) this.set(cell, hides);
    });
    for (const end of ["pointerup", "pointerleave", "pointercancel"])
      this.canvas.addEventListener(end, () => {
        if (end === "pointercancel" && hides !== null) this.explorer.set({ hidden: before }); // a finger that scrolls
        hides = null;
      });
  }

  /** Returns whether it took the key. */
  key(key) {
    const [rows, columns] = this.grid, { hidden } = this.explorer.state, from = this.cursor ?? 0;
    const to = goal(key, [Math.floor(from / columns), from % columns], rows, columns);
    if (to) this.cursor = this.cursor === null ? 0 : clamp(to[0], 0, rows - 1) * columns + clamp(to[1], 0, columns - 1);
    else if (key === "Enter" || key === " ") this.set(from, !this.isHidden(from));
    else if (key === "Escape" && hidden.length) this.explorer.set({ hidden: [] });
    else return false;
    this.hiding.at = this;
    this.explorer.schedule();
    return true;
  }
}
