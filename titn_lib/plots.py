"""All figures. Each function takes plain values and returns a matplotlib Figure."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from torch import Tensor

from titn_lib.errors import TITNError
from titn_lib.fonts import any_script
from titn_lib.io import write_atomically
from titn_lib.models.base import AttentionMaps
from titn_lib.models.titn import TITNConfig

# seaborn's palette for color-blind readers; large enough for a projector.
STYLE = {"style": "whitegrid", "context": "notebook", "palette": "colorblind", "font_scale": 1.05}
WHITE = {"style": "white", "context": "notebook", "palette": "colorblind"}  # for figures of images
CMAP = "cividis"  # for values from 0 up: attention, shares


@runtime_checkable
class TrainedRun(Protocol):
    """What `plot_curves` needs of a `training.RunResult`."""

    @property
    def run(self) -> Any: ...

    @property
    def history(self) -> list[dict[str, Any]]: ...


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG (atomically) and close it; a TITNError if the file can't be written."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150, bbox_inches="tight")
    plt.close(figure)
    write_atomically(path, content.getvalue())


def palette() -> bytes:
    """The 256 colors of CMAP as bytes: red, green and blue of each."""
    return np.uint8(np.round(plt.get_cmap(CMAP)(np.arange(256))[:, :3] * 255)).tobytes()


def plot_curves(records: Mapping[str, TrainedRun]) -> Figure:
    """Learning curves: training loss and validation accuracy by epoch, a line for each run."""
    sns.set_theme(**STYLE)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for (name, record), marker in zip(records.items(), "os^Dvp*hX" * len(records), strict=False):
        epochs = [point["epoch"] for point in record.history]
        style = {"marker": marker, "markersize": 4, "markevery": max(1, len(epochs) // 12)}
        left.plot(epochs, [point["train_loss"] for point in record.history], **style)
        label = f"{name} ({record.run.model})"
        right.plot(epochs, [point["validation_top1"] for point in record.history], label=label, **style)
    left.set(xlabel="epoch", ylabel="training loss (its own for each run)", ylim=(0, None), title="Training loss")
    right.set(xlabel="epoch", ylabel="top-1 accuracy (%)", ylim=(None, 100.5), title="Validation accuracy")
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
    right.legend(loc="lower right", fontsize="small")
    return figure


def plot_seeds(points: dict[str, list[float]]) -> Figure:
    """Test accuracy, a row for each experiment: an open dot for each seed, a thick mark for their mean.

    A dashed line shows the mean of the first experiment, the baseline.
    """
    sns.set_theme(**STYLE)
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.36 * len(points)), layout="constrained")
    blue, orange = sns.color_palette("colorblind")[:2]
    means = [sum(values) / len(values) for values in points.values()]
    axis.axvline(means[0], color="0.4", linestyle="--", linewidth=1, zorder=1, label="mean of the first row")
    for row, (values, mean) in enumerate(zip(points.values(), means, strict=True)):
        axis.scatter([mean], [row], s=260, marker="|", linewidths=3, color=orange, label="mean", zorder=2)
        axis.scatter(values, [row] * len(values), s=45, linewidths=1.5, color="none", edgecolors=[blue], label="a seed")
    axis.set_yticks(range(len(points)), [name.replace("_", " ") for name in points])
    axis.set(xlabel="test top-1 accuracy (%)", ylim=(len(points) - 0.5, -0.5))
    axis.legend(*(part[:3] for part in axis.get_legend_handles_labels()), loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def plot_confusion(counts: Int[np.ndarray | Tensor, "true label"], classes: tuple[str, ...], title: str = "") -> Figure:
    """Draw a confusion matrix (`sklearn.metrics.confusion_matrix(labels, predicted)`), with the counts above 0."""
    count, table = len(classes), np.asarray(counts)
    if table.shape != (count, count):
        raise TITNError(f"{count} classes need a matrix of {count}×{count} counts, not {table.shape}")
    sns.set_theme(**STYLE)
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    size = min(12, 2.4 + 0.42 * count)
    with plt.rc_context(any_script()):
        figure, axis = plt.subplots(figsize=(size * 1.15, size), layout="constrained")
        named = count <= 20
        sns.heatmap(
            share, ax=axis, cmap=CMAP, vmin=0, vmax=1, square=True,
            annot=np.where(table > 0, table, "").astype(str) if named else False, fmt="s", annot_kws={"fontsize": 9},
            xticklabels=classes if named else False, yticklabels=classes if named else False,
            cbar_kws={"label": "share of the true class"},
        )  # fmt: skip
        axis.set(xlabel="predicted class", ylabel="true class", title=title)
    axis.tick_params(axis="x", rotation=90 if named and max(map(len, classes)) > 5 else 0)  # wider than a cell
    axis.tick_params(axis="y", rotation=0)
    return figure


def as_pixels(image: UInt8[Tensor, "channel height width"]) -> np.ndarray:
    """An image in matplotlib's layout: "height width" for grayscale, else "height width channel"."""
    return image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()


def show_image(axis: Axes, image: UInt8[Tensor, "channel height width"]) -> None:
    """Show an image without axis ticks, every pixel a square."""
    axis.imshow(as_pixels(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set(xticks=[], yticks=[])


def draw_grid(axis: Axes, size: tuple[int, int], rows: int, columns: int, width: float = 0.6) -> None:
    """Draw white lines between rows and columns of patches on an image of the given height and width."""
    for position in np.arange(1, rows) * size[0] / rows - 0.5:
        axis.axhline(position, color="white", linewidth=width)
    for position in np.arange(1, columns) * size[1] / columns - 0.5:
        axis.axvline(position, color="white", linewidth=width)


def show_images(
    images: UInt8[Tensor, "image channel height width"], titles: list[str], columns: int = 8, title: str = ""
) -> Figure:
    """Images in a grid, each under its title; an empty row for no image."""
    rows = max(1, -(-len(images) // columns))
    with plt.rc_context(any_script()):
        figure, axes = plt.subplots(
            rows, columns, figsize=(1.35 * columns, 1.6 * rows + 0.4 * bool(title)), layout="constrained", squeeze=False
        )
        for axis in axes.flat:
            axis.axis("off")
        for axis, image, text in zip(axes.flat, images, titles, strict=False):
            show_image(axis, image)
            axis.set_title(text, fontsize=10)
    if title:
        figure.suptitle(title)
    return figure


def plot_tokens(image: UInt8[Tensor, "channel height width"], config: TITNConfig, patch: int = 5) -> Figure:
    """Both tokenizations of an image: its patches (the outer stream), and one patch's pixel tokens (the inner stream).

    Args:
        config: the settings of a model that takes this image.
        patch: the index of the patch whose pixel tokens are shown, from 0.
    """
    sns.set_theme(**WHITE)
    (rows, columns), side = config.grid, config.patch_size
    patches = rearrange(image, "c (row y) (column x) -> (row column) c y x", row=rows, column=columns)
    pixels = side // config.pixel_size
    figure = plt.figure(figsize=(13, 4.4))
    draw_patch_zoom(figure, image, patches[patch], config, patch)
    inner = rearrange(patches[patch], "c (row y) (column x) -> (row column) c y x", row=pixels, column=pixels)
    draw_token_row(
        figure, 0.50, config, [as_pixels(pixel) for pixel in inner],
        f"inner stream: {config.num_pixel_tokens} pixel tokens of {config.inner_width} dimensions in every patch",
        f"{config.pixel_size}×{config.pixel_size} image pixels; they attend to each other, then update their patch",
    )  # fmt: skip
    special = ["distillation"] if config.distillation_token else []
    draw_token_row(
        figure, 0.05, config, ["class", *(as_pixels(piece) for piece in patches), *special],
        f"outer stream: {config.num_tokens} tokens of {config.outer_width} dimensions",
        f"they attend to each other, too; {config.depth} blocks of both streams",
        framed=patch + 1,
    )  # fmt: skip
    return figure


def draw_patch_zoom(
    figure: Figure,
    image: UInt8[Tensor, "channel height width"],
    piece: UInt8[Tensor, "channel side side"],
    config: TITNConfig,
    patch: int,
) -> None:
    """The image with its patches, and beside it one patch, enlarged, with its pixel tokens."""
    accent = sns.color_palette("colorblind")[1]
    (rows, columns), side = config.grid, config.patch_size
    row, column = divmod(patch, columns)
    pixels = side // config.pixel_size
    whole = figure.add_axes((0.0, 0.08, 0.27, 0.78))
    inside = figure.add_axes((0.34, 0.30, 0.17, 0.56))
    show_image(whole, image)
    draw_grid(whole, config.image_size, rows, columns, 1.2)
    corner = (column * side - 0.5, row * side - 0.5)
    whole.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=accent, linewidth=3))
    whole.set_title(f"an image, {rows * columns} patches")
    show_image(inside, piece)
    draw_grid(inside, (side, side), pixels, pixels, 2)
    for spine in inside.spines.values():
        spine.set(edgecolor=accent, linewidth=3)
    inside.set_title(f"a patch, {config.num_pixel_tokens} pixel tokens")
    for y in (0, 1):
        start = (corner[0] + side, corner[1] + (1 - y) * side)
        line = ConnectionPatch(start, (0, y), "data", "axes fraction", axesA=whole, axesB=inside, color=accent)
        figure.add_artist(line)


def draw_token_row(
    figure: Figure,
    bottom: float,
    config: TITNConfig,
    tokens: list[Any],
    title: str,
    note: str,
    framed: int | None = None,
) -> None:
    """A row of tokens: small images, or colored squares with a name.

    Args:
        bottom: the row's lower edge as a fraction of the figure's height.
        framed: the index of a token with a frame.
    """
    colors = sns.color_palette("colorblind")
    axis = figure.add_axes((0.545, bottom, 0.455, 0.22))
    axis.set(xlim=(0, max(config.num_tokens, config.num_pixel_tokens)), ylim=(-0.8, 1))
    axis.axis("off")
    figure.text(0.545, bottom + 0.40, title, fontsize=12, weight="bold", va="top")
    figure.text(0.545, bottom + 0.32, note, fontsize=11, va="top")
    for i, token in enumerate(tokens):
        if isinstance(token, str):
            color, x, align = (colors[2], i + 0.08, "left") if token == "class" else (colors[4], i + 0.92, "right")
            axis.add_patch(Rectangle((i + 0.08, 0.08), 0.84, 0.84, facecolor=color, edgecolor="none"))
            axis.text(x, -0.4, token, fontsize=10, ha=align, va="center")
        else:
            box = (i + 0.08, i + 0.92, 0.08, 0.92)
            axis.imshow(token, extent=box, cmap="gray", vmin=0, vmax=255, aspect="auto", interpolation="nearest")
        if i == framed:
            axis.add_patch(Rectangle((i + 0.08, 0.08), 0.84, 0.84, fill=False, edgecolor=colors[1], linewidth=3))
    axis.set_aspect("equal", anchor="NW")


def upsample_nearest(grid: Float[Tensor, "row column"], size: tuple[int, int]) -> Float[Tensor, "height width"]:
    """Repeat each value, so that the grid covers an image of the given height and width."""
    rows, columns = size[0] // grid.shape[0], size[1] // grid.shape[1]
    return grid.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


def draw_map(axis: Axes, values: Float[Tensor, "row column"], title: str) -> None:
    """An attention map, scaled from 0 to its maximum, with a color bar."""
    drawn = axis.imshow(values.numpy(), cmap=CMAP, interpolation="nearest", vmin=0)
    axis.set(xticks=[], yticks=[])
    axis.set_title(title)
    axis.figure.colorbar(drawn, ax=axis, shrink=0.75, label="attention")


def plot_attention(
    image: UInt8[Tensor, "channel height width"],
    maps: AttentionMaps,
    grid: tuple[int, int],
    block: int = -1,
    title: str = "",
) -> Figure:
    """The attention of both streams in one block, averaged over heads.

    From left to right: the image with its patches; the class token's attention to every patch; the same for the
    distillation token (if there is one); and inside every patch, the attention that each pixel token receives.

    Args:
        maps: the attention of this image alone (a batch of one).
        grid: patches down and across.
    """
    sns.set_theme(**WHITE)
    rows, columns = grid
    patches, size = rows * columns, (image.shape[1], image.shape[2])
    outer = maps.outer[block][0].detach().float().cpu().mean(0)
    panels = [("class token → patches", outer[0, 1 : 1 + patches].reshape(grid))]
    if len(outer) > 1 + patches:
        panels.append(("distillation token → patches", outer[-1, 1 : 1 + patches].reshape(grid)))
    if maps.inner:
        received = maps.inner[block][0].detach().float().cpu().mean(1).mean(1)  # patch, key
        side = round(received.shape[-1] ** 0.5)
        within = rearrange(received, "(row column) (y x) -> (row y) (column x)", row=rows, y=side)
        panels.append(("pixel tokens in each patch", within))
    figure, axes = plt.subplots(
        1, 1 + len(panels), figsize=(3.3 * (1 + len(panels)), 3.6), layout="constrained", squeeze=False
    )
    axes[0, 0].set_title("image and patches")
    show_image(axes[0, 0], image)
    draw_grid(axes[0, 0], size, rows, columns)
    for axis, (name, values) in zip(axes[0, 1:], panels, strict=True):
        draw_map(axis, upsample_nearest(values, size), name)
        draw_grid(axis, size, rows, columns)
    figure.set_layout_engine("constrained", wspace=0.06)
    if title:
        figure.suptitle(title)
    return figure


def plot_nested(
    image: UInt8[Tensor, "channel height width"],
    maps: AttentionMaps,
    grid: tuple[int, int],
    patch: int,
    pixel: int | None = None,
    block: int = -1,
) -> Figure:
    """One patch in both streams, in one block, averaged over heads: what its token and its pixel tokens attend to.

    Args:
        maps: the attention of this image alone (a batch of one), of a model with an inner stream.
        grid: patches down and across.
        patch: the patch's row in the outer attention, from 1.
        pixel: the pixel token whose row is shown, from 1; None for the mean of all rows.

    Raises:
        TITNError: there is no inner stream, or no such patch or pixel.
    """
    rows, columns = grid
    if not maps.inner:
        raise TITNError("this model has no inner attention: draw plot_heads, or use a TITN or TNT with inner layers")
    pixels = maps.inner[block].shape[-1]
    check_number("patch", patch, rows * columns)
    check_number("pixel", 1 if pixel is None else pixel, pixels)
    sns.set_theme(**WHITE)
    accent = sns.color_palette("colorblind")[3]
    (down, across), inside = divmod(patch - 1, columns), round(pixels**0.5)
    side, size = image.shape[1] // rows, (image.shape[1], image.shape[2])
    outer = maps.outer[block][0].detach().float().cpu().mean(0)[patch, 1 : 1 + rows * columns].reshape(grid)
    inner = maps.inner[block][0, patch - 1].detach().float().cpu().mean(0)
    row = inner.mean(0) if pixel is None else inner[pixel - 1]

    figure, (whole, attended, opened) = plt.subplots(1, 3, figsize=(12, 4.1), layout="constrained")
    show_image(whole, image)
    whole.set_title("image and patches")
    draw_map(attended, upsample_nearest(outer, size), f"outer stream: patch {patch} → patches")
    for axis in (whole, attended):
        draw_grid(axis, size, rows, columns)
        corner = (across * side - 0.5, down * side - 0.5)
        axis.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=accent, linewidth=3))
    query = "mean of its pixel tokens" if pixel is None else f"pixel token {pixel}"
    draw_map(opened, row.reshape(inside, inside), f"inner stream, patch {patch}: {query} →")
    draw_grid(opened, (inside, inside), inside, inside)
    for spine in opened.spines.values():
        spine.set(edgecolor=accent, linewidth=3)
    return figure


def check_number(what: str, number: int, last: int) -> None:
    """Raises TITNError unless the number is from 1 to `last`."""
    if not 1 <= number <= last:
        raise TITNError(f"there is no {what} {number}: choose one from 1 to {last}")


def plot_heads(
    maps: AttentionMaps, grid: tuple[int, int], token: int = 0, patch: int | None = None, title: str = ""
) -> Figure:
    """Every head of every block, all on one scale: a token's attention in the outer stream.

    With a `patch`, it is the attention of the inner stream inside that patch (the mean over its pixel tokens' rows).

    Args:
        maps: the attention of one image (a batch of one).
        grid: patches down and across.
        token: its row in the outer attention: 0 the class token, 1 … the patches, −1 the last one.
        patch: the patch's row in the outer attention, from 1; shows the inner stream.

    Raises:
        TITNError: there is no such patch, or no inner stream.
    """
    sns.set_theme(**WHITE)
    if patch is None:
        values = torch.stack([one[0, :, token, 1 : 1 + grid[0] * grid[1]] for one in maps.outer], dim=1)
    elif maps.inner:
        check_number("patch", patch, grid[0] * grid[1])
        values = torch.stack([one[0, patch - 1].mean(dim=-2) for one in maps.inner], dim=1)
        grid = (round(values.shape[-1] ** 0.5),) * 2
    else:
        raise TITNError("this model has no inner attention: leave out `patch`")
    maps_by_head = values.detach().float().cpu().reshape(*values.shape[:2], *grid).numpy()  # head block row column
    heads, depth = maps_by_head.shape[:2]
    size = min(1.5, 12 / depth)
    figure, axes = plt.subplots(
        heads, depth, figsize=(size * depth + 1, size * heads + 0.8), layout="constrained", squeeze=False
    )
    for (head, block), axis in np.ndenumerate(axes):
        drawn = axis.imshow(maps_by_head[head, block], cmap=CMAP, vmin=0, vmax=maps_by_head.max())
        axis.set(xticks=[], yticks=[])
        if head == 0:
            axis.set_title(f"block {block + 1}", fontsize=10)
        if block == 0:
            axis.set_ylabel(f"head {head + 1}", fontsize=10)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="attention")
    if title:
        figure.suptitle(title)
    return figure
