// What can be taken along: the state in an address, and the view as an image.

/** What an address can hold: a name, the state's own name, and every possible text with its value. */
function fieldsOf({ data, deepest }) {
  const { models, images } = data, { patches } = models[0], pixels = Math.max(...models.map((model) => model.pixels));
  const count = (total) => range(total).map((i) => [String(i + 1), i]);
  const heads = (stream, axis) =>
    [["mean", MEAN], ["max", MAX], ...count(Math.max(...images[0].models.map((view) => view[stream]?.shape[axis] ?? 0)))];
  const tokens = [["class", 0], ...count(patches).map(([text, patch]) => [text, patch + 1])];
  const both = models.some((model) => model.distillation) ? ["class", "distillation"] : ["class"];
  if (both.length > 1) tokens.push(["distillation", patches + 1]);
  return [
    ["image", "image", count(images.length)],
    ["mode", "mode", MODES.map((mode) => [mode, mode])],
    ["block", "block", count(deepest)],
    ["head", "outer", heads("outer", 1)],
    ["inner", "inner", heads("inner", 2)],
    ["token", "token", tokens],
    ["patch", "open", [["none", null], ...count(patches)]],
    ["pixel", "pixel", count(pixels)],
    ["direction", "reversed", [["to", false], ["by", true]]],
    ["explains", "head", both.map((name, head) => [name, head])],
    ["relevance", "weighted", [["any", 0], ["predicted", 1]]],
    ["opacity", "opacity", range(11).map((tenth) => [String(10 * tenth), tenth])],
  ];
}

/** The hidden patches of "3,8", counted from 1. What isn't a patch is left out. */
function hiddenIn({ data }, text) {
  const [{ hiding }] = data.images[0].models;
  const names = range(hiding ? data.models[0].patches : 0).map((i) => String(i + 1));
  return [...new Set(text?.split(","))].map((name) => names.indexOf(name)).filter((patch) => patch >= 0);
}

/** The state as "#image=2&block=3&patch=7&hide=3,8", without what is as at the start. */
function hashOf(explorer) {
  const { state, start } = explorer, parts = [];
  for (const [name, key, pairs] of fieldsOf(explorer)) {
    const pair = pairs.find(([, value]) => value === state[key]);
    if (pair && state[key] !== start[key]) parts.push(`${name}=${pair[0]}`);
  }
  if (state.hidden.length) parts.push(`hide=${state.hidden.map((patch) => patch + 1)}`);
  return `#${parts.join("&")}`;
}

/** The changes that an address asks for. What it doesn't know or can't be is ignored. */
function changesOf(explorer, hash) {
  const given = new URLSearchParams(hash.slice(1)), changes = {}, hidden = hiddenIn(explorer, given.get("hide"));
  for (const [name, key, pairs] of fieldsOf(explorer)) {
    const pair = pairs.find(([text]) => text === given.get(name));
    if (pair) changes[key] = pair[1];
  }
  if (hidden.length) changes.hidden = hidden;
  return changes;
}

// --- the figure

const FIGURE = { panel: 320, gap: 24, line: 20, scale: 4 }; // on the screen's scale; `scale` pixels for one of it

/** The image, both maps with their legends, and a sentence, for each model: a canvas, black on white. */
function figureOf(explorer) {
  const { data, stages, state } = explorer, { panel, gap, line, scale } = FIGURE;
  const wide = (panel * data.size[1]) / data.size[0], width = 4 * gap + 2 * wide + panel;
  const canvas = make("canvas"), context = canvas.getContext("2d");
  const font = (style) => { context.font = `${style} 14px system-ui, sans-serif`; };
  font("");
  const texts = stages.map((stage) => wrap(context, inWords(stage), width - 2 * gap));
  const heights = texts.map((lines) => 2 * gap + panel + (3 + lines.length) * line);
  [canvas.width, canvas.height] = [width * scale, sum(heights) * scale];
  context.scale(scale, scale);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, sum(heights));
  stages.forEach((stage, number) => {
    const top = sum(heights.slice(0, number)) + gap, { mode } = state, { inner } = stage.shown;
    const draw = (left, wide, title, paint, highest) => {
      font("600");
      [context.fillStyle, context.textAlign, context.textBaseline] = ["#000", "left", "alphabetic"];
      context.fillText(title, left, top + 0.5 * line);
      context.save();
      context.translate(left, top + line);
      context.imageSmoothingEnabled = false;
      paint({ context, width: wide, height: panel });
      context.restore();
      if (highest !== undefined) drawLegend(explorer, context, left, top + line + panel + 8, highest, mode);
    };
    draw(gap, wide, data.images[state.image].title, () => context.drawImage(stage.image, 0, 0, wide, panel));
    draw(2 * gap + wide, wide, "Outer stream: patches", (place) => stage.paintOuter(place), stage.scale.outer);
    if (state.open !== null) draw(3 * gap + 2 * wide, panel, `${inner ? "Inner stream: p" : "P"}atch ${state.open + 1}`,
      (place) => stage.paintInner(place), inner ? stage.scale.inner : undefined);
    font("");
    [context.fillStyle, context.textAlign, context.textBaseline] = ["#000", "left", "alphabetic"];
    texts[number].forEach((text, i) => context.fillText(text, gap, top + panel + (3.3 + i) * line));
  });
  return canvas;
}

/** The color scale, from 0 to the highest value. */
function drawLegend(explorer, context, left, top, highest, mode) {
  const ramp = 96;
  context.font = "13px system-ui, sans-serif";
  [context.fillStyle, context.textAlign, context.textBaseline] = ["#000", "left", "middle"];
  context.fillText("0", left, top + 5);
  for (let x = 0; x < ramp; x++) {
    context.fillStyle = explorer.rgb(3 * Math.round((255 * x) / (ramp - 1)));
    context.fillRect(left + 14 + x, top, 1.5, 10);
  }
  context.fillStyle = "#000";
  context.fillText(`${percent(highest)} of ${mode}`, left + ramp + 24, top + 5);
}

/** A text in lines that fit a width. */
function wrap(context, text, width) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = lines.at(-1) ? `${lines.at(-1)} ${word}` : word;
    if (context.measureText(longer).width > width && lines.at(-1)) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}

/** Save a canvas as a PNG file. */
function saveImage(canvas, name) {
  canvas.toBlob((blob) => {
    const link = make("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  });
}
