"""Predictions of a trained network for uint8 images."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from titn_lib.data.transforms import Preprocessing, normalize
from titn_lib.errors import TITNError, unknown
from titn_lib.validation import require_tensor

DEVICES = ("auto", "cpu", "cuda", "mps")


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, and restore every module's own mode afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def predict(
    network: nn.Module, images: Tensor, preprocessing: Preprocessing | None = None, batch_size: int | None = None
) -> Float[Tensor, "image classes"]:
    """Logits of uint8 images, in evaluation mode, on the network's device.

    The network is switched to evaluation mode meanwhile, so no other thread should use it.

    Args:
        images: "image channel height width", uint8.
        preprocessing: how the training images were normalized; by default the model's own, which `load_model` reads.
        batch_size: by default 500 for 32×32 images (4,000 on a GPU), and fewer for larger ones.

    Raises:
        TITNError: the images aren't a uint8 batch of the size that the network takes, or neither the call nor the model
            has a preprocessing.
    """
    preprocessing = preprocessing or getattr(network, "preprocessing", None)
    if preprocessing is None:
        raise TITNError(
            "predict must know how the training images were normalized: pass a Preprocessing, or load a model that was "
            "saved with one"
        )
    require_tensor(images)
    mean, std = preprocessing.mean, preprocessing.std
    if images.dtype != torch.uint8:
        raise TITNError(
            f"predict expects uint8 images (0 to 255), not {images.dtype}: read files with titn_lib.load_image, or "
            "pass normalized images to the model itself"
        )
    if images.ndim != 4 or images.shape[1] != len(mean):
        raise TITNError(
            f"predict expects images × {len(mean)} channels × height × width, not "
            f"{'×'.join(map(str, images.shape))}: a single image becomes a batch with images[None]"
        )
    first = next(network.parameters())
    most = 4_000 if first.is_cuda else 500
    batch_size = batch_size or max(1, min(most, most * 32 * 32 // images.shape[-2:].numel()))
    with eval_mode(network):
        parts = [
            network(normalize(part.to(first.device), mean, std).to(first.dtype)).float()
            for part in images.split(batch_size)
        ]
    return torch.cat(parts)


def choose_device(device: str | torch.device) -> str:
    """ "cpu", "cuda" or "mps"; for "auto", a GPU if there is one.

    Raises:
        TITNError: `device` is "cuda" or "mps", and there is no such GPU; or it is another word.
    """
    device = str(device)  # a torch.device without an index, too
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "mps" and not has_mps:
        raise TITNError("PyTorch finds no Apple GPU (MPS): choose --device cpu")
    if device == "cuda" and not has_cuda:
        raise TITNError("PyTorch finds no GPU: choose --device cpu, or install PyTorch for your GPU")
    return device if device != "auto" else "cuda" if has_cuda else "mps" if has_mps else "cpu"
