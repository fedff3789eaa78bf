"""CutMix and MixUp, and the targets of mixed images."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from titn_lib.data.image_ops import Bytes, beside


class MixedTargets(NamedTuple):
    """The labels of images that may be mixtures of two: `weight` of the first class, the rest of the second. Of
    images that aren't, both are the label: `MixedTargets(labels, labels)`."""

    a: Int[Tensor, " batch"]
    b: Int[Tensor, " batch"]
    lam: float = 1.0

    @property
    def dominant(self) -> Int[Tensor, " batch"]:
        """Of each image the class with the greater share."""
        return self.a if self.lam >= 0.5 else self.b


def cutmix_box(height: int, width: int, weight: float, row: float, column: float) -> tuple[slice, slice, float]:
    """The box that CutMix pastes, and the share of the image that is left (Yun et al. 2019, eq. 2).

    The box has √(1 − weight) of each side and its middle at (row, column), both 0–1; it is clipped at the border. The
    share is computed from the clipped box. Before clipping its sides are even, as torchvision's are; in TITN's code the
    edges are floats that are rounded. There, labels are weighed by the share that was drawn: on average, it is 0.18 off
    what is left of the image.
    """
    side = (1 - weight) ** 0.5
    rows, columns = (
        slice(
            int(np.clip(int(middle * length) - int(length * side) // 2, 0, length)),
            int(np.clip(int(middle * length) + int(length * side) // 2, 0, length)),
        )
        for middle, length in ((row, height), (column, width))
    )
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return rows, columns, 1 - area / (height * width)


def cutmix(
    images: Tensor, labels: Int64[Tensor, " batch"], rng: np.random.Generator, alpha: float = 1.0
) -> tuple[Tensor, MixedTargets]:
    """Paste the same box of another image of the batch into every image; one λ ~ Beta(α, α) for the batch."""
    height, width = images.shape[-2:]
    rows, columns, weight = cutmix_box(height, width, rng.beta(alpha, alpha), rng.random(), rng.random())
    partner = beside(rng.permutation(len(labels)), labels)
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[:, :, rows, columns][partner]
    return mixed, MixedTargets(labels, labels[partner], weight)


def mixup(
    images: Tensor, labels: Int64[Tensor, " batch"], rng: np.random.Generator, alpha: float = 1.0
) -> tuple[Tensor, MixedTargets]:
    """λ of every image and 1 − λ of another of the batch (Zhang et al. 2018); one λ ~ Beta(α, α) for the batch. Bytes
    stay bytes."""
    weight = rng.beta(alpha, alpha)
    partner = beside(rng.permutation(len(labels)), labels)
    mixed = torch.lerp(images[partner].float(), images.float(), weight)
    mixed = mixed if images.is_floating_point() else mixed.round_()
    return mixed.to(images.dtype), MixedTargets(labels, labels[partner], weight)


def mix_batch(
    images: Bytes, labels: Int64[Tensor, " batch"], rng: np.random.Generator, cutmix_alpha: float, mixup_alpha: float
) -> tuple[Bytes, MixedTargets]:
    """CutMix or MixUp, whichever has an α; by a coin, if both have."""
    if cutmix_alpha and (not mixup_alpha or rng.random() < 0.5):
        return cutmix(images, labels, rng, cutmix_alpha)
    return mixup(images, labels, rng, mixup_alpha)
