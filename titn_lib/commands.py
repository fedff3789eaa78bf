"""What each command of the command line does. Each imports what it needs when it is called.

The functions print their results and take their arguments from `titn_lib.__main__`, which has the options.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titn_lib.errors import TITNError

if TYPE_CHECKING:
    from titn_lib.experiments.statistics import ExperimentSummary


def distill(
    out: Path | None, device: str, max_minutes: float | None, quiet: bool, skip_damaged: bool, **options: object
) -> None:
    """Train a teacher, a student alone and a distilled student, and compare them."""
    from titn_lib.io import write_atomically
    from titn_lib.plots import plot_curves, save_figure
    from titn_lib.training.distributed import is_main_process
    from titn_lib.training.recipes import make_run
    from titn_lib.training.records import table, to_json
    from titn_lib.training.run import train_comparison

    run = make_run(**{name: value for name, value in options.items() if value is not None})  # type: ignore[arg-type]
    out = out or Path("runs") / f"{Path(run.data).name}-{run.model}-{run.loss}-{options['preset']}-seed{run.seed}"
    where: dict[str, Any] = {"device": device, "max_minutes": max_minutes, "progress": not quiet}
    records = train_comparison(run, out, **where, skip_damaged=skip_damaged)
    if is_main_process():
        write_atomically(out / "records.json", to_json(records))
        save_figure(plot_curves(records), out / "curves.png")
        print(f"{table(records)}\n\nrecords: {out / 'records.json'}\ncurves: {out / 'curves.png'}")
        for name in records:
            print(f"weights: {out / name / 'model.safetensors'}")


def train_teacher(
    data: str, model: str | None, preset: str, seed: int, out: Path | None, device: str, max_minutes: float | None,
    quiet: bool, skip_damaged: bool, image_size: tuple[int, int] | None, init_from: str | None, **changes: object,
) -> None:  # fmt: skip
    """Train a teacher."""
    from titn_lib.training.distributed import is_main_process
    from titn_lib.training.recipes import teacher_run
    from titn_lib.training.records import table
    from titn_lib.training.run import train

    given = {name: value for name, value in changes.items() if value is not None}
    run = teacher_run(data, model, preset, seed, image_size, init_from, **given)
    out = out or Path("runs") / f"{Path(run.data).name}-{re.sub('[:/]', '_', run.model)}-{preset}-seed{seed}"
    where: dict[str, Any] = {"device": device, "max_minutes": max_minutes, "progress": not quiet}
    record = train(run, out, **where, skip_damaged=skip_damaged)
    if is_main_process():
        print(f"{table({'teacher': record})}\n\nweights: {out / 'model.safetensors'}")


def evaluate(weights: Path, data: str | None, skip_damaged: bool, confusion: Path | None, device: str) -> None:
    """Evaluate trained weights on the validation and test splits, or on all of a folder of other images."""
    from titn_lib.io import require_no_input
    from titn_lib.models.inference import choose_device
    from titn_lib.models.weights import load_model, weights_file
    from titn_lib.training.evaluation import evaluate_classes, images_to_measure, recall_by_class

    if confusion:
        require_no_input(confusion, [weights_file(weights), weights_file(weights).with_name("record.json")])
    model = load_model(weights).to(choose_device(device))
    parts, preprocessing = images_to_measure(model, weights, data, skip_damaged, confusion)
    for name, part in parts.items():
        result, matrix = evaluate_classes(model, part, preprocessing, exact=True)
        print(
            f"{name:10}  top-1 {result['top1']:6.2f} %  top-5 {result['top5']:6.2f} %  balanced "
            f"{result['balanced_accuracy']:6.2f} %  loss {result['loss']:.4f}  ({result['num_images']:,} images)"
        )
    last = f"{list(parts)[-1]}, {int(matrix.sum()):,} images"
    print(f"\n{last}:\n\n{recall_by_class(matrix, preprocessing.classes)}")
    if confusion:
        from titn_lib.plots import plot_confusion, save_figure

        save_figure(plot_confusion(matrix, preprocessing.classes, last), confusion)
        print(f"\nconfusion matrix: {confusion}")


def predict(paths: list[Path], weights: Path, device: str) -> None:
    """Print the five most likely classes of images of any size."""
    from titn_lib.data.images import load_images
    from titn_lib.models.inference import choose_device
    from titn_lib.models.inference import predict as logits_of
    from titn_lib.models.weights import load_model

    model = load_model(weights)
    preprocessing = model.preprocessing
    if preprocessing is None:
        raise TITNError(f"{weights} doesn't name its classes: save it with save_model(…, preprocessing)")
    images = load_images(paths, model.config.in_channels, model.config.image_size)
    probabilities = logits_of(model.to(choose_device(device)), images, preprocessing).softmax(dim=-1)
    for path, row in zip(paths, probabilities, strict=True):
        best = row.topk(min(5, len(row)))
        print(path)
        for probability, label in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            print(f"  {100 * probability:5.1f} %  {preprocessing.classes[label]}")


def explore(
    paths: list[Path], weights: Path, compare: Path | None, teacher: Path | None, labels: list[str] | None,
    heads: str | None, live: Path | None, out: Path,
) -> None:  # fmt: skip
    """Write an interactive page of a student's attention maps, one HTML file for any browser."""
    from titn_lib.data.images import load_images
    from titn_lib.interpret.attribution import require_attention
    from titn_lib.interpret.explorer import write_page
    from titn_lib.io import require_no_input
    from titn_lib.models.weights import load_model, weights_file

    model = require_attention(load_model(weights))
    other, teacher_model = (load_model(name) if name else None for name in (compare, teacher))
    require_no_input(out, [*paths, *(weights_file(name) for name in (weights, compare, teacher) if name)])
    images = load_images(paths, model.config.in_channels, model.config.image_size)
    names = [path.parent.name if path.name == "model.safetensors" else path.name for path in (weights, compare) if path]
    titles = [path.name for path in paths]
    shown = {"labels": labels, "compare": other, "teacher": teacher_model, "names": names, "titles": titles}
    write_page(out, model, images, live=live, heads=heads, **shown)
    print(f"open it in a browser: {out}")


def download(names: list[str]) -> None:
    """Download data sets and print the sizes of their splits. Without a name, list them."""
    from titn_lib.data.datasets import DATASETS, data_dir, load_dataset

    if not names:
        print(f"data sets are kept in {data_dir()} (set TITN_DATA to choose another folder)\n")
        for name, info in DATASETS.items():
            print(f"{name:14} {info.description}")
        print("\nor the path of a folder that has a subfolder of images for each class")
    for name in names:
        splits = load_dataset(name)
        sizes = ", ".join(f"{part} {len(getattr(splits, part)):,}" for part in ("train", "validation", "test"))
        height, width = splits.image_size
        print(f"{name}: {sizes}; {len(splits.classes)} classes; {splits.in_channels}×{height}×{width}")


def experiments(
    folder: Path, work_dir: Path, results: Path, run: list[str] | None, max_minutes: float | None, preset: str | None,
    rerun: list[str], device: str,
) -> None:  # fmt: skip
    """List the runs in experiments/: done, under way or pending. With --run, run the pending ones."""
    import torch

    from titn_lib.experiments.runner import list_experiments, run_experiments
    from titn_lib.experiments.settings import load_experiments, select_experiments
    from titn_lib.training.distributed import is_main_process

    found = load_experiments(folder)
    repeated = select_experiments(found, rerun)
    chosen = repeated | select_experiments(found, run or [])
    listed = {name: one for name, one in found.items() if preset in (None, one.preset)}
    if run == []:
        here = "gpu" if torch.cuda.is_available() and device != "cpu" else "laptop"
        chosen |= {name: one for name, one in listed.items() if one.preset == (preset or here)}
    if run is not None or rerun:
        chosen = {name: one for name, one in chosen.items() if name in listed}
        again = [one for name, one in repeated.items() if name in chosen]
        run_experiments(chosen, work_dir, results, max_minutes, device, again)
    elif max_minutes is not None:
        raise TITNError("--max-minutes limits a run: add --run, for all pending runs, or --run NAME")
    if is_main_process():
        print(list_experiments(listed, work_dir, results))


def report(names: list[str], write: bool, folder: Path, results: Path) -> None:
    """Print tables of the records in results/. With --write, update pages, figures and shipped weights."""
    from titn_lib.experiments.report import comparison
    from titn_lib.experiments.settings import load_experiments
    from titn_lib.experiments.shipping import summary
    from titn_lib.experiments.statistics import groups, load_rows

    rows = load_rows(load_experiments(folder), results)
    if names:
        print(comparison(rows, names))
    else:
        single = [name for name, row in rows.items() if not row.experiment.variant]
        tables = {"published and measured": summary(rows), "single runs": comparison(rows, single)}
        tables |= {file: comparison(rows, [file]) for file in groups(rows)}
        print("\n\n".join(f"{title}\n\n{table}" for title, table in tables.items()))
    if write:
        write_report(rows, results)


def write_report(rows: dict[str, "ExperimentSummary"], results: Path) -> None:
    """Update the tables in the pages, a figure for each settings file with variants, and the shipped weights."""
    from titn_lib.experiments.report import marked_pages, render_tables, seed_values
    from titn_lib.experiments.shipping import ship_weights
    from titn_lib.io import write_atomically
    from titn_lib.models.weights import PRETRAINED_DIR
    from titn_lib.plots import plot_seeds, save_figure

    for page in marked_pages(results):
        write_atomically(page, render_tables(page.read_text(encoding="utf-8"), rows).encode())
    for file, values in seed_values(rows).items():
        save_figure(plot_seeds(values), results / f"{file}.png")
    if (results.parent / "titn_lib/models/pretrained").resolve() == PRETRAINED_DIR:  # not in an installed package
        ship_weights(rows, results, PRETRAINED_DIR)
