// The attention explorer: its state, its controls, and one stage for each model, without dependencies.
//
// `explorer_script` in page.py joins the files into one module, for the widget (`render`) and for a page (`explore`).
// A backend, Python or `Live`, is needed only to add an image, and for the effect of hiding more than one patch.

const HOW = { // what each map shows
  attention: "Attention: how much of its update a token takes from each other token, in one block. A head is one of "
    + "several attentions computed in parallel.",
  rollout: "Rollout: where a token's content comes from, if the attention of the blocks up to this one is multiplied.",
  relevance: "Relevance: the share of a head's prediction that comes from each pixel token, through both streams.",
};
const MODES = Object.keys(HOW);

class Explorer {
  /** The backend has `send`, which takes a message, and `hint`, what to do if no answer comes. */
  constructor(element, data, backend) {
    performance.mark("data");
    this.element = element;
    this.data = data;
    this.backend = backend;
    this.palette = bytesOf(data.palette);
    element.style.setProperty("--ramp", `linear-gradient(90deg, ${range(16).map((stop) => this.rgb(51 * stop))})`);
    this.deepest = Math.max(...data.models.map((model) => model.depth));
    this.start = { image: 0, mode: "attention", block: this.deepest - 1, outer: MEAN, inner: MEAN, reversed: false,
      weighted: 0, opacity: 5, token: 0, head: 0, hover: null, open: undefined, pixel: null, hoverPixel: null,
      hidden: [] };
    this.state = { ...this.start }; // with `open` undefined, draw opens the patch that is attended to most
    this.stages = data.models.map((_, number) => new Stage(this, number));
    this.thumbs = make("div", { class: "thumbs", role: "group", "aria-label": "Images" });
    this.mode = choice("Map", MODES, (index) => this.set({ mode: MODES[index] }));
    this.direction = choice("Direction", ["attends to", "is attended to by"], (index) =>
      this.set({ reversed: index === 1 }));
    this.weighting = choice("Relevance", ["for any class", "for the predicted class"], (index) =>
      this.set({ weighted: index }));
    this.blocks = slider("block", "[ and ] on the keyboard", (block) => this.set({ block }));
    this.opacity = slider("opacity", "Opacity of the map over the image", (opacity) => this.set({ opacity }));
    this.link = make("button", { type: "button", class: "gone", onclick: () => this.copyLink() }, "copy link");
    const figure = (kind, content) => make("button", { type: "button", onclick: () => this.saveFigure(kind, content),
      title: `The image, both maps, their legends and a description, as ${kind}`, "aria-label": `save ${kind}` },
    make("span", { class: "verb" }, "save "), kind);
    this.tour = new Tour(this);
    this.about = make("p", { class: "about", "aria-live": "polite" });
    this.how = make("p", { class: "how" });
    this.notice = make("p", { class: "notice", role: "alert" });
    element.classList.add("titn-explorer");
    element.append(make("div", { class: "bar" }, this.thumbs, ...(backend ? [this.acceptImages()] : []),
      make("div", { class: "take" }, this.tour.start, this.link, figure("PNG", pngOf), figure("SVG", svgOf))), this.about,
      make("div", { class: "bar" },
        ...[this.mode, this.direction, this.weighting, this.blocks, this.opacity].map((control) => control.element)),
      this.how, this.notice,
      make("div", { class: `stages of${this.stages.length}` }, ...this.stages.map((stage) => stage.element)),
      this.help(), this.tour.element);
    element.addEventListener("keydown", (event) => this.key(event));
    this.load(data);
    this.watch = new ResizeObserver(() => this.schedule());
    this.watch.observe(element);
    this.ended = new AbortController();
    for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)", "print"])
      window.matchMedia(query).addEventListener("change", () => this.draw(), { signal: this.ended.signal });
  }

  help() {
    const keys = [["arrows", "move"], ["Enter", "open a patch"], ["Escape", "close it"], ["[", "]", "block"],
      [",", ".", "head"], ["t", "direction"], ["m", "map"]];
    const listed = keys.flatMap((one, i) =>
      [i ? ", " : "", ...one.slice(0, -1).flatMap((key) => [make("kbd", {}, key), " "]), one.at(-1)]);
    return make("p", { class: "help" }, "Point at a patch or a token to see what it attends to. Click a patch to open "
      + "it, and a small map to select its block and head. Keys: ", ...listed, ".");
  }

  /** Load the data; an image that was added is shown. */
  load(data) {
    const more = data.images.length > this.data.images.length, [height, width] = data.size;
    this.data = data;
    data.images.forEach(({ title, label, rgb }, index) => {
      const name = title + (label === null ? "" : `, ${data.classes[label]}`), { children } = this.thumbs;
      if (!children[index]) this.thumbs.append(make("button", { type: "button", title: name, "aria-label": name,
        onclick: () => this.set({ image: index }) }, make("canvas", { width, height })));
      children[index].firstChild.getContext("2d").drawImage(imageCanvas(bytesOf(rgb), data.size), 0, 0);
    });
    [this.loaded, this.answer] = [null, null];
    if (more) {
      this.say("");
      this.set({ image: data.images.length - 1 });
    }
    this.draw();
  }

  /** The image, its label and all predictions in one line, which is read out for each new image. */
  aboutImage({ title, label, models, teacher }) {
    const { classes, models: students, teacher: name } = this.data;
    const predicts = (who, [[best, share]]) =>
      `${who} predicts ${classes[best]} (${percent(share)})${verdict(best, label)}`;
    const all = students.map((student, i) => predicts(student.name, models[i].output));
    if (teacher) all.push(predicts(`the teacher ${name}`, teacher));
    const missing = models.some((view) => !view.relevance) ? ["relevance"] : []; // see `Live`
    if (name && !teacher) missing.push("the teacher's prediction");
    const only = missing.length ? ` Missing here: ${missing.join(" and ")}, which only Python computes.` : "";
    return `${title}${label === null ? "" : `, label ${classes[label]}`}: ${all.join(", ")}.${only}`;
  }

  /** A notice, or none. */
  say(text, problem = false) {
    write(this.notice, text);
    this.notice.classList.toggle("error", problem);
  }

  rgb(from) {
    return `rgb(${this.palette.subarray(from, from + 3)})`;
  }
  selectedToken() {
    return this.state.hover ?? this.state.token;
  }
  selectedPixel() {
    return this.state.hoverPixel ?? this.state.pixel;
  }

  set(changes) {
    Object.assign(this.state, changes);
    const touched = (...names) => names.some((name) => changes[name] != null);
    if (touched("token", "hover", "outer")) this.latest = "outer"; // the stream that the summary speaks of
    if (touched("pixel", "hoverPixel", "inner")) this.latest = "inner";
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
    this.em = parseFloat(style.fontSize); // in pixels
    if (this.loaded !== state.image) {
      this.stages.forEach((stage) => stage.load(data.images[state.image]));
      this.offerRelevance(data.images[state.image]);
      write(this.about, this.aboutImage(data.images[state.image]));
      this.loaded = state.image;
    }
    if (state.open === undefined) {
      const values = this.stages[0].perPatch(this.stages[0].outerValues());
      state.open = most(values);
    }
    [...this.thumbs.children].forEach((button, index) =>
      button.setAttribute("aria-pressed", index === state.image));
    const relevance = state.mode === "relevance", { deepest } = this;
    this.mode.show(MODES.indexOf(state.mode));
    const rolled = state.mode === "rollout" ? ["comes from", "contributes to"] : undefined;
    this.direction.show(Number(state.reversed), rolled);
    this.weighting.show(state.weighted);
    const start = state.mode === "rollout" ? "1 to " : "";
    this.blocks.show(state.block, deepest - 1, `${start}${state.block + 1} of ${deepest}`);
    this.opacity.show(state.opacity, 10, `${10 * state.opacity} %`);
    this.blocks.element.classList.toggle("gone", relevance);
    this.direction.element.classList.toggle("gone", relevance);
    this.weighting.element.classList.toggle("gone", !relevance);
    write(this.how, HOW[state.mode]);
    for (const stage of this.stages) stage.compute();
    const scales = Object.keys(this.stages[0].highest); // the same for both models
    const highest = scales.map((name) => [name, Math.max(...this.stages.map((stage) => stage.highest[name]))]);
    for (const stage of this.stages) stage.draw(Object.fromEntries(highest));
    this.ask();
    this.remember();
    this.tour.follow();
    this.drawTime = performance.now() - began; // milliseconds
    if (!this.element.dataset.ready) performance.mark("ready");
    this.element.dataset.ready = true;
  }

  /** Relevance needs gradients: a page that computes has none of an image that was added. */
  offerRelevance({ models }) {
    const button = this.mode.element.children[MODES.indexOf("relevance")], missing = models.some((view) => !view.relevance);
    button.disabled = missing;
    button.title = missing ? "Relevance needs gradients, which are computed in Python only" : "";
    if (missing && this.state.mode === "relevance") this.state.mode = "attention";
  }

  // --- to take along

  /** Keep the state in the address of a window: the page's, or that of the page around a frame. Never a notebook's. */
  rememberIn(place) {
    if (place.location.protocol === "about:") return; // a frame without an address
    const follow = () => {
      const changes = changesOf(this, place.location.hash);
      if (Object.keys(changes).length) this.set({ ...this.start, ...changes });
      if (changes.hidden) for (const { hiding } of this.stages) hiding.element.open = true;
    };
    follow();
    this.draw();
    [this.place, this.hash] = [place, hashOf(this)]; // at first, the address stays as it is
    this.link.classList.remove("gone");
    place.addEventListener("hashchange", follow, { signal: this.ended.signal });
  }

  address() {
    return this.place.location.href.split("#")[0] + hashOf(this);
  }

  /** Write the address, twice a second at most: browsers limit how often it may change. */
  remember() {
    if (!this.place || this.hash === (this.hash = hashOf(this))) return;
    this.writing ??= setTimeout(() => {
      this.writing = null;
      try {
        this.place.history.replaceState(this.place.history.state, "", this.address());
      } catch {
        this.place = null; // a page that may not change its address
        this.link.classList.add("gone");
      }
    }, 500);
  }

  async copyLink() {
    try {
      await navigator.clipboard.writeText(this.address());
      this.say("The link to this view is copied.");
    } catch {
      this.say(`The link to this view: ${this.address()}`);
    }
  }

  async saveFigure(kind, content) {
    const { title } = this.data.images[this.state.image], { mode } = this.state;
    const name = `${title.replace(/\.\w+$/, "").replace(/[^\w-]+/g, "-")}-${mode}`;
    save(await content(this), `${name}.${kind.toLowerCase()}`);
  }

  /** Keys stay here, except with Ctrl or Meta: JupyterLab takes others for commands, and x cuts the cell. */
  key(event) {
    if (event.metaKey || (event.ctrlKey && !event.altKey)) return; // both together are AltGr, which [ may need
    event.stopPropagation();
    if ((!event.altKey || "[]".includes(event.key)) && this.press(event.key, event.target)) event.preventDefault();
  }

  /** Returns whether the key does something where it was pressed. */
  press(key, target) {
    const { state } = this, stage = this.stages.find(({ element }) => element.contains(target)) ?? this.stages[0];
    const stream = target.closest(".inner") ? "inner" : "outer";
    const heads = Math.max(...this.stages.map((one) => one.heads(stream)));
    if (key === "Escape" && this.tour.stop !== null) {
      this.tour.end();
      return true;
    }
    if (stage.hiding.boards.find(({ canvas }) => canvas === target)?.key(key)) return true;
    if (target === stage.canvas.outer && stage.move(key)) return true;
    if (target === stage.canvas.inner && stage.moveInside(key)) return true;
    if (key === "Escape" && state.open !== null) {
      this.open(null);
      const { patches, pixels } = stage.hiding; // beside what disappears
      const beside = stream === "inner" ? stage.canvas.outer : target === pixels.canvas ? patches.canvas : null;
      beside?.focus({ preventScroll: true });
    } else if (key === "[" || key === "]")
      this.set({ block: clamp(state.block + (key === "[" ? -1 : 1), 0, this.deepest - 1) });
    else if (key === "," || key === ".")
      this.set({ [stream]: clamp(state[stream] + (key === "," ? -1 : 1), MEAN, heads - 1) });
    else if (key === "t") this.set({ reversed: !state.reversed });
    else if (key === "m") {
      const offered = MODES.filter((_, i) => !this.mode.element.children[i].disabled);
      this.set({ mode: offered[(offered.indexOf(state.mode) + 1) % offered.length] });
    }
    else return false;
    return true;
  }

  /** Only with a backend: ask for the predictions without what is hidden, one question at a time. */
  ask() {
    const { image, hidden: pixels } = this.state, key = this.question(pixels), possible = this.stages[0].hiding.known;
    if (!this.backend || !possible || hiddenParts(this.data, pixels).known) return;
    if (this.asked || this.answer?.key === key) return;
    this.asked = key;
    try {
      this.backend.send({ hide: { key, image, pixels } });
    } catch {
      this.say("Python doesn't answer: run this cell again, then hide patches.", true);
    }
  }

  /** The answer came; the question may be another by now. */
  receive(answer) {
    [this.answer, this.asked] = [answer, null];
    this.schedule();
  }

  /** The answer for these pixels of the image, for each model, if it is known. */
  answered(pixels) {
    return this.answer?.key === this.question(pixels) ? this.answer.models : null;
  }
  question(pixels) {
    return `${this.state.image}: ${hiddenText(this.data, pixels)}`;
  }

  /** Only with a backend: dropped or chosen files go to it; it resizes them and updates `data`. Returns the controls. */
  acceptImages() {
    const take = async (files) => {
      for (const file of [...files]) {
        this.say(`Reading ${file.name} … ${this.backend.hint}`);
        const content = await file.arrayBuffer();
        try {
          this.backend.send({ image: file.name }, content);
        } catch {
          this.say("Python doesn't answer: run this cell again, then add the image.", true);
        }
      }
    };
    const input = make("input", { type: "file", accept: "image/*", multiple: true });
    input.addEventListener("change", async () => {
      await take(input.files);
      input.value = ""; // so that the same file can be chosen again
    });
    const over = (event) => {
      event.preventDefault();
      event.stopPropagation();
      this.element.classList.toggle("over", event.type === "dragover");
    };
    for (const name of ["dragover", "dragleave", "drop"]) this.element.addEventListener(name, over);
    this.element.addEventListener("drop", (event) => take(event.dataTransfer.files));
    return make("div", { class: "adding" }, make("label", { class: "upload" }, input, "+ your image"),
      ...(this.backend.controls ?? []), make("span", { class: "drop" }, "or drop a file anywhere here"));
  }

  end() {
    this.watch.disconnect();
    this.ended.abort();
    clearTimeout(this.writing);
    cancelAnimationFrame(this.waiting);
  }
}

/** Show the explorer in an element. */
export function explore(element, data, backend) {
  return (element.explorer = new Explorer(element, data, backend));
}

/** The entry point of anywidget. */
function render({ model, el }) {
  const send = (message, ...contents) => model.send(message, undefined, contents);
  const inside = el.appendChild(document.createElement("div"));
  const explorer = explore(inside, model.get("data"), { send, hint: "If no answer comes, run this cell again." });
  const load = () => explorer.load(model.get("data"));
  const receive = ({ hidden, error }) => hidden ? explorer.receive(hidden) : explorer.say(error ?? "", true);
  model.on("change:data", load);
  model.on("msg:custom", receive);
  return () => {
    model.off("change:data", load);
    model.off("msg:custom", receive);
    explorer.end();
  };
}

export default { render };
