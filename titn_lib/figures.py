"""Every static picture. Each function takes plain values and returns a matplotlib Figure."""

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from .files import write_atomically
from .records import Record
from .transformer import AttentionMaps

# seaborn's colour-blind palette; large enough for a projector.
STYLE = {"style": "whitegrid", "context": "notebook", "palette": "colorblind", "font_scale": 1.05}
MAP = "cividis"  # for anything between 0 and 1


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all.

    Raises:
        TITNError: the file can't be written.
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150, bbox_inches="tight")
    write_atomically(path, content.getvalue())


def plot_curves(records: dict[str, Record]) -> Figure:
    """Training loss and validation accuracy by epoch, a line for each run; its test accuracy stands in the legend."""
    sns.set_theme(**STYLE)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for (name, record), marker in zip(records.items(), "os^Dvp*hX" * len(records), strict=False):
        epochs = [point["epoch"] for point in record.curve]
        style = {"marker": marker, "markersize": 4, "markevery": max(1, len(epochs) // 12)}
        left.plot(epochs, [point["train_loss"] for point in record.curve], **style)
        label = f"{name}: {record.run.model}, test {record.test['top1']:.2f} %"
        right.plot(epochs, [point["validation_top1"] for point in record.curve], label=label, **style)
    left.set(xlabel="epoch", ylabel="training loss (each run's own)", ylim=(0, None), title="What each run minimises")
    right.set(xlabel="epoch", ylabel="top-1 accuracy (%)", ylim=(None, 100.5), title="On the validation split")
    right.legend(loc="lower right", fontsize="small")
    return figure


def plot_confusion(
    labels: Int[Tensor, " picture"], predicted: Int[Tensor, " picture"], classes: tuple[str, ...], title: str = ""
) -> Figure:
    """How often each class was taken for each: rows are the truth, columns the answer. Mistakes carry their count."""
    sns.set_theme(**STYLE)
    count = len(classes)
    table = torch.bincount(labels * count + predicted, minlength=count**2).reshape(count, count).numpy()
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    size = min(12, 2.4 + 0.42 * count)
    figure, axis = plt.subplots(figsize=(size * 1.15, size), layout="constrained")
    named = count <= 20
    sns.heatmap(
        share, ax=axis, cmap=MAP, vmin=0, vmax=1, square=True,
        annot=np.where(table > 0, table, "").astype(str) if named else False, fmt="s", annot_kws={"fontsize": 9},
        xticklabels=classes if named else False, yticklabels=classes if named else False,
        cbar_kws={"label": "share of the class"},
    )  # fmt: skip
    axis.set(xlabel="answer", ylabel="truth", title=title)
    axis.tick_params(axis="y", rotation=0)
    return figure


def as_pixels(image: UInt8[Tensor, "channel height width"]) -> np.ndarray:
    """A picture as matplotlib wants it: "height width" for grey, "height width colour" else."""
    return image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()


def show_pictures(
    images: UInt8[Tensor, "picture channel height width"], titles: list[str], columns: int = 8, title: str = ""
) -> Figure:
    """Pictures in a grid, each under its title."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.35 * columns, 1.6 * rows + 0.4 * bool(title)), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, text in zip(axes.flat, images, titles, strict=False):
        axis.imshow(as_pixels(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(text, fontsize=10)
    if title:
        figure.suptitle(title)
    return figure


def enlarge(grid: Float[Tensor, "row column"], size: tuple[int, int]) -> Float[Tensor, "height width"]:
    """Each value as a block, so that the grid covers a picture of the given size."""
    rows, columns = size[0] // grid.shape[0], size[1] // grid.shape[1]
    return grid.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


def plot_attention(
    image: UInt8[Tensor, "channel height width"],
    maps: AttentionMaps,
    grid: tuple[int, int],
    block: int = -1,
    title: str = "",
) -> Figure:
    """Both streams on one picture, in one block, averaged over heads.

    From left to right: the picture with its patches; how much the class token looks at every patch; the same for the
    distillation token (where there is one); inside every patch, how much attention each pixel token receives from the
    others there.

    Args:
        maps: the attention of this picture alone (a batch of one).
        grid: patches down and across.
    """
    sns.set_theme(style="white", context="notebook")
    rows, columns = grid
    patches, size = rows * columns, (image.shape[1], image.shape[2])
    outer = maps.outer[block][0].float().mean(0)
    panels = [("class token → patches", outer[0, 1 : 1 + patches].reshape(grid))]
    if len(outer) > 1 + patches:
        panels.append(("distillation token → patches", outer[-1, 1 : 1 + patches].reshape(grid)))
    if maps.inner:
        received = maps.inner[block][0].float().mean(1).mean(1)  # patch, key
        side = round(received.shape[-1] ** 0.5)
        within = rearrange(received, "(row column) (y x) -> (row y) (column x)", row=rows, y=side)
        panels.append(("pixels, inside each patch", within))
    figure, axes = plt.subplots(
        1, 1 + len(panels), figsize=(3.3 * (1 + len(panels)), 3.6), layout="constrained", squeeze=False
    )
    axes[0, 0].set_title("picture and patches")
    for axis, panel in zip(axes[0], [None, *panels], strict=True):
        axis.imshow(as_pixels(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        for position in np.arange(1, rows) * size[0] / rows - 0.5:
            axis.axhline(position, color="white", linewidth=0.6, alpha=0.7)
        for position in np.arange(1, columns) * size[1] / columns - 0.5:
            axis.axvline(position, color="white", linewidth=0.6, alpha=0.7)
        axis.set(xticks=[], yticks=[])
        if panel:
            name, values = panel
            overlay = axis.imshow(enlarge(values, size), cmap=MAP, alpha=0.8, interpolation="nearest", vmin=0)
            axis.set_title(name)
            figure.colorbar(overlay, ax=axis, shrink=0.75, label="attention" if values is panels[-1][1] else None)
    if title:
        figure.suptitle(title)
    return figure
