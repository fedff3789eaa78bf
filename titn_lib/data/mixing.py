"""CutMix and MixUp, and the targets of mixed images."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from titn_lib.data.image_ops import UInt8Images, to_device_of


class MixedTargets(NamedTuple):
    """The targets of images that may be mixtures of two: λ of class `a` and 1 − λ of class `b`.

    For images that are not mixed both are the label: `MixedTargets(labels, labels)`. λ is a tensor where a CUDA graph
    must read its current value.
    """

    a: Int[Tensor, " batch"]
    b: Int[Tensor, " batch"]
    lam: float | Float[Tensor, ""] = 1.0

    @property
    def dominant(self) -> Int[Tensor, " batch"]:
        """For each image the class with the larger share."""
        if isinstance(self.lam, Tensor):
            return torch.where(self.lam >= 0.5, self.a, self.b)
        return self.a if self.lam >= 0.5 else self.b


def cutmix_box(height: int, width: int, lam: float, row: float, column: float) -> tuple[slice, slice, float]:
    """The box that CutMix pastes (Yun et al. 2019, arXiv 1905.04899, eq. 2).

    The box has √(1 − λ) of each side of the image. It is clipped at the border, and λ is recomputed from the clipped
    box. Before clipping, its sides are even numbers of image pixels, as in torchvision.

    TITN's code rounds the edges instead, and weights the labels by the λ that was drawn. On average, this λ differs by
    0.18 from the share of the image that is left.

    Args:
        lam: λ, the share of the image that should be left.
        row, column: the box's center as fractions of height and width, 0–1.

    Returns:
        Rows and columns of the box, and the share of the image that is left.
    """
    side = (1 - lam) ** 0.5
    rows, columns = (
        slice(
            int(np.clip(int(center * length) - int(length * side) // 2, 0, length)),
            int(np.clip(int(center * length) + int(length * side) // 2, 0, length)),
        )
        for center, length in ((row, height), (column, width))
    )
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return rows, columns, 1 - area / (height * width)


def cutmix(
    images: Tensor, labels: Int64[Tensor, " batch"], rng: np.random.Generator, alpha: float = 1.0
) -> tuple[Tensor, MixedTargets]:
    """CutMix: paste a box of another image of the batch into every image.

    Box and λ ~ Beta(α, α) are drawn once for the whole batch.
    """
    rows, columns, lam, permutation = draw_cutmix(images, rng, alpha)
    partner = to_device_of(permutation, labels)
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[:, :, rows, columns][partner]
    return mixed, MixedTargets(labels, labels[partner], lam)


def draw_cutmix(
    images: Tensor, rng: np.random.Generator, alpha: float = 1.0
) -> tuple[slice, slice, float, Int64[np.ndarray, " batch"]]:
    """Rows and columns of the box, λ, and for each image the one that the box is taken from."""
    height, width = images.shape[-2:]
    box = cutmix_box(height, width, rng.beta(alpha, alpha), rng.random(), rng.random())
    return *box, rng.permutation(len(images))


def mixup(
    images: Tensor, labels: Int64[Tensor, " batch"], rng: np.random.Generator, alpha: float = 1.0
) -> tuple[Tensor, MixedTargets]:
    """MixUp (Zhang et al. 2018, arXiv 1710.09412): λ · image + (1 − λ) · another image of the batch.

    λ ~ Beta(α, α) is drawn once for the whole batch. uint8 images are rounded and stay uint8.
    """
    lam = rng.beta(alpha, alpha)
    partner = to_device_of(rng.permutation(len(labels)), labels)
    mixed = torch.lerp(images[partner].float(), images.float(), lam)
    mixed = mixed if images.is_floating_point() else mixed.round_()
    return mixed.to(images.dtype), MixedTargets(labels, labels[partner], lam)


def mix_batch(
    images: UInt8Images,
    labels: Int64[Tensor, " batch"],
    rng: np.random.Generator,
    cutmix_alpha: float,
    mixup_alpha: float,
) -> tuple[UInt8Images, MixedTargets]:
    """CutMix or MixUp, whichever has an α above 0. If both have, each is chosen with probability ½."""
    if cutmix_alpha and (not mixup_alpha or rng.random() < 0.5):
        return cutmix(images, labels, rng, cutmix_alpha)
    return mixup(images, labels, rng, mixup_alpha)
