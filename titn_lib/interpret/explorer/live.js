// The student in the page: it answers in place of Python. Only in pages with a model (`live_data` in live.py).

const MOST = 50; // images, as in Python

/** The bytes of a gzipped base64 text. */
async function unzip(text) {
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** `pack` in data.py. */
function packRows(values, shape) {
  const width = shape.at(-1), scale = new Float32Array(values.length / width), bytes = new Uint8Array(values.length);
  for (let row = 0; row < scale.length; row++) {
    const part = values.subarray(row * width, (row + 1) * width);
    scale[row] = Math.max(...part);
    for (let key = 0; key < width; key++) bytes[row * width + key] = Math.round((part[key] / (scale[row] || 1)) * 255);
  }
  return { shape, bytes, scale: new Uint8Array(scale.buffer) };
}

/** `pack_numbers` in data.py. */
function packNumbers(values, shape) {
  const scale = Math.max(1e-30, ...values.map(Math.abs));
  return { shape, scale, bytes: new Uint8Array(Int16Array.from(values, (one) => Math.round((one / scale) * 32767)).buffer) };
}

function softmax(logits) {
  const highest = Math.max(...logits), powers = logits.map((one) => Math.exp(one - highest)), total = sum(powers);
  return powers.map((power) => power / total);
}

/** The most probable classes: [class, probability] each. */
function topClasses(shares, count = 5) {
  return [...shares.entries()].sort((a, b) => b[1] - a[1]).slice(0, count);
}

/** Probabilities of the model, the mean of both logits, and then of each head if there are two. */
function outputsOf(heads) {
  if (heads.length === 1) return heads.map(softmax);
  return [heads[0].map((_, i) => sum(heads.map((head) => head[i])) / heads.length), ...heads].map(softmax);
}

/** `Hiding` in data.py: classes, and probabilities without hiding and then without each set of patches. */
function hidingOf(outputs) {
  const likely = outputs[0].flatMap((shares) => topClasses(shares)).map(([label]) => label);
  const predicted = outputs.flatMap((set) => set.map(most));
  const classes = [...new Set([...likely, ...predicted])].sort((a, b) => outputs[0][0][b] - outputs[0][0][a]);
  const shares = outputs.flatMap((set) => set.flatMap((output) => classes.map((label) => output[label])));
  return { classes, shares };
}

/** The backend of a page with a model; null in a browser that can't run it: the page then shows what is stored. */
function liveIn(element, data) {
  return typeof WebAssembly === "undefined" || typeof DecompressionStream === "undefined" ? null : new Live(element, data);
}

class Live {
  constructor(element, data) {
    this.element = element;
    this.data = data;
    this.pixels = data.images.map(({ rgb }) => bytesOf(rgb)); // "height width color"
    this.work = Promise.resolve(); // one question at a time
    this.hint = "";
    this.controls = [new Camera(this).button];
  }

  get explorer() {
    return this.element.explorer;
  }

  send(message, content) {
    const answer = message.hide ? () => this.hide(message.hide) : () => this.add(message.image, content);
    this.queue(answer);
  }

  /** What the work returns, once all before it is done. A problem is said; then there is nothing to return. */
  queue(work) {
    const say = (problem) => this.explorer.say(String(problem.message ?? problem), true);
    return (this.work = this.work.then(work).catch(say));
  }

  /** Unpack and compile, before the first question: it takes a second or two. */
  async start() {
    if (this.sessions) return;
    const { script, binary, graphs } = JSON.parse(document.getElementById("live").textContent);
    const address = URL.createObjectURL(new Blob([await unzip(script)], { type: "text/javascript" }));
    this.ort = await import(address);
    Object.assign(this.ort.env.wasm, { numThreads: 1, wasmBinary: (await unzip(binary)).buffer });
    const sessions = [];
    for (const graph of graphs) sessions.push(await this.ort.InferenceSession.create(await unzip(graph)));
    this.sessions = sessions;
  }

  /** An image without what is hidden, as the model takes it: "channel height width", normalized. */
  input(pixels, number, hidden = []) {
    const { size: [height, width], grid: [rows, columns], split, models } = this.data, { mean, std } = models[number];
    const values = new Float32Array(mean.length * height * width);
    const without = new Set(hidden), side = height / rows / split;
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        const [down, across] = [Math.floor(y / side), Math.floor(x / side)];
        const patch = Math.floor(down / split) * columns + Math.floor(across / split);
        if (without.has((patch * split + (down % split)) * split + (across % split))) continue; // 0, the mean color
        mean.forEach((center, color) => {
          const value = pixels[3 * (y * width + x) + color] / 255;
          values[(color * height + y) * width + x] = (value - center) / std[color];
        });
      }
    return values;
  }

  /** All outputs for one image, by name. */
  async run(number, input) {
    const { size, models } = this.data;
    const images = new this.ort.Tensor("float32", input, [1, models[number].mean.length, ...size]);
    return this.sessions[number].run({ images });
  }

  /** Each head's logits after the last block, or after all: "block head class". */
  logits({ logits: { data, dims: [, blocks, heads, classes] } }) {
    return range(blocks).map((block) => range(heads).map((head) =>
      [...data.subarray((block * heads + head) * classes, (block * heads + head + 1) * classes)]));
  }

  /** Probabilities without hiding, and then without each set of squares. */
  async predict(number, pixels, sets) {
    const outputs = [];
    for (const hidden of [[], ...sets]) {
      outputs.push(outputsOf(this.logits(await this.run(number, this.input(pixels, number, hidden))).at(-1)));
      await new Promise((done) => setTimeout(done)); // the page stays usable
    }
    return outputs;
  }

  async hide({ key, image, pixels }) {
    await this.start();
    const models = [];
    for (const number of this.data.models.keys())
      models.push(hidingOf(await this.predict(number, this.pixels[image], [pixels])));
    this.explorer.receive({ key, models });
  }

  /** What `model_view` in data.py returns, without relevance, which needs gradients; in brief, without hiding, too. */
  async view(number, pixels, brief) {
    const found = await this.run(number, this.input(pixels, number)), logits = this.logits(found);
    const packed = (name, pack) => found[name] ? pack(found[name].data, found[name].dims.slice(1)) : null;
    const [first, ...heads] = outputsOf(logits.at(-1)), { patches } = this.data.models[number];
    const stored = this.data.images[0].models[number].hiding;
    let hiding = null;
    if (stored && !brief) {
      const each = range(patches).map((patch) => squaresOf(this.data, patch));
      const { classes, shares } = hidingOf(await this.predict(number, pixels, each));
      const row = shares.length / (patches + 1), drop = range(patches).map((patch) => shares[0] - shares[row * (patch + 1)]);
      hiding = { classes, shares: packNumbers(shares, [shares.length]), drop: packNumbers(drop, [patches]) };
    }
    return {
      ...Object.fromEntries(["outer", "inner", "rolled_outer", "rolled_inner"].map((name) => [name, packed(name, packRows)])),
      relevance: null, output: topClasses(first), predictions: (heads.length ? heads : [first]).map((one) => topClasses(one)),
      lens: logits.map((block) => block.map((head) => topClasses(softmax(head), 1)[0])),
      inner_tokens: packed("inner_tokens", packNumbers), outer_tokens: packed("outer_tokens", packNumbers), hiding,
    };
  }

  /** Compute an image and show it: as a new one, or in the place of one. Returns whether that is done. */
  async put(title, pixels, place = this.data.images.length, brief = false) {
    const { explorer, data } = this, models = [];
    if (place >= MOST) throw new Error(`The explorer shows at most ${MOST} images: reload the page.`);
    await this.start();
    for (const number of data.models.keys()) models.push(await this.view(number, pixels, brief));
    this.pixels[place] = pixels;
    const image = { title, label: null, rgb: pixels, models, teacher: null };
    this.data = { ...data, images: Object.assign([...data.images], { [place]: image }) };
    explorer.load(this.data);
    return true;
  }

  /** Add a file, turned upright. */
  async add(title, content) {
    const bitmap = await createImageBitmap(new Blob([content])).catch(() => {
      throw new Error(`${title} is not an image that this browser can read: choose a JPEG or PNG file.`);
    });
    return this.put(title, this.fit(bitmap, bitmap.width, bitmap.height));
  }

  /** The pixels of a bitmap or video, resized and cropped to the model's size, transparency on white. */
  fit(source, across, down) {
    const { size: [height, width], models: [{ mean }] } = this.data, scale = Math.min(across / width, down / height);
    const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, height);
    context.imageSmoothingQuality = "high";
    const [left, top] = [(across - width * scale) / 2, (down - height * scale) / 2];
    context.drawImage(source, left, top, width * scale, height * scale, 0, 0, width, height);
    const rgb = context.getImageData(0, 0, width, height).data.filter((_, i) => i % 4 < 3);
    return mean.length === 1 ? new Uint8Array(grayOf(rgb)) : new Uint8Array(rgb);
  }
}
