// The view as a figure for a paper, PNG or SVG, black on white: the image, both maps with their legends, a description.
//
// The same commands draw both, and the maps on the screen: `SvgContext` is a canvas's context that writes SVG.

const FIGURE = { panel: 320, gap: 24, line: 20, scale: 4 }; // the PNG has `scale` pixels for one of the screen

/** Draw the figure of all models on the context that `begin` returns for a size. */
function drawFigure(explorer, begin) {
  const { data, stages, state } = explorer, { panel, gap, line } = FIGURE;
  const wide = (panel * data.size[1]) / data.size[0], width = 4 * gap + 2 * wide + panel;
  const texts = stages.map((stage) => wrap(inWords(stage), width - 2 * gap));
  const heights = texts.map((lines) => 2 * gap + panel + (3 + lines.length) * line), context = begin(width, sum(heights));
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, sum(heights));
  stages.forEach((stage, number) => {
    const top = sum(heights.slice(0, number)) + gap, { inner } = stage.shown;
    const draw = (left, wide, title, paint, highest) => {
      writeText(context, "600", title, left, top + 0.5 * line);
      context.save();
      context.translate(left, top + line);
      context.imageSmoothingEnabled = false;
      paint({ context, width: wide, height: panel });
      context.restore();
      if (highest !== undefined) drawLegend(stage, context, left, top + line + panel + 8, highest);
    };
    draw(gap, wide, data.images[state.image].title, () => context.drawImage(stage.image, 0, 0, wide, panel));
    draw(2 * gap + wide, wide, "Outer stream: patches", (place) => stage.paintOuter(place), stage.scale.outer);
    if (state.open !== null) draw(3 * gap + 2 * wide, panel, `${inner ? "Inner stream: p" : "P"}atch ${state.open + 1}`,
      (place) => stage.paintInner(place), inner ? stage.scale.inner : undefined);
    texts[number].forEach((words, i) => writeText(context, "400", words, gap, top + panel + (3.3 + i) * line));
  });
}

function writeText(context, weight, words, left, bottom) {
  context.font = `${weight} 14px system-ui, sans-serif`;
  [context.fillStyle, context.textAlign, context.textBaseline] = ["#000", "left", "alphabetic"];
  context.fillText(words, left, bottom);
}

/** The color scale, from 0 to the highest value. */
function drawLegend(stage, context, left, top, highest) {
  const length = 96;
  context.drawImage(stage.paint("ramp", [range(256)], 1, 256, [255]), left + 14, top, length, 10);
  writeText(context, "400", "0", left, top + 10);
  writeText(context, "400", `${percent(highest)} of ${stage.explorer.state.mode}`, left + length + 24, top + 10);
}

/** A text in lines that fit a width. */
function wrap(text, width) {
  const lines = [""], context = make("canvas").getContext("2d");
  context.font = "400 14px system-ui, sans-serif";
  for (const word of text.split(" ")) {
    const longer = lines.at(-1) ? `${lines.at(-1)} ${word}` : word;
    if (context.measureText(longer).width > width && lines.at(-1)) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}

function pngOf(explorer) {
  const canvas = make("canvas"), { scale } = FIGURE;
  drawFigure(explorer, (width, height) => {
    [canvas.width, canvas.height] = [width * scale, height * scale];
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    return context;
  });
  return new Promise((done) => canvas.toBlob(done));
}

function svgOf(explorer) {
  const { data, stages, state } = explorer;
  let context;
  drawFigure(explorer, (width, height) => (context = new SvgContext(width, height)));
  return context.blob(data.images[state.image].title, stages.map(inWords).join(" "));
}

/** What the explorer needs of a canvas's context, as SVG that programs of any age read: text stays text. */
class SvgContext {
  constructor(width, height) {
    this.root = this.element("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
    this.group = this.root;
  }

  element(name, attributes = {}, text = "") {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes))
      element.setAttribute(key, typeof value === "number" ? Number(value.toFixed(2)) : value);
    element.textContent = text.replace(/\p{Cc}/gu, ""); // XML has no control characters
    return element;
  }
  add(...parts) {
    return this.group.appendChild(this.element(...parts));
  }

  /** A color, with its opacity as an attribute of its own. */
  color(kind, style) {
    const [, rgb, opacity] = style.match(/^rgba\((.*), ([\d.]+)\)$/) ?? [];
    return rgb ? { [kind]: `rgb(${rgb})`, [`${kind}-opacity`]: opacity } : { [kind]: style };
  }

  save() {
    this.group = this.add("g");
  }
  restore() {
    this.group = this.group.parentNode;
  }
  translate(x, y) {
    this.group.setAttribute("transform", `translate(${x} ${y})`);
  }

  clearRect() {}
  fillRect(x, y, width, height) {
    this.add("rect", { x, y, width, height, ...this.color("fill", this.fillStyle) });
  }
  strokeRect(x, y, width, height) {
    this.add("rect", { x, y, width, height, fill: "none", ...this.color("stroke", this.strokeStyle),
      "stroke-width": this.lineWidth });
  }

  /** The rim of the text that `fillText` writes next. */
  strokeText() {
    this.rim = { stroke: this.strokeStyle, "stroke-width": this.lineWidth, "stroke-linejoin": "round",
      "paint-order": "stroke" };
  }
  fillText(text, x, y) {
    const [, weight, size, family] = this.font.match(/^(\d+) ([\d.]+)px (.+)$/);
    this.add("text", { x, y, fill: this.fillStyle, "font-family": family, "font-size": size, "font-weight": weight,
      "text-anchor": { left: "start", center: "middle" }[this.textAlign], ...this.rim }, text);
    this.rim = null;
  }

  /** Enlarged, for programs that smooth images all the same. */
  drawImage(image, ...place) {
    const [x, y, width, height] = place.slice(-4);
    const part = place.length > 4 ? place.slice(0, 4) : [0, 0, image.width, image.height];
    const times = Math.ceil(256 / part[2]), size = { width: times * part[2], height: times * part[3] };
    const canvas = make("canvas", size), context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(image, ...part, 0, 0, canvas.width, canvas.height);
    this.add("image", { x, y, width, height, preserveAspectRatio: "none", style: "image-rendering: pixelated" })
      .setAttributeNS("http://www.w3.org/1999/xlink", "xlink:href", canvas.toDataURL());
  }

  blob(title, description) {
    this.root.prepend(this.element("title", {}, title), this.element("desc", {}, description));
    return new Blob([new XMLSerializer().serializeToString(this.root)], { type: "image/svg+xml" });
  }
}
