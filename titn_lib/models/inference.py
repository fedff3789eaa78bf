"""Predictions of a trained network for uint8 images."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from titn_lib.data.transforms import Preprocessing, normalize
from titn_lib.errors import TITNError


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """In evaluation mode; afterwards each part is in its own mode again: some may have been left in evaluation."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def predict(
    network: nn.Module, images: Tensor, preprocessing: Preprocessing | None, batch_size: int | None = None
) -> Float[Tensor, "image classes"]:
    """Logits of "image channel height width" bytes, in evaluation mode, on the network's device. (The mode is the
    network's: no other thread should use it meanwhile.)

    Args:
        batch_size: images at a time; by default 500 of 32×32, and as many fewer as they are larger.

    Raises:
        TITNError: the images are no batch of bytes, or of another size or number of channels than the network takes;
            or `preprocessing` is None, as that of a model that was never saved with any.
    """
    if preprocessing is None:
        raise TITNError(
            "predict must know how images were normalized: pass a Preprocessing (a model that was loaded has the one "
            "that was saved with it)"
        )
    mean, std = preprocessing.mean, preprocessing.std
    if images.dtype != torch.uint8:
        raise TITNError(
            f"predict takes images as bytes (0 to 255, uint8) and got {images.dtype}: datasets.load_image reads "
            "files so; pass images that are normalized to the model itself"
        )
    if images.ndim != 4 or images.shape[1] != len(mean):
        raise TITNError(
            f"predict takes images × {len(mean)} channels × height × width and got "
            f"{'×'.join(map(str, images.shape))}: a single image becomes a batch with images[None]"
        )
    first = next(network.parameters())
    batch_size = batch_size or max(1, min(500, 500 * 32 * 32 // images.shape[-2:].numel()))
    with eval_mode(network):
        parts = [
            network(normalize(part.to(first.device), mean, std).to(first.dtype)).float()
            for part in images.split(batch_size)
        ]
    return torch.cat(parts)
