"""AutoAugment's policy for CIFAR-10 (Cubuk et al. 2019), a whole batch at a time."""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional as F

from titn_lib import kernels
from titn_lib.data.image_ops import (
    Bytes,
    Draws,
    Table,
    affine,
    autocontrast,
    beside,
    brightness,
    change,
    contrast,
    equalize,
    invert,
    look_up,
    posterize,
    saturation,
    sharpness,
    solarize,
)

BLENDS = ("brightness", "color", "contrast", "sharpness")
MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
TABLES: dict[str, Callable[[Bytes, Draws], Table]] = {
    "brightness": brightness,
    "contrast": contrast,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": invert,
}
OPERATIONS = ("", *MOVES, "color", "sharpness", *TABLES)  # their numbers stand for them; "" changes nothing
# Each line is one of the 25 policies: two operations, each with its chance and its strength (0–9).
CIFAR10_POLICY = [
    line.split()
    for line in """
    invert 0.1 0        contrast 0.2 6
    rotate 0.7 2        translate_x 0.3 9
    sharpness 0.8 1     sharpness 0.9 3
    shear_y 0.5 8       translate_y 0.7 9
    autocontrast 0.5 0  equalize 0.9 0
    shear_y 0.2 7       posterize 0.3 7
    color 0.4 3         brightness 0.6 7
    sharpness 0.3 9     brightness 0.7 9
    equalize 0.6 0      equalize 0.5 0
    contrast 0.6 7      sharpness 0.6 5
    color 0.7 7         translate_x 0.5 8
    equalize 0.3 0      autocontrast 0.4 0
    translate_y 0.4 3   sharpness 0.2 6
    brightness 0.9 6    color 0.2 8
    solarize 0.5 2      invert 0.0 0
    equalize 0.2 0      autocontrast 0.6 0
    equalize 0.2 0      equalize 0.6 0
    color 0.9 9         equalize 0.6 0
    autocontrast 0.8 0  solarize 0.2 8
    brightness 0.1 3    color 0.7 0
    solarize 0.4 5      autocontrast 0.9 0
    translate_y 0.9 9   translate_y 0.7 9
    autocontrast 0.9 0  solarize 0.8 3
    equalize 0.8 0      invert 0.1 0
    translate_y 0.7 9   autocontrast 0.9 0
    """.strip().splitlines()
]


def magnitudes(operation: str, size: tuple[int, int]) -> np.ndarray:
    """What the strengths 0–9 mean: degrees of a turn, points of a shift, the factor of a blend beyond 1, …"""
    largest = {
        "shear_x": 0.3, "shear_y": 0.3, "translate_x": 150 / 331 * size[1], "translate_y": 150 / 331 * size[0],
        "rotate": 30.0, "brightness": 0.9, "color": 0.9, "contrast": 0.9, "sharpness": 0.9,
    }  # fmt: skip
    if operation == "posterize":
        return np.round(8 - np.arange(10) / (9 / 4))
    if operation == "solarize":
        return 255 * torch.linspace(1.0, 0.0, 10).double().numpy()
    return torch.linspace(0.0, largest.get(operation, 0.0), 10).double().numpy()  # rounded as torchvision's


@lru_cache(maxsize=100)  # a policy has a few dozen; on the device, where a step needn't wait for them
def origins(move: str, how: float, height: int, width: int, device: torch.device) -> Int64[Tensor, "height width"]:
    """Where each point of a moved image comes from: counted from 1, row by row; 0 from outside."""
    places = torch.arange(1, height * width + 1).view(1, 1, height, width)
    how_by = {name: how if name == move else 0.0 for name in MOVES}
    shear_x, shear_y = (float(np.degrees(np.arctan(how_by[name]))) for name in ("shear_x", "shear_y"))
    shift = float(np.trunc(how_by["translate_x"])), float(np.trunc(how_by["translate_y"]))
    return affine(places, -how_by["rotate"], shift, 1.0, (shear_x, shear_y), "shear" in move)[0, 0].long().to(device)


def remap_pixels(images: Bytes, operation: np.ndarray, how: Draws) -> Bytes:
    """To each image its own move."""
    moves, which = np.unique(operation + 1j * how, return_inverse=True)  # pairs
    place = (*images.shape[-2:], images.device)
    table = torch.stack([origins(OPERATIONS[int(move.real)], move.imag, *place) for move in moves.tolist()])
    rows = beside(which, images)
    if kernels.can_use_image_ops(images):
        return kernels.move(images, table, rows)
    points = F.pad(images.flatten(2), [1, 0])  # the first is black
    return points.gather(2, table[rows].flatten(1)[:, None].expand_as(images.flatten(2))).view_as(images)


def apply(images: Bytes, operation: np.ndarray, value: Draws) -> Bytes:
    """To each image its own operation (a number of `OPERATIONS`) with its own signed strength."""
    first_table = len(OPERATIONS) - len(TABLES)
    moved = np.flatnonzero((operation > 0) & (operation <= len(MOVES)))
    changed = change(images.clone(), moved, lambda part: remap_pixels(part, operation[moved], value[moved]))
    for name, blending in (("color", saturation), ("sharpness", sharpness)):
        its = np.flatnonzero(operation == OPERATIONS.index(name))
        change(changed, its, partial(blending, factor=1.0 + value[its]))
    tabled = np.flatnonzero(operation >= first_table)

    def from_tables(part: Bytes) -> Bytes:
        table = torch.empty(*part.shape[:2], 1, 256, dtype=torch.uint8, device=images.device)
        for number, name in enumerate(OPERATIONS[first_table:], first_table):
            its = np.flatnonzero(operation[tabled] == number)
            if len(its):
                at = beside(its, images)
                made = TABLES[name](part.index_select(0, at), value[tabled[its]] + (1.0 if name in BLENDS else 0.0))
                table[at] = made
        return look_up(part, table)

    return change(changed, tabled, from_tables)


@cache
def cifar10_policy(size: tuple[int, int]) -> Sequence[tuple[np.ndarray, ...]]:
    """For first and second operation, of the 25 policies each: operation, chance, strength, whether it has a sign."""
    parts = []
    for first in (0, 3):
        names, chances, levels = zip(*(line[first : first + 3] for line in CIFAR10_POLICY), strict=True)
        numbers = np.array([OPERATIONS.index(name) for name in names])
        values = np.array([magnitudes(n, size)[int(level)] for n, level in zip(names, levels, strict=True)])
        parts.append((numbers, np.array(chances, dtype=float), values, np.isin(names, [*MOVES, *BLENDS])))
    return parts


def auto_augment(images: Bytes, rng: np.random.Generator) -> Bytes:
    """One of the 25 policies for each image."""
    batch = len(images)
    policy = rng.integers(len(CIFAR10_POLICY), size=batch)
    for operations, chances, values, signed in cifar10_policy((images.shape[-2], images.shape[-1])):
        sign = np.where(signed[policy] & (rng.random(batch) <= 0.5), -1.0, 1.0)
        happens = rng.random(batch) <= chances[policy]
        images = apply(images, np.where(happens, operations[policy], 0), values[policy] * sign)
    return images
