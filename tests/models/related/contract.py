"""Checks for every related system: shapes, gradients, files, and that it learns."""

import pytest
import torch
from torch.nn import functional as F

from titn_lib import TITNError, create_model, load_model, save_model
from titn_lib.data.datasets import load_dataset
from titn_lib.data.transforms import normalize
from titn_lib.models.layers import TokenLogits
from titn_lib.training.config import Recipe
from titn_lib.training.distributed import choose_precision
from titn_lib.training.optim import make_optimizer

HALF = choose_precision("cpu") == "bf16-mixed"  # without instructions for it, bfloat16 takes minutes


def class_logits(logits):
    return logits.class_logits if isinstance(logits, TokenLogits) else logits


def check_shapes(name, **settings):
    """Its own size and another, in training and evaluation; images of a third size are refused."""
    for size in [(32, 32), (16, 24)]:
        model = create_model(name, num_classes=7, in_channels=2, image_size=size, **settings)
        for training in (True, False):
            logits = model.train(training)(torch.randn(3, 2, *size))
            assert class_logits(logits).shape == (3, 7)
        with pytest.raises(TITNError, match="expects batches of 2×"):
            model(torch.zeros(3, 2, 40, 40))


def check_gradients(name, **settings):
    """Every parameter has a gradient."""
    model = create_model(name, **settings).train()
    logits = model(torch.randn(8, 3, 32, 32))
    parts = logits if isinstance(logits, TokenLogits) else [logits]
    sum(F.cross_entropy(part, torch.arange(8)) for part in parts).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert still == []


def check_file(name, folder, **settings):
    """After some training, a file gives back the same logits to the last bit."""
    model = create_model(name, in_channels=1, **settings)
    learn(model, steps=2)
    save_model(model, folder / "m.safetensors")
    again = load_model(folder / "m.safetensors")
    images = torch.randn(4, 1, 32, 32)
    assert again.config == model.config
    assert torch.equal(again(images), model.eval()(images))


def check_learns(name, bound, steps=30, **settings):
    """A few steps on 64 digits of 16×16, as in training, bring the loss from that of guessing below a bound."""
    losses = learn(create_model(name, in_channels=1, image_size=(16, 16), **settings), steps)
    assert losses[0] > 2
    assert losses[-1] < bound


def learn(model, steps):
    data = load_dataset("digits", model.config.image_size)
    images, labels = normalize(data.train.images[:64], data.mean, data.std), data.train.labels[:64]
    optimizer, losses = make_optimizer(model.train(), Recipe(lr=1e-3)), []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
            logits = model(images)
        parts = logits if isinstance(logits, TokenLogits) else [logits]
        loss = sum(F.cross_entropy(part.float(), labels) for part in parts) / len(parts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
