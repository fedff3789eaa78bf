"""The checks of 11_scaling detect wrong answers and say what is wrong."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from titn_lib import count_parameters, create_model
from titn_lib.course import ex11_scaling as exercise
from titn_lib.training.config import Recipe
from titn_lib.training.optim import learning_rate, make_optimizer


def cosine(along, peak, floor):
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * along))


def rate(step, steps, warmup, peak, floor):
    return peak * (step + 1) / warmup if step < warmup else cosine((step - warmup) / (steps - warmup - 1), peak, floor)


def as_the_library(step, steps, warmup, peak, floor):
    recipe = Recipe(epochs=1, lr=peak, min_lr=floor, warmup_epochs=warmup / steps)
    return learning_rate(recipe, step, steps)


def as_a_tensor(*arguments):
    return torch.tensor(rate(*arguments))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (rate, "✓"),
        (as_the_library, "✓"),
        (as_a_tensor, "✓"),
        (lambda t, n, w, p, f: cosine(t / (n - 1), p, f), "there is no warm-up"),
        (lambda t, n, w, p, f: rate(max(t, w), n, w, p, f), "at its peak all through the warm-up"),
        (lambda t, n, w, p, f: rate(t, n, w, p, f) if t < w else cosine(2 * (t - w) / (n - w - 1), p, f),
         "over a whole period"),
        (lambda t, n, w, p, f: p * t / w if t < w else rate(t, n, w, p, f), "starts at zero"),
        (lambda t, n, w, p, f: f + (p - f) * (t + 1) / w if t < w else rate(t, n, w, p, f), "starts from the floor"),
        (lambda t, n, w, p, f: rate(t, n, w, p, f) if t < w else cosine(t / (n - 1), p, f), "decays during the"),
        (lambda t, n, w, p, f: rate(t, n, w, p, f) if t < w else cosine((t - w) / (n - 1), p, f), "is cut off: it"),
        (lambda t, n, w, p, f: rate(t, n, w, p, f) if t < w else cosine((t - w) / (n - w), p, f), "number n - 1"),
        (lambda t, n, w, p, f: rate(t, n, w, p, f) if t < w else cosine((t + 1 - w) / (n - w), p, f), "once only"),
        (lambda t, n, w, p, f: rate(t, n, w, p, 0), "goes down to zero and not to the floor"),
        (lambda t, n, w, p, f: rate(t, n, w, p, 0) if t < w else max(f, rate(t, n, w, p, 0)), "below the floor is cut"),
        (lambda t, n, w, p, f: rate(t, n, w, p, 0) + (f if t >= w else 0), "above the peak"),
        (lambda t, n, w, p, f: rate(t, n, w, p, f) if t < w else p + (f - p) * (t - w) / (n - w - 1), "is linear"),
        (lambda t, n, w, p, f: rate(t, n, w, p, f) if t < w else
         f + (p - f) * (1 + math.cos(180 * (t - w) / (n - w - 1))) / 2, "in degrees"),
        (lambda t, n, w, p, f: rate(t, n, w, p, f) if t < w else
         f + (p - f) * (1 + math.cos(math.pi * (t - w) / (n - w - 1))), "the ½ is left out"),
        (lambda t, n, w, p, f: rate(t, n, w, p, f) if t < w else p + f - rate(t, n, w, p, f), "and the rate rises"),
        (lambda t, n, w, p, f: p * (t + 1) / w if t <= w else rate(t, n, w, p, f), "a step too many"),
        (lambda t, n, w, p, f: rate(t, n, w, p, f) if t < w else p * (f / p) ** ((t - w) / (n - w - 1)), "exponential"),
        (lambda t, n, w, p, f: rate(t, n, w, p, f) / p, "a share of the peak"),
        (lambda *a: np.float64(rate(*a)), "✓"),
        (lambda *a: torch.tensor([rate(*a)]), "✓"),
        (lambda t, n, w, p, f: True, "in step 0 it returns bool True"),
        (lambda t, n, w, p, f: p, "✗ the shape is right, the rates are off"),
        (lambda *_: None, "it returns None"),
        (lambda *_: ..., "not written yet"),
        (lambda *_: "quick", "in step 0 it returns str 'quick'; a number was asked for"),
        (lambda t, n, w, p, f: rate(t, n, w, p, f) if t < w else None, "it returns None: is the `return` missing"),
        (lambda *_: math.nan, "not a number (nan)"),
    ],
)  # fmt: skip
def test_rate(answer, says, expect):
    expect(says, exercise.check_rate, answer, slow=True)


def accumulator(weigh, zero=False, keep=lambda part, size: True):
    """Accumulation with the given weight of a part; perhaps with the gradients set to zero in between."""

    def answer(network, images, labels, size):
        network.zero_grad()
        for some, theirs in zip(images.split(size), labels.split(size), strict=True):
            if zero:
                network.zero_grad()
            if keep(len(some), size):
                (weigh(len(some), len(images), size) * F.cross_entropy(network(some), theirs)).backward()

    return answer


right = accumulator(lambda part, whole, size: part / whole)
undivided = accumulator(lambda *_: 1)


def by_sums(network, images, labels, size):
    for some, theirs in zip(images.split(size), labels.split(size), strict=True):
        (F.cross_entropy(network(some), theirs, reduction="sum") / len(images)).backward()


def summed_losses(network, images, labels, size):
    for start in range(0, len(images), size):
        loss = F.cross_entropy(network(images[start : start + size]), labels[start : start + size], reduction="sum")
        loss.backward(torch.tensor(1 / size, dtype=loss.dtype))


def at_once(network, images, labels, size):
    F.cross_entropy(network(images), labels).backward()


def backwards_at_the_end(network, images, labels, size):
    parts = zip(images.split(size), labels.split(size), strict=True)
    sum(F.cross_entropy(network(some), theirs, reduction="sum") / len(images) for some, theirs in parts).backward()


def by_autograd(network, images, labels, size):
    weights = list(network.parameters())
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    for some, theirs in zip(images.split(size), labels.split(size), strict=True):
        loss = F.cross_entropy(network(some), theirs, reduction="sum") / len(images)
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad += gradient


def one_by_one(network, images, labels, size):
    for image, label in zip(images, labels, strict=True):
        (F.cross_entropy(network(image[None]), label[None]) / len(images)).backward()


def accuracy_first(network, images, labels, size, gradient=False):
    """Count what each part gets right before its gradient is taken: then nothing waits in memory."""
    network.zero_grad()
    for some, theirs in zip(images.split(size), labels.split(size), strict=True):
        with torch.set_grad_enabled(gradient):
            (network(some).argmax(dim=1) == theirs).sum()
        loss = F.cross_entropy(network(some), theirs, reduction="sum") / len(images)
        loss.backward()


def kept_graphs(network, images, labels, size):
    for some, theirs in zip(images.split(size), labels.split(size), strict=True):
        loss = F.cross_entropy(network(some), theirs, reduction="sum") / len(images)
        loss.backward(retain_graph=True)
        network.losses = [*getattr(network, "losses", []), loss]


def in_evaluation_mode(network, *rest):
    right(network.eval(), *rest)


def with_a_step(network, *rest):
    right(network, *rest)
    torch.optim.SGD(network.parameters(), lr=0.1).step()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (right, "✓"),
        (by_sums, "✓"),
        (at_once, "26 images are in memory at once, and 8 are allowed"),
        (backwards_at_the_end, "26 images are in memory at once"),
        (by_autograd, "✓"),
        (one_by_one, "✓"),
        (accuracy_first, "✓"),
        (lambda *a: accuracy_first(*a, gradient=True), "✓"),
        (accumulator(lambda part, whole, size: torch.tensor(part / whole)), "✓"),  # float32
        (kept_graphs, "26 images are in memory at once"),
        (in_evaluation_mode, "it changes the network"),
        (with_a_step, "it changes the network"),
        (accumulator(lambda part, whole, size: 1 / math.ceil(whole / size)), "all parts have the same weight"),
        (undivided, "summed and not divided"),
        (accumulator(lambda part, whole, size: part), "not divided by their number"),
        (accumulator(lambda part, whole, size: size / whole), "as if it were full"),
        (accumulator(lambda part, whole, size: size / (whole - whole % size), keep=lambda part, size: part == size),
         "left over at the end are left out"),
        (accumulator(lambda *_: 1, zero=True), "only the last part is left: the gradients"),
        (accumulator(lambda part, whole, size: part / whole, zero=True), "only the last part is left, with its weight"),
        (accumulator(lambda *_: 0.5), "✗ the shape is right"),
        (lambda *_: None, "not written yet"),
        (lambda *_: 3, "nothing is in the weights' .grad"),
        (lambda network, images, labels, size: images[100], "it stopped with IndexError"),
    ],
)  # fmt: skip
def test_accumulate(answer, says, expect):
    expect(says, exercise.check_accumulate, answer)


@pytest.mark.parametrize(
    ("answer", "factors", "says"),
    [
        (undivided, (4, 1), "✓"),
        (summed_losses, (torch.tensor(4.0), np.float64(1)), "✓"),
        (undivided, (4, 4), "AdamW divides by the root"),
        (undivided, (2, 1), "no root"),
        (undivided, (1, 1), "times the gradient"),
        (undivided, (0.25, 1), "longer, not shorter"),
        (undivided, (16, 1), "four times its weight, once"),
        (undivided, (4, 2), "of 4², not of 4"),
        (undivided, (4, 0.25), "grow alike"),
        (undivided, (4, 0), "it still moves"),
        (undivided, (..., ...), "Now the two factors"),
        (undivided, (4, None), "Now the two factors"),
        (right, (4, 1), "nothing is broken"),
        (accumulator(lambda *_: 1, zero=True), (4, 1), "only the last part"),
        (accumulator(lambda part, whole, size: part), (4, 1), "further than asked"),
        (accumulator(lambda *_: 4), (4, 1), "multiplied by their number"),
        (lambda *_: None, (..., ...), "not written yet"),
    ],
)
def test_forget(answer, factors, says, expect):
    expect(says, exercise.check_forget, answer, *factors)


def test_the_costs_are_the_library_s():
    model = create_model("titn_paper")
    optimizer = make_optimizer(model, Recipe(optimizer="adamw"))
    sum(logits.sum() for logits in model(torch.randn(1, 3, 32, 32))).backward()
    optimizer.step()
    kept = [value for memory in optimizer.state.values() for value in memory.values() if value.ndim]
    size = sum(tensor.numel() * tensor.element_size() for tensor in [*kept, *model.parameters()])
    assert size == 12 * count_parameters(model)
    assert exercise.check_costs(45_000 // 1024, 350 * (45_000 // 1024), size).right


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ((..., 1, 1), "not written yet"),
        ((44, 15_050, 69_855_360), "incomplete batch is left out"),
        ((45_000 / 1024, 15_050, 69_855_360), "steps are whole"),
        ((50_000 // 1024, 15_050, 69_855_360), "a tenth is held out."),
        ((50_000 // 1024 + 1, 15_050, 69_855_360), "a tenth is held out, and the incomplete"),
        ((45_000 // 128, 15_050, 69_855_360), "batches of 128"),
        ((43, 350 * 44, 69_855_360), "of every epoch"),
        ((43, 350 * 45_000 // 1024, 69_855_360), "does not go into the next epoch"),
        ((43, 350 * 45_000 / 1024, 69_855_360), "does not go into the next epoch"),
        ((43, 600 * 43, 69_855_360), "on CIFAR-100"),
        ((43, 350 * 48, 69_855_360), "a tenth is held out"),
        ((43, 350 * 45_000, 69_855_360), "those are images"),
        ((43, 15_050, 5_821_280), "the number of weights"),
        ((43, 15_050, 3 * 5_821_280), "each has four bytes"),
        ((43, 15_050, 8 * 5_821_280), "the weight itself makes three"),
        ((43, 15_050, 6 * 5_821_280), "two bytes a value"),
        ((43, 15_050, 12 * 5_856_020), "100 classes"),
        ((43, 15_050, 23_285_120), "the weights alone"),
        ((43, 15_050, 93_140_480), "gradients were not asked for"),
        ((43, 15_050, 69_000_000), "too small"),
        ((43, 15_050, 69.9e6), "✓"),
        ((43, 15_050, None), "not written yet"),
    ],
)
def test_costs(answers, says):
    assert says in repr(exercise.check_costs(*answers))
