"""A diagram of both streams of a TITN or TNT, drawn from its settings."""

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from titn_lib.models.titn import TITNConfig

COLORS = sns.color_palette("colorblind")


def box(axis: Axes, x: float, y: float, text: str, color: tuple[float, ...], width: float = 2.4) -> None:
    """A box with its center at (x, y)."""
    rounded, faint = "round,pad=0,rounding_size=0.15", (*color, 0.25)
    corner = (x - width / 2, y - 0.7)
    axis.add_patch(FancyBboxPatch(corner, width, 1.4, rounded, linewidth=2, facecolor=faint, edgecolor=color))
    axis.text(x, y, text, ha="center", va="center", fontsize=13)


def arrow(
    axis: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    text: str = "",
    at: tuple[float, float] = (0, 0.12),
    ha: str = "center",
    va: str = "bottom",
) -> None:
    """An arrow, and a text beside its middle."""
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "lw": 2, "color": "0.25", "mutation_scale": 18})
    x, y = (start[0] + end[0]) / 2 + at[0], (start[1] + end[1]) / 2 + at[1]
    axis.text(x, y, text, fontsize=12, ha=ha, va=va)


def draw_block(axis: Axes, x: float, number: int, config: TITNConfig) -> None:
    """One step of both streams."""
    N, M, c, d = config.num_patches, config.num_pixel_tokens, config.inner_width, config.outer_width
    axis.add_patch(plt.Rectangle((x - 1.9, 0.05), 3.8, 6.75, facecolor="0.96", edgecolor="0.6", zorder=0))
    axis.text(x, 6.9, f"block {number}", ha="center", va="bottom", fontsize=14, weight="bold")
    box(axis, x, 5.8, f"inner layer\n{config.inner_heads} heads", COLORS[0])
    box(axis, x, 3.4, f"projection\n{M * c} → {d}", COLORS[7])
    box(axis, x, 1.0, f"outer layer\n{config.outer_heads} heads", COLORS[1])
    arrow(axis, (x, 5.1), (x, 4.1), f"{N} × {M} × {c}", (0.1, 0), "left", "center")
    arrow(axis, (x, 2.7), (x, 1.7), f"+ {N} × {d}", (0.1, 0), "left", "center")


def draw_heads(axis: Axes, config: TITNConfig) -> None:
    """The heads and their input rows."""
    T, two = config.num_tokens, config.distillation_token
    rows = f"mean of\nrows 0–{T - 1 - two}" if config.pooling == "mean" else "row 0"
    y = 3.4 if two else 1.0
    box(axis, 19.4, y, f"class head\nLN, {config.outer_width} → {config.num_classes}", COLORS[2], 3)
    arrow(axis, (14.85, 1.4 if two else 1.0), (17.85, y), rows, *(((0.2, 0), "left", "top") if two else ()))
    if two:
        box(axis, 19.4, 1.0, f"distillation head\nLN, {config.outer_width} → {config.num_classes}", COLORS[4], 3)
        arrow(axis, (14.85, 1.0), (17.85, 1.0), f"row {T - 1}", (0.2, 0.1))
        axis.text(19.4, 5.2, "training: both\nevaluation: their mean", ha="center", va="center", fontsize=13)


def draw_model(config: TITNConfig) -> Figure:
    """Both streams of a TITN or TNT, drawn from its settings."""
    N, M, T = config.num_patches, config.num_pixel_tokens, config.num_tokens
    c, d = config.inner_width, config.outer_width
    figure, axis = plt.subplots(figsize=(14, 5.6), layout="constrained")
    axis.set(xlim=(0, 21), ylim=(0, 7.4))
    axis.axis("off")
    size = "×".join(map(str, (config.in_channels, *config.image_size)))
    learned = config.patch_tokens == "learned"
    box(axis, 1.0, 3.4, f"image\n{size}", COLORS[5], 1.9)
    box(axis, 3.5, 5.8, f"pixel tokens\n{config.pixel_embedding}\n+ positions", COLORS[0])
    box(axis, 3.5, 1.0, f"outer tokens\n{'learned tables' if learned else 'from pixels'}", COLORS[1])
    arrow(axis, (1.3, 4.1), (2.2, 5.6))
    if not learned:
        arrow(axis, (4.4, 5.1), (4.4, 1.7), f"{N} × {d}", (0.1, 0), "left", "center")
    for x, number in ((8.4, 1), (13.6, config.depth)):
        draw_block(axis, x, number, config)
    for y, shape, stream in ((5.8, f"{N} × {M} × {c}", "inner stream"), (1.0, f"{T} × {d}", "outer stream")):
        arrow(axis, (4.75, y), (7.15, y), shape, (-0.35, 0.12))
        arrow(axis, (9.65, y), (12.35, y), "…", (0, 0.1))
        axis.text(
            3.5,
            6.9 if y > 3 else 0.15,
            stream,
            ha="center",
            va=("bottom" if y > 3 else "top"),
            fontsize=14,
            weight="bold",
        )
    draw_heads(axis, config)
    return figure
