"""AutoAugment's policy for CIFAR-10 (Cubuk et al. 2019, arXiv 1805.09501), on a batch of images at a time."""

from collections.abc import Callable
from functools import cache, lru_cache, partial

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional as F

from titn_lib import kernels
from titn_lib.data.image_ops import (
    LookupTable,
    RandomValues,
    UInt8Images,
    affine,
    apply_lut,
    apply_to_subset,
    autocontrast,
    brightness,
    contrast,
    equalize,
    invert,
    posterize,
    saturation,
    sharpness,
    solarize,
    to_device_of,
)

BLEND_OPS = ("brightness", "color", "contrast", "sharpness")  # their magnitude is a factor's distance from 1
GEOMETRIC_OPS = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
LUT_OPS: dict[str, Callable[[UInt8Images, RandomValues], LookupTable]] = {
    "brightness": brightness,
    "contrast": contrast,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": invert,
}
OPERATIONS = ("", *GEOMETRIC_OPS, "color", "sharpness", *LUT_OPS)  # an operation is its index here; "" changes nothing
# Each line is one of the 25 policies: two operations, each with its probability and its magnitude (level 0–9).
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
    """The magnitudes of the levels 0–9: degrees of rotation, pixels of translation, a blend factor's distance from 1, …

    Args:
        size: height and width of the images.
    """
    largest = {
        "shear_x": 0.3, "shear_y": 0.3, "translate_x": 150 / 331 * size[1], "translate_y": 150 / 331 * size[0],
        "rotate": 30.0, "brightness": 0.9, "color": 0.9, "contrast": 0.9, "sharpness": 0.9,
    }  # fmt: skip
    if operation == "posterize":
        return np.round(8 - np.arange(10) / (9 / 4))
    if operation == "solarize":
        return 255 * torch.linspace(1.0, 0.0, 10).double().numpy()
    return torch.linspace(0.0, largest.get(operation, 0.0), 10).double().numpy()  # rounded as torchvision's


@lru_cache(maxsize=100)  # a policy has a few dozen of them; kept on the device, so that no step waits for a copy
def source_indices(
    operation: str, magnitude: float, height: int, width: int, device: torch.device
) -> Int64[Tensor, "height width"]:
    """For each pixel of the transformed image the index of its source pixel: row by row from 1, and 0 for outside."""
    indices = torch.arange(1, height * width + 1).view(1, 1, height, width)
    magnitude_of = {name: magnitude if name == operation else 0.0 for name in GEOMETRIC_OPS}
    shear = tuple(float(np.degrees(np.arctan(magnitude_of[name]))) for name in ("shear_x", "shear_y"))
    translate = tuple(float(np.trunc(magnitude_of[name])) for name in ("translate_x", "translate_y"))
    center = (0.0, 0.0) if "shear" in operation else None
    source = affine(indices, -magnitude_of["rotate"], translate, shear=shear, center=center)  # type: ignore[arg-type]
    return source[0, 0].long().to(device)


def remap_pixels(images: UInt8Images, operation: np.ndarray, magnitude: RandomValues) -> UInt8Images:
    """Apply to each image its own geometric operation."""
    pairs = list(zip(operation.tolist(), magnitude.tolist(), strict=True))
    index_of = {pair: index for index, pair in enumerate(dict.fromkeys(pairs))}
    where = (*images.shape[-2:], images.device)
    maps = torch.stack([source_indices(OPERATIONS[op], value, *where) for op, value in index_of])
    chosen = to_device_of(np.array([index_of[pair] for pair in pairs]), images)
    if kernels.can_use_image_ops(images):
        return kernels.remap(images, maps, chosen)
    pixels = F.pad(images.flatten(2), [1, 0])  # index 0 is black
    return pixels.gather(2, maps[chosen].flatten(1)[:, None].expand_as(images.flatten(2))).view_as(images)


def apply(images: UInt8Images, operation: np.ndarray, magnitude: RandomValues) -> UInt8Images:
    """Apply to each image its own operation (an index of `OPERATIONS`) with its own signed magnitude."""
    moved = np.flatnonzero((operation > 0) & (operation <= len(GEOMETRIC_OPS)))
    result = apply_to_subset(images.clone(), moved, lambda part: remap_pixels(part, operation[moved], magnitude[moved]))
    for name, blend_op in (("color", saturation), ("sharpness", sharpness)):
        blended = np.flatnonzero(operation == OPERATIONS.index(name))
        apply_to_subset(result, blended, partial(blend_op, factor=1.0 + magnitude[blended]))
    mapped = np.flatnonzero(operation >= len(OPERATIONS) - len(LUT_OPS))
    return apply_to_subset(
        result, mapped, lambda part: apply_lut(part, lookup_tables(part, operation[mapped], magnitude[mapped]))
    )


def lookup_tables(images: UInt8Images, operation: np.ndarray, magnitude: RandomValues) -> LookupTable:
    """The table of each image's own operation, one of `LUT_OPS`."""
    tables = torch.empty(*images.shape[:2], 1, 256, dtype=torch.uint8, device=images.device)
    for name, lut_op in LUT_OPS.items():
        chosen = np.flatnonzero(operation == OPERATIONS.index(name))
        if len(chosen):
            at = to_device_of(chosen, images)
            values = magnitude[chosen] + (1.0 if name in BLEND_OPS else 0.0)
            tables[at] = lut_op(images.index_select(0, at), values)
    return tables


PROBABILITIES = np.array([[float(line[1]), float(line[4])] for line in CIFAR10_POLICY])  # "policy half"
SIGNED = np.isin([[line[0], line[3]] for line in CIFAR10_POLICY], [*GEOMETRIC_OPS, *BLEND_OPS])


@cache
def cifar10_policy(size: tuple[int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The policies' first operations and their signed magnitudes, and the second ones.

    Each operation is there twice, with positive and negative magnitude. Index 0 changes nothing.
    """
    halves = []
    for start in (0, 3):
        names, _, levels = zip(*(line[start : start + 3] for line in CIFAR10_POLICY), strict=True)
        values = [magnitudes(name, size)[int(level)] for name, level in zip(names, levels, strict=True)]
        operations = np.array([OPERATIONS.index(name) for name in names]).repeat(2)
        signed = np.array(values).repeat(2) * np.tile([1.0, -1.0], len(names))
        halves.append((np.append(0, operations), np.append(0.0, signed)))
    return halves


def draw_policies(batch: int, rng: np.random.Generator) -> list[Int64[np.ndarray, " batch"]]:
    """For each image an index into the first half of `cifar10_policy`, and one into the second."""
    policy = rng.integers(len(CIFAR10_POLICY), size=batch)
    choices = []
    for half in range(2):
        negative = SIGNED[policy, half] & (rng.random(batch) <= 0.5)
        applied = rng.random(batch) <= PROBABILITIES[policy, half]
        choices.append(np.where(applied, 1 + 2 * policy + negative, 0))
    return choices


def auto_augment(images: UInt8Images, rng: np.random.Generator) -> UInt8Images:
    """Apply one of the 25 policies, drawn uniformly, to each image."""
    halves = cifar10_policy((images.shape[-2], images.shape[-1]))
    for (operations, values), choice in zip(halves, draw_policies(len(images), rng), strict=True):
        images = apply(images, operations[choice], values[choice])
    return images
