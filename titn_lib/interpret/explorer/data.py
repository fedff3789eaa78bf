"""What the explorer shows, as arrays: attention, rollout and relevance of every image, computed once.

Switching block, head or method in the browser then needs no model.
"""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from titn_lib import interpret
from titn_lib.data.transforms import Preprocessing, normalize
from titn_lib.errors import TITNError, unknown
from titn_lib.interpret.explorer.forward import ExplorerForward, last_attention
from titn_lib.models.base import AttentionMaps, Classifier, TokenClassifier
from titn_lib.models.inference import predict
from titn_lib.plots import palette

MAX_IMAGES = 50
MAPS = ("outer", "inner", "rolled_outer", "rolled_inner")
MAX_HIDDEN = 100  # patches; with more, a prediction without each would take minutes


@dataclass(eq=False)
class ExplorerInput:
    """What the explorer shows: one or two students on some images.

    Attributes:
        model: a student (TITN, TNT, ViT) in evaluation mode, with its `preprocessing`.
        images: uint8, "image channel height width", of the model's size; at most 50.
        labels: each image's true class, by its name or its index.
        teacher: any model with the same classes; its predictions are shown beside the student's.
        compare: a second student, shown beside the first.
        names: what to call the student or students; by default their configurations' names.
        titles: what to call the images.

    Raises:
        TITNError: a model without attention, in training mode or without `preprocessing`; models of different classes
            or patches; images of another dtype or size, or too many; labels, names or titles that don't fit.
    """

    model: nn.Module
    images: Tensor
    _: KW_ONLY
    labels: Sequence[int | str] | Tensor | None = None
    teacher: nn.Module | None = None
    compare: nn.Module | None = None
    names: Sequence[str] | None = None
    titles: Sequence[str] | None = None

    def __post_init__(self) -> None:
        models = [self.model] if self.compare is None else [self.model, self.compare]
        self.students = [interpret.require_attention(model) for model in models]
        check_images(self.images)
        check_models(self.students, self.images, self.teacher)
        self.classes = cast(Preprocessing, self.students[0].preprocessing).classes
        count = len(self.images)
        self.targets = [None] * count if self.labels is None else [self.class_index(label) for label in self.labels]
        self.image_titles = (
            [f"image {number}" for number in range(1, count + 1)] if self.titles is None else list(self.titles)
        )
        self.model_names = [model.config.name for model in self.students] if self.names is None else list(self.names)
        for what, given, wanted in (
            ("labels", self.targets, count),
            ("titles", self.image_titles, count),
            ("names", self.model_names, len(self.students)),
        ):
            if len(given) != wanted:
                raise TITNError(f"there are {len(given)} {what} for {wanted}: give one for each")
        if any(label is not None and not 0 <= label < len(self.classes) for label in self.targets):
            raise TITNError(f"labels start at 0 and there are {len(self.classes)} classes: give numbers below that")

    def class_index(self, label: int | str | Tensor) -> int:
        if not isinstance(label, str):
            return int(label)
        if label not in self.classes:
            raise unknown("class", label, self.classes)
        return self.classes.index(label)


def check_images(images: Tensor) -> None:
    """Raises TITNError unless the explorer can show these images."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise TITNError(
            'the explorer expects uint8 images, a tensor "image channel height width", not '
            f"{images.dtype} {list(images.shape)}: pass the images before they are normalized"
        )
    if not 1 <= len(images) <= MAX_IMAGES:
        raise TITNError(f"the explorer shows 1 to {MAX_IMAGES} images, not {len(images)}: choose some, images[:8]")
    if images.shape[1] not in (1, 3):
        raise TITNError(f"the explorer shows images of 1 or 3 channels, not {images.shape[1]}: choose such channels")


def check_models(students: Sequence[TokenClassifier], images: Tensor, teacher: nn.Module | None) -> None:
    """Raises TITNError unless the models fit the images and each other."""
    first, last = students[0], students[-1]
    for model in [*students, *([teacher] if teacher is not None else [])]:
        if not isinstance(model, Classifier):
            raise TITNError(f"{type(model).__name__} is not a model of titn_lib: make one with create_model")
        model.check_images(images.float())
        name = model.config.name
        if model.preprocessing is None:
            raise TITNError(
                f"{name} has no preprocessing, the normalization and class names: load it from a file that has them, "
                "or set model.preprocessing"
            )
        if model.preprocessing.classes != cast(Preprocessing, first.preprocessing).classes:
            raise TITNError(f"{name} and {first.config.name} have different classes: compare models of the same data")
    if first.config.grid != last.config.grid:
        (rows, columns), (other_rows, other_columns) = first.config.grid, last.config.grid
        raise TITNError(
            f"{first.config.name} and {last.config.name} cut an image into {rows}×{columns} and {other_rows}×"
            f"{other_columns} patches: compare models with the same patches"
        )


# --- arrays


def pack(values: Float[Tensor, "*row key"]) -> dict[str, Any]:
    """Quantize rows to 8 bits: a value's share of its row's maximum, and the maximum as float32.

    The error is at most 1/510 of the row's maximum.
    """
    values = require_finite(values.detach().float().cpu(), "the attention or relevance")
    scale = values.amax(dim=-1, keepdim=True)
    rounded = (values / scale.clamp(min=1e-30) * 255).round().to(torch.uint8)
    return {"shape": list(values.shape), "bytes": rounded.numpy().tobytes(), "scale": scale.numpy().tobytes()}


def require_finite(values: Tensor, what: str) -> Tensor:
    """The values.

    Raises:
        TITNError: one is infinite or NaN.
    """
    if not values.isfinite().all():
        raise TITNError(
            f"{what} of the model is not finite (infinite or NaN): its weights are damaged, or its training diverged; "
            "train or copy it again"
        )
    return values


def unpack(packed: dict[str, Any]) -> Float[Tensor, "*row key"]:
    """The values that `pack` quantized."""
    values = torch.from_numpy(np.frombuffer(packed["bytes"], np.uint8).astype(np.float32)).view(packed["shape"])
    scale = torch.from_numpy(np.frombuffer(packed["scale"], np.float32).copy()).view(*packed["shape"][:-1], 1)
    return values / 255 * scale


def pack_numbers(values: Float[Tensor, "*any"]) -> dict[str, Any]:
    """Quantize numbers of either sign to 16 bits, as shares of the largest."""
    values = require_finite(values.detach().float().cpu(), "a token or weight")
    scale = float(values.abs().max().clamp(min=1e-30))
    rounded = (values / scale * 32767).round().to(torch.int16)
    return {"shape": list(values.shape), "bytes": rounded.numpy().astype("<i2").tobytes(), "scale": scale}


def attention_maps(data: dict[str, Any], image: int = 0, model: int = 0) -> AttentionMaps:
    """The attention of one image in `explorer_data`, as a batch of one, for the functions of `plots`."""
    view = data["images"][image]["models"][model]
    inner = [block[None] for block in unpack(view["inner"])] if view["inner"] else []
    return AttentionMaps(inner, [block[None] for block in unpack(view["outer"])])


def top_classes(logits: Float[Tensor, "1 classes"], count: int = 5) -> list[list[float]]:
    """The most probable classes: [class, probability] each."""
    best = require_finite(logits[0].float(), "the output").softmax(dim=-1).topk(min(count, logits.shape[1]))
    return [[label, share] for label, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def logit_lens(logits: Float[Tensor, "block head class"]) -> list[list[list[float]]]:
    """Each head's prediction after every block: [class, probability] by block and head.

    The logit lens (nostalgebraist 2020) applies the heads, with their norms, to the tokens after an earlier block. They
    were trained on those of the last block only, so it is an approximation. After the last block it is the prediction.
    """
    return [[top_classes(head[None], count=1)[0] for head in block] for block in logits]


def relevance_maps(
    model: TokenClassifier, images: Float[Tensor, "1 channel height width"], logits: Float[Tensor, "head class"]
) -> dict[str, Any]:
    """Relevance of every pixel token for each head: first for any class, then for the head's predicted class."""
    side = getattr(model.config, "pixel_size", None) or model.config.image_size[0] // model.config.grid[0]
    maps, classes = [], []
    for head, head_logits in zip(("class", "distillation"), logits, strict=False):
        predicted = head_logits.argmax(dim=-1, keepdim=True)
        for target in (None, predicted):
            maps.append(interpret.sum_cells(interpret.relevance(model, images, head, target).image, side))
        classes.append(int(predicted))
    return {**pack(torch.cat(maps)), "side": side, "classes": classes}


def model_view(model: TokenClassifier, images: Float[Tensor, "1 channel height width"]) -> dict[str, Any]:
    """Attention, rollout, relevance and predictions of one model on one normalized image."""
    with torch.no_grad():
        found = {name: values[0] for name, values in ExplorerForward(model)(images).items()}
    logits = found["logits"]  # block head class
    return {
        **{name: pack(found[name]) if name in found else None for name in MAPS},
        "relevance": relevance_maps(model, images, logits[-1]),
        "output": top_classes(logits[-1].mean(dim=0, keepdim=True)),  # in evaluation, the mean of both heads
        "predictions": [top_classes(head[None]) for head in logits[-1]],
        "lens": logit_lens(logits),
        **{name: pack_numbers(found[name]) if name in found else None for name in ("inner_tokens", "outer_tokens")},
        "hiding": hiding_view(model, images) if model.config.num_patches <= MAX_HIDDEN else None,
    }


# --- hidden pixels


class Hiding(NamedTuple):
    """What hiding parts of an image does to the prediction.

    Attributes:
        classes: those among the five most probable without hiding, or the most probable once; the predicted one first.
        shares: their probabilities, first without hiding, then without each set of pixels; of the model, and then of
            each head if there are two.
        drop: by how much the probability of the predicted class falls without each set of pixels.
    """

    classes: list[int]
    shares: Float[Tensor, "set output classes"]
    drop: Float[Tensor, " set"]


def hide_pixels(
    model: TokenClassifier, image: Float[Tensor, "1 channel height width"], sets: Bool[Tensor, "set patch pixel"]
) -> Hiding:
    """Predict a normalized image without sets of its pixels.

    A hidden pixel is 0, the mean color of the training images, as a cell of `perturbation_curve` that is deleted.

    Args:
        sets: "pixel" is one of the equal squares of a patch, row by row: a pixel token, or with one, the whole patch.
    """
    (rows, columns), (height, width), split = model.config.grid, image.shape[2:], math.isqrt(sets.shape[2])
    hidden = torch.cat([torch.zeros_like(sets[:1]), sets]).to(image.device)
    pattern = "set (row column) (down across) -> set 1 (row down y) (column across x)"
    sizes = {"row": rows, "down": split, "y": height // rows // split, "x": width // columns // split}
    mask = repeat(hidden, pattern, **sizes)
    heads = 1 + model.config.distillation_token
    with torch.no_grad():
        encodings = [model.forward_features(batch) for batch in image.masked_fill(mask, 0).split(64)]
        logits = [torch.stack(model.heads.forward_all(one.hidden_states[-1])[:heads], dim=1) for one in encodings]
    outputs = torch.cat(logits).float()
    if heads > 1:
        outputs = torch.cat([outputs.mean(dim=1, keepdim=True), outputs], dim=1)  # in evaluation, the mean of both
    shares = require_finite(outputs, "the output").softmax(dim=-1).cpu()
    likely = shares[0].topk(min(5, shares.shape[-1])).indices
    classes = torch.cat([likely.flatten(), shares.argmax(dim=-1).flatten()]).unique()
    classes = classes[shares[0, 0, classes].argsort(descending=True)]
    kept = shares[..., classes]
    return Hiding(classes.tolist(), kept, kept[0, 0, 0] - kept[1:, 0, 0])


def hiding_view(model: TokenClassifier, image: Float[Tensor, "1 channel height width"]) -> dict[str, Any]:
    """`hide_pixels` for each single patch, packed."""
    classes, shares, drop = hide_pixels(model, image, torch.eye(model.config.num_patches, dtype=torch.bool)[..., None])
    return {"classes": classes, "shares": pack_numbers(shares), "drop": pack_numbers(drop)}


# --- all together


def explorer_data(model: nn.Module, images: Tensor, **options: Any) -> dict[str, Any]:
    """All that the explorer shows, with arrays packed by `pack`.

    For each image and model: attention of both streams ("block head query key" and "block patch head query key"),
    rollout from the first block through each block (the same shape with one head), relevance of every pixel token for
    each head, the five most probable classes of the model and of each head, each head's prediction after every block
    (`logit_lens`), the tokens that the last block's attention takes, and the predictions without each
    single patch (`hide_pixels`). With every head, `titn_paper` takes half a megabyte per image. A model that would
    take more than MAX_BYTES_ALL_HEADS (`titn_paper_224`) comes with the mean over heads, and one with more than
    MAX_HIDDEN patches without the predictions for hidden patches.

    Args:
        options: see `ExplorerInput`.

    Raises:
        TITNError: as `ExplorerInput`; or more attention than a page can carry.
    """
    return collect(ExplorerInput(model, images, **options))


def collect(shown: ExplorerInput) -> dict[str, Any]:
    """`explorer_data` of an input that has been checked."""
    teacher = cast(Classifier | None, shown.teacher)
    images = []
    for image, label, title in zip(shown.images, shown.targets, shown.image_titles, strict=True):
        views = []
        for model in shown.students:
            views.append(model_view(model, normalized(model, image)))
        predicted = None
        if teacher is not None:
            predicted = top_classes(predict(teacher, image[None]))
        rgb = image.permute(1, 2, 0).expand(-1, -1, 3).cpu().contiguous().numpy().tobytes()
        images.append({"title": title, "label": label, "rgb": rgb, "models": views, "teacher": predicted})
    return {
        "size": list(shown.students[0].config.image_size),
        "grid": list(shown.students[0].config.grid),
        "split": split(shown.students),
        "classes": list(shown.classes),
        "palette": palette(),
        "models": [describe(name, model) for name, model in zip(shown.model_names, shown.students, strict=True)],
        "teacher": teacher.config.name if teacher is not None else None,
        "images": images,
    }


def split(students: Sequence[TokenClassifier]) -> int:
    """The squares along a patch's side that can be hidden: each is a pixel token, or a part of one."""
    return math.lcm(*(math.isqrt(getattr(student.config, "num_pixel_tokens", 1)) for student in students))


def normalized(model: TokenClassifier, image: Tensor) -> Float[Tensor, "1 channel height width"]:
    """A uint8 image as the model takes it."""
    preprocessing, device = cast(Preprocessing, model.preprocessing), next(model.parameters()).device
    return normalize(image[None].to(device), preprocessing.mean, preprocessing.std)


def describe(name: str, model: TokenClassifier) -> dict[str, Any]:
    """The model's name and sizes."""
    config = model.config
    return {
        "qkv": {
            stream: {name: pack_numbers(values) for name, values in attn.qkv.named_parameters()}
            for stream, attn in last_attention(model).items()
        },
        "name": name,
        "data": Path(cast(Preprocessing, model.preprocessing).data).name,  # of a folder, the last part of its path
        "mean": list(cast(Preprocessing, model.preprocessing).mean),  # a hidden pixel's color
        "std": list(cast(Preprocessing, model.preprocessing).std),
        "depth": config.depth,
        "distillation": bool(config.distillation_token),
        "patches": config.num_patches,
        "pixels": getattr(config, "num_pixel_tokens", 0),
        "heads": {
            "outer": getattr(config, "outer_heads", None) or getattr(config, "heads", 0),
            "inner": getattr(config, "inner_heads", 0),
        },
    }
