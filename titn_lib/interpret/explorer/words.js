// What a stage shows, in words: its summary sentence, and a description for screen readers and below an exported figure.

function tokenName({ config }, token, query) {
  if (token === query) return "itself";
  return token === 0 ? "the class token" : token <= config.patches ? `patch ${token}` : "the distillation token";
}

function headName(stage, stream) {
  const head = stage.headOf(stream);
  return head < 0 || stage.heads(stream) < 2 ? `${head === MAX ? "max" : "mean"} of heads` : `head ${head + 1}`;
}

/** The outer map: what it shows, and of which token. */
function mapName(stage) {
  const { state: { mode, reversed } } = stage.explorer, token = tokenName(stage, stage.explorer.selectedToken());
  return mode === "relevance" ? mode : `${mode} ${reversed ? "to" : "of"} ${token}`;
}

/** The largest values of what is selected, in the stream that was used last or in the one given. */
function summaryOf(stage, stream = stage.explorer.latest) {
  const { explorer, block } = stage, { state } = explorer, { outer, inner } = stage.shown;
  const token = explorer.selectedToken(), pixel = stream === "inner" ? explorer.selectedPixel() : null;
  if (state.mode === "relevance") return relevanceSummary(stage, token, pixel);
  const rollout = state.mode === "rollout", through = block ? `Through blocks 1–${block + 1}` : "Through block 1";
  const where = (stream) => rollout ? through : `Block ${block + 1}, ${headName(stage, stream)}`;
  const verb = rollout ? (state.reversed ? "contributes most to" : "comes most from")
    : state.reversed ? "is attended to most by" : "attends most to";
  if (inner && pixel !== null) {
    const one = most(inner), other = one === pixel ? "itself" : `pixel token ${one + 1}`;
    return `${where("inner")}: pixel token ${pixel + 1} of patch ${state.open + 1} ${verb} ${other} `
      + `(${percent(inner[one])}).`;
  }
  if (token >= stage.tokens) return "This model has no distillation token.";
  const order = [...outer.keys()].sort((a, b) => outer[b] - outer[a]);
  const [first, second] = order.map((other) => `${tokenName(stage, other, token)} (${percent(outer[other])})`);
  return `${where("outer")}: ${tokenName(stage, token)} ${verb} ${first}, then ${second}.`;
}

function relevanceSummary(stage, token, pixel) {
  const { state, data } = stage.explorer, { outer, inner } = stage.shown, head = stage.relevanceHead();
  const [label, share] = stage.top[head], patches = stage.perPatch(outer), best = most(patches);
  const [value, name] = inner && pixel !== null
    ? [inner[pixel], `pixel token ${pixel + 1} of patch ${state.open + 1}`]
    : stage.isPatch(token) ? [patches[token - 1], `patch ${token}`] : [patches[best], `patch ${best + 1} alone`];
  return `The ${["class", "distillation"][head]} head predicts ${data.classes[label]} (${percent(share)}). `
    + `${percent(sum(patches))} of the relevance ${state.weighted ? "for this class" : "for any class"} `
    + `comes from the image, ${percent(value)} from ${name}.`;
}

/** All that is seen: model, image, prediction, map and its range, the opened patch. */
function inWords(stage) {
  const { explorer, explorer: { state, data }, shown: { outer, inner }, config } = stage, { mode, open } = state;
  const whose = (stream) => mode === "attention" ? `block ${stage.block + 1}, ${headName(stage, stream)}, ` : "";
  const { title, label, models } = data.images[state.image], [[best, share]] = models[stage.number].output;
  const named = label === null ? title : `${title} (label ${data.classes[label]})`;
  const span = (values) => `${percent(Math.min(...values))} to ${percent(Math.max(...values))}`;
  const sentences = [`${config.name} on ${named}, predicted: ${data.classes[best]} (${percent(share)}).`,
    summaryOf(stage), `Outer map: ${whose("outer")}${mapName(stage)} over ${data.grid.join("×")} patches, `
    + `${span(stage.perPatch(outer))}.`];
  if (mode !== "relevance" && outer.length > config.patches)
    sentences.push(`Class token: ${percent(outer[0])}.`,
      ...(config.distillation ? [`Distillation token: ${percent(outer[config.patches + 1])}.`] : []));
  const pixel = explorer.selectedPixel(), of = pixel === null ? "" : ` ${state.reversed ? "to" : "of"} pixel token ${pixel + 1}`;
  if (inner) sentences.push(`Inner map: ${whose("inner")}${mode}${mode === "relevance" ? "" : of} in patch ${open + 1}, `
    + `${inner.length} pixel tokens, ${span(inner)}, the largest at pixel token ${most(inner) + 1}.`);
  return sentences.join(" ");
}
