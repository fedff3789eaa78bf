// The small maps of a stream: every block and head, or in relevance both heads. A click on one selects it.

class SmallMaps {
  constructor(stage, stream) {
    this.stage = stage;
    this.stream = stream;
    this.caption = make("figcaption");
    this.canvas = make("canvas", { role: "img" });
    this.element = make("figure", {}, this.caption, this.canvas);
    this.canvas.addEventListener("click", ({ offsetX, offsetY }) => {
      const { plan, layout: { left, top, tile, high } } = this;
      const [row, column] = [Math.floor((offsetY - top) / (high + 4)), Math.floor((offsetX - left) / (tile + 4))];
      if (row in plan.rows && column in plan.columns) plan.choose(row, column);
    });
  }

  /** Their rows and columns, the values of each, and the effect of a click. Returns the values. */
  compute(relevance) {
    const { stage, stream } = this, there = stream === "outer" || stage.shown.inner;
    this.plan = !there ? null : relevance ? this.planRelevance() : this.planAttention();
    const values = (row) => this.plan.columns.map((_, column) => this.plan.values(row, column));
    return (this.maps = this.plan ? this.plan.rows.flatMap((_, row) => values(row)) : []);
  }

  planRelevance() {
    const { stage, stream } = this, heads = range(stage.top.length);
    const title = "both heads; for any class and the predicted one";
    return {
      title: stream === "outer" ? `Outer stream, ${title}` : "Inner stream, the same inside the patch",
      rows: heads.map((head) => ["class", "dist."][head]), columns: ["any", "pred."],
      chosen: [stage.relevanceHead(), stage.explorer.state.weighted],
      values: (head, weighted) => {
        const cells = stage.relevanceMap(2 * head + weighted);
        return stream === "outer" ? cells : stage.inside(cells);
      },
      choose: (head, weighted) => {
        stage.select(head ? stage.config.patches + 1 : 0);
        stage.explorer.set({ weighted });
      },
    };
  }

  planAttention() {
    const { stage, stream } = this, { explorer } = stage, heads = stage.heads(stream);
    const rolled = explorer.state.mode === "rollout", single = rolled || heads < 2;
    const title = rolled ? "through blocks 1 to …" : `every block${single ? "" : " (across) and head (down)"}`;
    return {
      title: `${stream === "outer" ? "Outer" : "Inner"} stream, ${title}`,
      rows: single ? [""] : range(heads).map((head) => String(head + 1)),
      columns: range(stage.config.depth).map((block) => String(block + 1)),
      chosen: [single ? 0 : stage.headOf(stream), stage.block],
      values: (head, block) => (stream === "outer"
        ? stage.perPatch(stage.outerValues(block, head)) : stage.innerValues(block, head)),
      choose: (head, block) => explorer.set(single ? { block } : { block, [stream]: head }),
    };
  }

  /** Each is a grid of so many rows and columns; colors go up to the highest value. */
  draw(relevance, [rows, columns], highest) {
    const { plan, canvas, stage, stream } = this;
    this.element.classList.toggle("gone", !plan);
    if (!plan) return;
    const { accent, ink, em } = stage.explorer, top = 1.35 * em;
    const left = plan.rows[0] === "" ? 2 : (relevance ? 3 : 1.35) * em; // room for the rows' names
    const width = this.element.clientWidth;
    const limit = { outer: relevance ? 110 : 72, inner: relevance ? 72 : 46 }[stream];
    const tile = Math.max(6, Math.min(limit, Math.floor((width - left) / plan.columns.length) - 4));
    const high = (tile * rows) / columns;
    const tall = `${top + plan.rows.length * (high + 4)}px`;
    if (canvas.style.height !== tall) canvas.style.height = tall;
    const { context, width: full, height } = fit(canvas), count = plan.columns.length;
    this.layout = { left, top, tile, high };
    context.clearRect(0, 0, full, height);
    const scale = relevance ? this.maps.map((values) => Math.max(...values)) : [highest];
    const small = stage.paint(`${stream} tiles`, this.maps, rows, columns, scale, count);
    context.font = `${0.8 * em}px system-ui, sans-serif`;
    [context.fillStyle, context.strokeStyle, context.lineWidth] = [ink, accent, 2];
    [context.textBaseline, context.textAlign] = ["middle", "right"];
    plan.rows.forEach((name, row) => context.fillText(name, left - 0.45 * em, top + row * (high + 4) + high / 2));
    context.textAlign = "center";
    plan.columns.forEach((name, column) => context.fillText(name, left + column * (tile + 4) + tile / 2, top / 2 - 1));
    this.maps.forEach((_, map) => {
      const [row, column] = [Math.floor(map / count), map % count];
      const [x, y] = [left + column * (tile + 4), top + row * (high + 4)];
      context.drawImage(small, column * columns, row * rows, columns, rows, x, y, tile, high);
      const all = plan.chosen[0] < 0; // mean or max: the whole column of heads
      if (column === plan.chosen[1] && row === (all ? plan.rows.length - 1 : plan.chosen[0]))
        context.strokeRect(x - 1, all ? top - 1 : y - 1, tile + 2, all ? y + high - top + 2 : high + 2);
    });
    const title = `${plan.title}, ${relevance ? "each scaled to its own maximum" : `0 to ${percent(highest)}`}`;
    write(this.caption, title);
    canvas.setAttribute("aria-label", title);
  }
}
