// A guided tour: each stop sets the view and asks a question, and “Reveal” answers it with this image's numbers.
//
// It is about the first model, in its last block, and the patch that its class token attends to most there. Stops that
// don't fit the model, such as those of the inner stream for a ViT, are left out.

/** What the stops speak of. */
function factsOf(stage) {
  const { config, rows, explorer: { data } } = stage, block = config.depth - 1, { patches } = config;
  const row = (token) => attentionOf(rows.outer, block, stage.heads("outer"), MEAN, token, false);
  const onPatches = (token) => row(token).subarray(1, 1 + patches), patch = most(onPatches(0));
  const inner = rows.inner && attentionOf(rows.inner, block * patches + patch, stage.heads("inner"), 0, 0, false);
  const innerHead = stage.heads("inner") > 1 ? "head 1" : "the mean of heads";
  return { stage, config, data, block, row, onPatches, patch, inner, innerHead, last: patches + 1 };
}

const least = (values) => values.indexOf(Math.min(...values));

const STOPS = [{
  title: "Patches",
  place: ({ stage }) => stage.canvas.outer,
  before: () => ({ open: null, opacity: 2 }),
  question: () => "The grid cuts the image into patches, and each patch is a token of the outer stream. How many tokens "
    + "does this stream have?",
  answer: ({ stage, config, data: { grid } }) => `${grid.join(" × ")} = ${config.patches} patches of ${stage.patch} × `
    + `${stage.patch} image pixels, ${config.distillation ? "a class token and a distillation token" : "and a class token"}: `
    + `${stage.tokens} tokens.`,
}, {
  title: "Pixel tokens",
  fits: ({ inner }) => inner,
  place: ({ stage }) => stage.canvas.inner,
  before: () => ({ open: null }),
  after: ({ patch }) => ({ open: patch }),
  question: () => "Each patch is cut again: its parts are the pixel tokens of the inner stream. How many has one patch, "
    + "and how many has the image?",
  answer: ({ stage, config: { patches, pixels }, patch }) => `Patch ${patch + 1} has ${pixels}, each for `
    + `${stage.patch / stage.within} × ${stage.patch / stage.within} image pixels. The image has ${patches} × ${pixels} = `
    + `${patches * pixels}.`,
}, {
  title: "Inner attention",
  fits: ({ inner }) => inner,
  place: ({ stage }) => stage.canvas.inner,
  after: () => ({ inner: 0, pixel: 0 }),
  question: ({ block, innerHead, inner, patch }) => `In block ${block + 1}, ${innerHead}, pixel token 1 divides its `
    + `attention among the ${inner.length} pixel tokens of patch ${patch + 1}. Equal shares would be `
    + `${percent(1 / inner.length)}. How unequal are they?`,
  answer: ({ inner }) => `The largest is ${percent(Math.max(...inner))}, for pixel token ${most(inner) + 1}; the smallest `
    + `${percent(Math.min(...inner))}, for pixel token ${least(inner) + 1}.`,
}, {
  title: "The arithmetic of one row",
  fits: ({ stage }) => stage.arithmetic[0].tokens,
  place: ({ stage }) => stage.arithmetic[0].element,
  before: () => ({ inner: 0, pixel: 0 }),
  opens: ({ stage }) => stage.arithmetic[0].element,
  question: () => "These shares come from scores, q · k ÷ √d, by a softmax. If a score is larger than another by 1, how "
    + "many times as large is its share?",
  answer({ stage, patch }) {
    const { scaled, shares } = stage.arithmetic[0].compute(patch, 0, 0), [high, low] = [most(scaled), least(scaled)];
    const gap = scaled[high].toFixed(2) - scaled[low].toFixed(2); // of the numbers that are shown
    return `e ≈ 2.7 times. Here the highest score is ${decimal(scaled[high])} (token ${high + 1}), the lowest `
      + `${decimal(scaled[low])} (token ${low + 1}). Their shares, ${percent(shares[high])} and ${percent(shares[low])}, `
      + `differ by a factor of e^${decimal(gap)} ≈ ${Math.exp(gap).toFixed(1)}.`;
  },
}, {
  title: "Outer attention",
  place: ({ stage }) => stage.canvas.outer,
  after: () => ({ token: 0 }),
  question: ({ config }) => "The class token belongs to no patch. In the last block, heads averaged: does it attend most to "
    + `a patch${config.distillation ? ", to itself or to the distillation token" : " or to itself"}?`,
  answer({ stage, config, row, onPatches }) {
    const values = row(0), order = [...values.keys()].sort((a, b) => values[b] - values[a]);
    const [first, second] = order.map((token) => `${tokenName(stage, token, 0)} (${percent(values[token])})`);
    return `Most to ${first}, then to ${second}. All patches together get ${percent(sum(onPatches(0)))}; with equal shares `
      + `it would be ${percent(config.patches / stage.tokens)}.`;
  },
}, {
  title: "The distillation token",
  fits: ({ config }) => config.distillation,
  place: ({ stage }) => stage.canvas.outer,
  before: () => ({ token: 0 }),
  after: ({ last }) => ({ token: last }),
  question: () => "The distillation token is there to learn from a teacher. Does it attend to the same patches as the class "
    + "token? Guess Spearman's rank correlation: 1 is the same order of patches, 0 unrelated.",
  answer({ onPatches, last }) {
    const [own, other] = [onPatches(last), onPatches(0)], best = (values) => `patch ${most(values) + 1} `
      + `(${percent(Math.max(...values))})`;
    return `It is ${decimal(rankCorrelation(own, other))}. Of all patches, the distillation token attends most to `
      + `${best(own)}, the class token to ${best(other)}.`;
  },
}, {
  title: "Block by block",
  place: ({ stage }) => stage.predictions.lens,
  before: () => ({ token: 0 }),
  covers: true,
  question: ({ config }) => `A head can be applied after each of the ${config.depth} blocks (logit lens). From which block `
    + "on does it give its final prediction?",
  answer: ({ stage }) => stage.predictions.decided.textContent,
}, {
  title: "Does it matter?",
  fits: ({ stage }) => stage.hiding.known,
  place: ({ stage }) => stage.hiding.element,
  before: () => ({ token: 0 }),
  after: ({ data, patch }) => ({ token: 0, hidden: squaresOf(data, patch) }),
  opens: ({ stage }) => stage.hiding.element,
  question: ({ stage: { hiding }, data, patch }) => `No patch gets more attention from the class token than patch `
    + `${patch + 1}. Hide it: will the probability of “${data.classes[hiding.known.classes[0]]}” fall? And is there a patch `
    + "that matters more?",
  answer({ stage: { hiding }, data, patch, onPatches }) {
    const without = (one) => hiding.inWords(squaresOf(data, one));
    const worst = most(hiding.drop), rank = decimal(rankCorrelation(onPatches(0), hiding.drop));
    const fall = hiding.drop[worst] <= 0 ? "Hiding no single patch lowers it."
      : worst === patch ? "No other patch lowers it more."
      : `The largest fall is that without patch ${worst + 1}: ${without(worst)}.`;
    return `Without patch ${patch + 1}: ${without(patch)}. ${fall} Over all patches, attention and effect have a `
      + `rank correlation of ${rank}.`;
  },
}];

class Tour {
  constructor(explorer) {
    this.explorer = explorer;
    this.stop = null; // the current one's index
    this.start = make("button", { type: "button", title: "A guided tour, in questions",
      onclick: () => this.begin() }, "tour");
    [this.title, this.question, this.answer] = [make("b"), make("p"), make("p")];
    this.next = make("button", { type: "button", class: "next", onclick: () => this.advance() });
    this.back = make("button", { type: "button", onclick: () => this.go(this.stop - 1) }, "Back");
    const skip = make("button", { type: "button", title: "Escape", onclick: () => this.end() }, "End tour");
    this.element = make("section", { class: "tour gone", "aria-label": "Guided tour" },
      make("div", { "aria-live": "polite" }, this.title, this.question, this.answer),
      make("div", { class: "buttons" }, this.next, this.back, skip));
  }

  begin() {
    const { explorer } = this;
    this.before = { ...explorer.state, hover: null, hoverPixel: null };
    this.opened = [...explorer.element.querySelectorAll("details[open]")];
    this.element.classList.remove("gone");
    this.go(0);
  }

  /** Show what was seen before the tour, on the image that is chosen now. */
  end() {
    const { explorer } = this;
    this.point(null);
    for (const one of this.stops) if (one.opens) one.opens(this.facts).open = this.opened.includes(one.opens(this.facts));
    explorer.set({ ...this.before, image: explorer.state.image });
    this.stop = null;
    this.element.classList.add("gone");
    this.start.focus();
  }

  advance() {
    if (!this.revealed) this.go(this.stop, true);
    else if (this.stop + 1 < this.stops.length) this.go(this.stop + 1);
    else this.end();
  }

  /** Show a stop, before or after its answer is revealed. */
  go(index, revealed = false) {
    const { explorer } = this;
    this.facts = factsOf(explorer.stages[0]);
    this.stops = STOPS.filter(({ fits }) => !fits || fits(this.facts));
    [this.stop, this.revealed, this.image] = [index, revealed, explorer.state.image];
    const { block, patch } = this.facts, stop = this.stops[index], last = index + 1 === this.stops.length;
    explorer.set({ mode: "attention", block, outer: MEAN, inner: MEAN, reversed: false, opacity: 5, token: 1 + patch,
      open: patch, pixel: null, hover: null, hoverPixel: null, hidden: [], ...stop.before?.(this.facts),
      ...(revealed && stop.after?.(this.facts)) });
    for (const one of this.stops) if (one.opens) one.opens(this.facts).open = one === stop && revealed;
    explorer.draw();
    write(this.title, `Stop ${index + 1} of ${this.stops.length}: ${stop.title}`);
    write(this.question, stop.question(this.facts));
    write(this.answer, revealed ? stop.answer(this.facts) : "");
    write(this.next, !revealed ? "Reveal" : last ? "Finish" : "Next");
    this.back.hidden = !index;
    this.next.focus({ preventScroll: true });
    this.point(stop.place(this.facts), stop.covers && !revealed);
    this.position();
    const show = () => [this.place, this.element].forEach((one) => one?.scrollIntoView({ block: "nearest" }));
    requestAnimationFrame(() => requestAnimationFrame(show)); // a frame around the page may grow first
  }

  /** Mark the part of the page that a stop is about. */
  point(place, covered = false) {
    this.place?.classList.remove("pointed", "covered");
    this.place = place;
    place?.classList.add("pointed");
    place?.classList.toggle("covered", covered);
  }

  /** Next to that part: below it, or above where the page ends. Not fixed: a notebook's frame is as high as the page. */
  position() {
    const { element, em } = this.explorer, { style } = this.element, gap = 0.5 * em;
    const [whole, place] = [element, this.place].map((one) => one.getBoundingClientRect());
    const width = Math.min(whole.width - 2 * gap, Math.max(place.width, 24 * em));
    style.width = `${width}px`;
    style.left = `${clamp(place.left - whole.left, gap, whole.width - width - gap)}px`;
    const high = this.element.offsetHeight, below = place.bottom + gap + high < whole.bottom;
    style.top = `${(below ? place.bottom + gap : place.top - gap - high) - whole.top}px`;
  }

  /** After a change of the layout or of the image, the stop is about the new one. */
  follow() {
    if (this.stop === null) return;
    if (this.image !== this.explorer.state.image) this.go(this.stop, this.revealed);
    else if (this.place) this.position();
  }
}
