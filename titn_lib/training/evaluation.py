"""Loss and accuracy of a network on a split."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib.data.datasets import DATASETS, data_fingerprint, load_dataset
from titn_lib.data.folders import list_own_images
from titn_lib.data.images import ImageDataset
from titn_lib.data.mixing import MixedTargets
from titn_lib.data.reading import load_class_folders
from titn_lib.data.transforms import Preprocessing
from titn_lib.errors import TITNError
from titn_lib.io import markdown_table, require_no_input, require_outside
from titn_lib.models.base import Classifier
from titn_lib.models.inference import predict
from titn_lib.models.registry import count_macs
from titn_lib.training.config import resolve_dataset
from titn_lib.training.distributed import all_reduce_sum
from titn_lib.training.records import RECORD, WEIGHTS, RunResult, load_record


def add_metrics(
    sums: Float[Tensor, " two"],
    loss: Float[Tensor, ""],
    logits: Float[Tensor, "batch classes"],
    targets: MixedTargets,
) -> None:
    """Add the loss of a training batch and its top-1 accuracy in percent to their sums, in place."""
    accuracy = (logits.argmax(dim=-1) == targets.dominant).float().mean()
    sums += torch.stack([loss, 100 * accuracy])


def evaluate(
    network: nn.Module,
    part: ImageDataset,
    preprocessing: Preprocessing,
    fabric: Fabric | None = None,
    exact: bool = False,
    predicted: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """Loss, top-1, top-5 and balanced accuracy in percent on a split, and its number of images. For an adaptive network
    (`Classifier.adaptive`), also the mean MACs per image.

    Balanced accuracy is the mean of the classes' recalls: the top-1 accuracy if every class had as many images.

    Args:
        fabric: share the work with the other processes, in its precision.
        exact: in float32 whatever Fabric's precision, so that the figure can be measured again anywhere.
        predicted: in place of `predict`, for this network and preprocessing.
    """
    return evaluate_classes(network, part, preprocessing, fabric, exact, predicted)[0]


def evaluate_classes(
    network: nn.Module,
    part: ImageDataset,
    preprocessing: Preprocessing,
    fabric: Fabric | None = None,
    exact: bool = False,
    predicted: Callable[[Tensor], Tensor] | None = None,
) -> tuple[dict[str, float], Int64[Tensor, "true predicted"]]:
    """What `evaluate` returns, and the confusion matrix: how many images of each class got which prediction."""
    rank, processes = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    mine, saved = part[rank::processes], list[Tensor]()
    saved_macs: AbstractContextManager = nullcontext()
    if isinstance(network, Classifier) and network.adaptive:
        saved_macs = network.register_forward_hook(lambda model, *_: saved.append(model.saved_macs().sum()))
    convolutions = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=not exact)
    eager = torch.compiler.set_stance("force_eager")  # batches of another size: not worth compiling again
    with saved_macs, convolutions, eager, fabric.autocast() if fabric and not exact else nullcontext():
        logits = predicted(mine.images) if predicted else predict(network, mine.images, preprocessing)
    labels = mine.labels.to(logits.device)
    ranked = logits.topk(min(5, logits.shape[1]), dim=-1).indices == labels[:, None]
    counts = [ranked[:, 0].sum(), ranked.sum(), sum(saved, labels.new_zeros(()))]
    sums = torch.stack([F.cross_entropy(logits, labels, reduction="sum"), *counts])
    count = logits.shape[1]
    confusion = torch.bincount(labels * count + logits.argmax(dim=-1), minlength=count**2).view(count, count)
    if fabric:
        sums, confusion = all_reduce_sum(fabric, sums), all_reduce_sum(fabric, confusion)
    # One copy from a GPU, which waits for it. Counts below 2²⁴ are exact in float32; Apple's GPUs have no float64.
    together = torch.cat([sums, confusion.flatten().float()]).cpu()
    sums, confusion = together[: len(sums)], together[len(sums) :].long().view(count, count)
    loss, top1, top5, left_out = (sums / len(part)).tolist()
    measured = {"loss": loss, "top1": 100 * top1, "top5": 100 * top5, "num_images": len(part)}
    recalls = recall(confusion, tuple(map(str, range(count)))).values()
    measured["balanced_accuracy"] = sum(recalls) / len(recalls)
    if isinstance(network, Classifier) and network.adaptive:
        measured["macs"] = round(count_macs(network) - left_out)
    return measured, confusion


def recall(confusion: Int64[Tensor, "true predicted"], classes: tuple[str, ...]) -> dict[str, float]:
    """The share of each class's images that are predicted as that class, in percent; without classes of no images."""
    shares = 100 * confusion.diagonal() / confusion.sum(dim=1)
    return {name: share for name, share in zip(classes, shares.tolist(), strict=True) if share == share}


def recall_by_class(confusion: Int64[Tensor, "true predicted"], classes: tuple[str, ...], most: int = 20) -> str:
    """The recall of each class and its number of images, as a Markdown table; of many classes those with the lowest."""
    counts, shares = confusion.sum(dim=1).tolist(), recall(confusion, classes)
    lowest = sorted(shares, key=shares.__getitem__)[:most] if len(shares) > most else list(shares)
    rows = [[name, f"{shares[name]:.2f} %", f"{counts[classes.index(name)]:,}"] for name in lowest]
    return markdown_table(["class", "recall", "images"], rows, align=True)


def require_no_image(output: Path, images: str) -> None:
    """Raises TITNError if an output is one of the images of a folder or table, or would lie in that folder."""
    require_outside(output, images)
    require_no_input(output, [file for part in list_own_images(images, ()).files.values() for file, _ in part])


def record_of(weights: Path) -> RunResult | None:
    """The record beside the weights of a run; None if there is none, or it is damaged."""
    record = weights.parent / RECORD
    if weights.name == WEIGHTS and record.exists():  # another file may lie beside another run's record
        with suppress(TITNError):
            return load_record(record)
    return None


def images_to_measure(
    model: Classifier, weights: Path, data: str | None, skip_damaged: bool = False, output: Path | None = None
) -> tuple[dict[str, ImageDataset], Preprocessing]:
    """What `titn evaluate` measures a trained model on, and how to normalize it.

    On the data that it was trained on, and on a data set of the library, that is the validation and the test split. Of
    other images it is all, whatever their split: their class folders may be some of the model's classes.

    Args:
        weights: the model's file. Where the run's record lies beside it, the images are compared with it.
        data: a name or path as for `load_dataset`; None for what the model was trained on.
        skip_damaged: leave out image files that can't be read, with a warning.
        output: a file that will be written and must not be one of the images.

    Raises:
        TITNError: `output` lies among the images; the model has no `preprocessing`; other classes; images that changed
            since training, so that those it was trained on can't be told from the others; or images that can't be used
            (`load_dataset`).
    """
    about, config = model.preprocessing, model.config
    if about is None:
        raise TITNError(
            f"{weights} doesn't say how its images were normalized: save it with save_model(…, preprocessing)"
        )
    record = record_of(weights)
    trained_on = record.run.data if record else about.data
    name = resolve_dataset(data or trained_on)
    if not data and name not in DATASETS and not Path(name).exists():
        raise TITNError(
            f"{weights} was trained on images called {trained_on}, which aren't here: name them with --data"
        )
    if output and name not in DATASETS:
        require_no_image(output, name)
    before, now = record.data if record else None, data_fingerprint(name)
    same = before is not None and now is not None and before["sha256"] == now["sha256"]
    if name == trained_on and before and now and not same:
        raise TITNError(
            f"the images in {name} have changed since {weights} was trained, so its test split may hold images that "
            "the model has seen: put the new ones into another folder, and give that one (--data)"
        )
    if same or name in DATASETS or name == resolve_dataset(trained_on) or Path(name).name == trained_on:
        splits = load_dataset(name, config.image_size, config.in_channels, skip_damaged)
        parts, classes = {"validation": splits.validation, "test": splits.test}, splits.classes
        fits = classes == about.classes
    else:
        whole, classes = load_class_folders(
            list_own_images(name, DATASETS).path, config.image_size, config.in_channels, skip_damaged
        )
        fits = set(classes) <= set(about.classes)
        if fits:
            index = torch.tensor([about.classes.index(one) for one in classes])
            parts = {"all": ImageDataset(whole.images, index[whole.labels])}
    if not fits:
        raise TITNError(
            f"{weights} was trained for the classes of {about.data}, not for those of {Path(name).name}: choose "
            "another --data"
        )
    return parts, about
