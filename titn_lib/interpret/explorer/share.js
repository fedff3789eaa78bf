// What can be taken along: the state in an address; files.

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

/** What `hiddenText` writes as "3,8,7.2". What isn't there is left out. */
function hiddenIn({ data }, text) {
  const [{ hiding }] = data.images[0].models, names = new Map();
  for (const patch of range(hiding ? data.models[0].patches : 0)) {
    const squares = squaresOf(data, patch);
    names.set(`${patch + 1}`, squares);
    squares.forEach((square, i) => names.set(`${patch + 1}.${i + 1}`, [square]));
  }
  const hidden = new Set(text?.split(",").flatMap((name) => names.get(name) ?? []));
  return [...hidden].sort((a, b) => a - b);
}

/** The state as "#image=2&block=3&patch=7&hide=3,8,7.2", without what is as at the start. */
function hashOf(explorer) {
  const { state, start } = explorer, parts = [];
  for (const [name, key, pairs] of fieldsOf(explorer)) {
    const pair = pairs.find(([, value]) => value === state[key]);
    if (pair && state[key] !== start[key]) parts.push(`${name}=${pair[0]}`);
  }
  if (state.hidden.length) parts.push(`hide=${hiddenText(explorer.data, state.hidden)}`);
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

/** Save a file. */
function save(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
