// The predictions beside a stage: of the model, its teacher and its heads, and of its heads after every block.

const HEADS = ["class head", "distillation head"];

class Predictions {
  constructor(explorer, number) {
    this.explorer = explorer;
    this.number = number;
    this.lists = make("div", { class: "predictions" });
    this.table = make("table", { "aria-label": "Prediction of each head after every block" });
    this.decided = make("p");
    this.lens = make("div", { class: "lens" }, make("h3", {}, "prediction after every block"), this.table, this.decided,
      make("p", {}, "Logit lens (nostalgebraist 2020): each head, with its norm, applied to the tokens after an earlier "
        + "block. An approximation: the heads were trained on the last block's tokens only."));
  }

  load(image) {
    const { data } = this.explorer, view = image.models[this.number];
    const mark = (label, rank) => (rank && label !== image.label ? "" : verdict(label, image.label));
    const both = view.predictions.length > 1;
    const lists = [[both ? "prediction, from the mean of both heads' logits" : "prediction", view.output]];
    if (image.teacher) lists.push([`teacher, ${data.teacher}`, image.teacher]);
    if (both) lists.push(...view.predictions.map((best, head) => [HEADS[head], best]));
    const line = ([label, share], rank) => make("li", { style: `--share: ${100 * share}%` },
      make("span", {}, data.classes[label] + mark(label, rank)), make("b", {}, percent(share)));
    this.lists.replaceChildren(...lists.map(([title, best]) =>
      make("div", {}, make("h3", {}, title), make("ol", {}, ...best.map(line)))));
    this.loadLens(view.lens);
  }

  /** A row for each block: each head's most probable class, in bold if it is that of the last block. */
  loadLens(lens) {
    const { classes } = this.explorer.data;
    const last = lens.at(-1).map(([label]) => label);
    const cell = () => make("td", {}, make("span"), " ", make("b"));
    if (!this.rows) { // they stay, so that no click is lost while a camera's images follow each other
      this.rows = lens.map((_, block) => make("tr", { onclick: () => this.explorer.set({ block }) },
        make("th", { scope: "row" }, make("button", { type: "button", "aria-label": `block ${block + 1}` }, block + 1)),
        ...last.map(cell)));
      this.table.append(make("tr", {}, make("th", { scope: "col" }, "block"),
        ...last.map((_, head) => make("th", { scope: "col" }, HEADS[head]))), ...this.rows);
    }
    this.rows.forEach((row, block) => row.querySelectorAll("td").forEach((td, head) => {
      const [label, share] = lens[block][head];
      td.classList.toggle("final", label === last[head]);
      td.style.setProperty("--share", `${100 * share}%`);
      write(td.firstChild, classes[label]);
      write(td.lastChild, percent(share));
    }));
    const from = (head) => 2 + lens.findLastIndex((best) => best[head][0] !== last[head]);
    const sentences = last.map((label, head) =>
      `The ${HEADS[head]} predicts ${classes[label]} from block ${from(head)} on.`);
    if (last.length > 1 && last[0] === last[1]) // the class with both largest logits has the largest mean
      sentences.push(`So does the model, their mean, from block ${Math.max(from(0), from(1))} on at the latest.`);
    write(this.decided, sentences.join(" "));
  }

  /** Mark a block; none in relevance, which goes through all of them. */
  mark(block) {
    this.rows.forEach((row, i) => row.querySelector("button").setAttribute("aria-pressed", i === block));
  }
}
