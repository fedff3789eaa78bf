"""The attention explorer: both streams of a student, to touch, in a notebook or on a page of its own.

    Explorer(model, images)                       in a notebook; needs the package anywidget
    write_page("attention.html", model, images)   one file for any browser, without Python and without network

Both show what `look` returns: arrays made once, so that moving the pointer asks nobody.
"""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from titn_lib import interpret
from titn_lib.data.transforms import Preprocessing, normalize
from titn_lib.errors import TITNError
from titn_lib.io import write_atomically
from titn_lib.models.base import AttentionMaps, Classifier, Encoding, TokenClassifier
from titn_lib.models.inference import predict
from titn_lib.plots import palette

if TYPE_CHECKING:
    from titn_lib.interpret.explorer.widget import Explorer

__all__ = ["Explorer", "frame", "look", "maps", "page", "unpack", "write_page"]

HERE = Path(__file__).parent
PICTURES = 24  # at most, in one explorer
ALL_HEADS = 700_000  # bytes of one picture and model with every head; above, the mean over heads has to do
MEAN = 3_000_000  # bytes of one picture and model at most

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
{css}
</style></head><body class="titn-page">
<main id="explorer" class="{theme}"></main>
<script type="application/json" id="data">{data}</script>
<script type="module">
{script}
explore(document.getElementById("explorer"), JSON.parse(document.getElementById("data").textContent));
</script></body></html>
"""


def __getattr__(name: str) -> Any:
    """`Explorer` waits until it is asked for: the rest works without anywidget."""
    if name != "Explorer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from titn_lib.interpret.explorer.widget import Explorer
    except ModuleNotFoundError as problem:
        if problem.name != "anywidget":
            raise
        raise TITNError(
            "the explorer in a notebook needs the package anywidget: install it (pip install anywidget), or write a "
            "page with titn_lib.explorer.write_page"
        ) from problem
    return Explorer


# --- arrays


def pack(values: Float[Tensor, "*row key"]) -> dict[str, Any]:
    """Rows as bytes: each value as a share of its row's largest, which is kept as a float32; off by 1/510 at most."""
    values = values.detach().float().cpu()
    scale = values.amax(dim=-1, keepdim=True)
    rounded = (values / scale.clamp(min=1e-30) * 255).round().to(torch.uint8)
    return {"shape": list(values.shape), "bytes": rounded.numpy().tobytes(), "scale": scale.numpy().tobytes()}


def unpack(packed: dict[str, Any]) -> Float[Tensor, "*row key"]:
    """What `pack` kept."""
    values = torch.from_numpy(np.frombuffer(packed["bytes"], np.uint8).astype(np.float32)).view(packed["shape"])
    scale = torch.from_numpy(np.frombuffer(packed["scale"], np.float32).copy()).view(*packed["shape"][:-1], 1)
    return values / 255 * scale


def maps(data: dict[str, Any], picture: int = 0, model: int = 0) -> AttentionMaps:
    """The attention of one picture, from what `look` returned, for the functions of `figures`: a batch of one."""
    view = data["pictures"][picture]["models"][model]
    inner = [one[None] for one in unpack(view["inner"])] if view["inner"] else []
    return AttentionMaps(inner, [one[None] for one in unpack(view["outer"])])


def roll(blocks: list[Float[Tensor, "*batch head query key"]]) -> list[Float[Tensor, "*batch 1 query key"]]:
    """The rollout from the first block through each block, with an axis for its only "head"."""
    return [one.unsqueeze(-3) for one in interpret.rollouts(blocks)]


def best_of(logits: Float[Tensor, "1 classes"]) -> list[list[float]]:
    """The five likeliest classes: [class, probability] each."""
    best = logits[0].float().softmax(dim=-1).topk(min(5, logits.shape[1]))
    return [[label, share] for label, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def relevances(
    model: TokenClassifier, images: Float[Tensor, "1 channel height width"], answers: tuple[Tensor, ...]
) -> dict[str, Any]:
    """Relevance of every pixel token for each head, first whatever the answer, then weighted by its likeliest class.

    Args:
        answers: each head's logits.
    """
    side = getattr(model.config, "pixel_size", None) or model.config.image_size[0] // model.config.grid[0]
    found, classes = [], []
    for head, logits in zip(("class", "distillation"), answers, strict=False):
        chosen = logits.argmax(dim=-1)
        for one in (None, chosen):
            found.append(interpret.cells(interpret.relevance(model, images, head, one).image, side))
        classes.append(int(chosen))
    return {**pack(torch.cat(found)), "side": side, "classes": classes}


def look_once(model: TokenClassifier, images: Float[Tensor, "1 channel height width"]) -> dict[str, Any]:
    """What one model makes of one normalized picture."""
    with torch.no_grad():
        encoding: Encoding = model.forward_features(images, return_attention=True)
        both = model.heads.forward_all(encoding.hidden_states[-1])
    answers = both[: 1 + model.config.distillation_token]
    kept: dict[str, list[Tensor]] = dict(zip(("inner", "outer"), encoding.attention, strict=True))
    rolled = {f"rolled_{name}": roll(blocks) for name, blocks in kept.items()}
    if sum(block.numel() for blocks in (kept | rolled).values() for block in blocks) > ALL_HEADS:
        kept = {name: [block.mean(dim=-3, keepdim=True) for block in blocks] for name, blocks in kept.items()}
    size = sum(block.numel() for blocks in (kept | rolled).values() for block in blocks)
    if size > MEAN:
        raise TITNError(
            f"the attention of {model.config.name} on one picture of {'×'.join(map(str, model.config.image_size))} "
            f"takes {size / 1e6:.0f} MB, more than the explorer carries ({MEAN / 1e6:.0f} MB): take a model with "
            "larger patches, or load it for smaller pictures with load_model(path, image_size=…)"
        )
    packed = {name: pack(torch.stack(blocks)[:, 0]) if blocks else None for name, blocks in (kept | rolled).items()}
    return {
        **packed,
        "relevance": relevances(model, images, answers),
        "answers": [best_of(logits) for logits in answers],
    }


# --- what can be shown


def check(models: Sequence[nn.Module], images: Tensor, teacher: nn.Module | None) -> list[TokenClassifier]:
    """The models, if the explorer can show them on these pictures.

    Raises:
        TITNError: it can't.
    """
    if not 1 <= len(models) <= 2:
        raise TITNError(f"the explorer shows one model or compares two, not {len(models)}: give it one or two")
    students = [interpret.require_attention(model) for model in models]
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise TITNError(
            'the explorer takes pictures as bytes, a torch.uint8 tensor "picture channel height width", and got '
            f"{images.dtype} {list(images.shape)}: give it the pictures before they are normalized"
        )
    if not 1 <= len(images) <= PICTURES:
        raise TITNError(f"the explorer shows 1 to {PICTURES} pictures, not {len(images)}: choose some, images[:8]")
    if images.shape[1] not in (1, 3):
        raise TITNError(f"the explorer draws pictures of 1 or 3 channels, not {images.shape[1]}: choose such channels")
    first = students[0]
    for model in [*students, *([teacher] if teacher is not None else [])]:
        if not isinstance(model, Classifier):
            raise TITNError(f"{type(model).__name__} is not a network of titn_lib: make one with create_model")
        model.check_images(images.float())
        name = model.config.name
        if model.preprocessing is None:
            raise TITNError(
                f"{name} doesn't say how its pictures were normalized and what its classes are called: load it from a "
                "file that does, or set model.preprocessing"
            )
        if model.preprocessing.classes != cast(Preprocessing, first.preprocessing).classes:
            raise TITNError(f"{name} and {first.config.name} have different classes: compare models of the same data")
    one, other = first.config, students[-1].config
    if one.grid != other.grid:
        raise TITNError(
            f"{one.name} and {other.name} cut a picture into {one.grid[0]}×{one.grid[1]} and {other.grid[0]}×"
            f"{other.grid[1]} patches: compare models with the same patches"
        )
    return students


def look(
    models: Sequence[nn.Module],
    images: Tensor,
    *,
    labels: Sequence[int] | Tensor | None = None,
    teacher: nn.Module | None = None,
    names: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
) -> dict[str, Any]:
    """All that the explorer shows. Arrays are packed (`pack`): numbers equal the models' within 1/510 of
    their row's largest.

    For each picture and model: attention of both streams ("block head query key" and "block patch head query key"),
    rollout from the first block through each one (the same, with one head), relevance of every pixel token for each
    head, and the five likeliest classes of each head. With every head, `titn_paper` takes half a megabyte a picture. A
    model that would take more than ALL_HEADS bytes (`titn_paper_224`) comes with the mean over heads.

    Args:
        models: one student in evaluation mode, or two to compare. They need their `preprocessing`.
        images: uint8, "picture channel height width", of the models' size; at most 24.
        labels: the number of each picture's true class.
        teacher: any network with the same classes.
        names: of the models, instead of their settings' name.
        titles: of the pictures.

    Raises:
        TITNError: what `check` refuses, labels or titles that don't fit, or more attention than a page can carry.
    """
    students = check(models, images, teacher)
    classes = cast(Preprocessing, students[0].preprocessing).classes
    truth = [None] * len(images) if labels is None else [int(label) for label in labels]
    called = list(titles) if titles is not None else [f"picture {number}" for number in range(1, len(images) + 1)]
    given = list(names) if names is not None else [model.config.name for model in students]
    for what, found, wanted in (("labels", truth, images), ("titles", called, images), ("names", given, students)):
        if len(found) != len(wanted):
            raise TITNError(f"there are {len(found)} {what} for {len(wanted)}: give one for each")
    if any(label is not None and not 0 <= label < len(classes) for label in truth):
        raise TITNError(f"labels count from 0 and there are {len(classes)} classes: give numbers below that")
    pictures = []
    for image, label, title in zip(images, truth, called, strict=True):
        views = []
        for model in students:
            about, device = cast(Preprocessing, model.preprocessing), next(model.parameters()).device
            views.append(look_once(model, normalize(image[None].to(device), about.mean, about.std)))
        says = None
        if teacher is not None:
            says = best_of(predict(teacher, image[None], cast(Preprocessing, teacher.preprocessing)))
        shown = image.permute(1, 2, 0).expand(-1, -1, 3).cpu().contiguous().numpy().tobytes()
        pictures.append({"title": title, "label": label, "image": shown, "models": views, "teacher": says})
    about_models = [
        {
            "name": name,
            "depth": model.config.depth,
            "distillation": bool(model.config.distillation_token),
            "patches": model.config.patches,
            "pixels": getattr(model.config, "pixels", 0),
            "heads": {
                "outer": getattr(model.config, "outer_heads", None) or getattr(model.config, "heads", 0),
                "inner": getattr(model.config, "inner_heads", 0),
            },
        }
        for name, model in zip(given, students, strict=True)
    ]
    return {
        "size": list(students[0].config.image_size),
        "grid": list(students[0].config.grid),
        "classes": list(classes),
        "palette": palette(),
        "models": about_models,
        "teacher": cast(Classifier, teacher).config.name if teacher else None,
        "pictures": pictures,
    }


# --- pages


def page(data: dict[str, Any], title: str = "Attention", theme: str = "") -> str:
    """One HTML page with all inside: data, script and style. `theme` is "light", "dark", or what the reader's system
    prefers."""

    def as_text(value: bytes) -> str:
        return base64.b64encode(value).decode()

    return PAGE.format(
        title=html.escape(title),
        theme=theme,
        css=(HERE / "explorer.css").read_text(encoding="utf-8"),
        script=(HERE / "explorer.js").read_text(encoding="utf-8"),
        data=json.dumps(data, default=as_text, separators=(",", ":")).replace("<", "\\u003c"),
    )


def frame(data: dict[str, Any]) -> str:
    """The page inside an <iframe>, for a saved notebook: it works there without a kernel and without network."""
    inside = html.escape(page(data, theme="light"), quote=True)
    return (
        f'<iframe srcdoc="{inside}" sandbox="allow-scripts" title="Attention explorer" '
        'style="width: 100%; height: 60rem; border: 0"></iframe>'
    )


def write_page(
    path: str | Path,
    model: nn.Module,
    images: Tensor,
    *,
    labels: Sequence[int] | Tensor | None = None,
    teacher: nn.Module | None = None,
    compare: nn.Module | None = None,
    names: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
) -> None:
    """Write the explorer as one HTML file that works anywhere; see `look` for the arguments.

    Args:
        compare: a second model, shown beside the first.

    Raises:
        TITNError: as `look`; or the file can't be written.
    """
    models = [model] if compare is None else [model, compare]
    data = look(models, images, labels=labels, teacher=teacher, names=names, titles=titles)
    title = "Attention of " + " and ".join(about["name"] for about in data["models"])
    write_atomically(path, page(data, title).encode())
