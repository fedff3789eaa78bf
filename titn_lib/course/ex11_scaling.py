"""Exercises of 11_scaling."""

import copy
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib.course.checks import NOT_YET, Verdict, all_of, as_number, compare, describe, number, unwritten
from titn_lib.training.config import Recipe
from titn_lib.training.optim import learning_rate

Schedule = Callable[[int, int, int, float, float], float]


def rate(step: int, steps: int, warmup: int, peak: float, floor: float) -> float:
    """The library's learning rate, in a run of one epoch of `steps` steps."""
    return learning_rate(Recipe(epochs=1, lr=peak, min_lr=floor, warmup_epochs=warmup / steps), step, steps)


def cosine(progress: float, peak: float, floor: float) -> float:
    return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2


def rises(part: Schedule) -> Schedule:
    """The given warm-up, followed by the right decay."""
    return lambda t, n, w, p, f: (part if t < w else rate)(t, n, w, p, f)


def falls(part: Schedule) -> Schedule:
    """The right warm-up, followed by the given decay."""
    return lambda t, n, w, p, f: (rate if t < w else part)(t, n, w, p, f)


def rate_mistakes() -> dict[str, Schedule]:
    """Schedules that go wrong as readers do, each with the reason."""
    # t, n, w, p, f: step, steps, warm-up steps, peak, floor
    return {
        "there is no warm-up: the cosine runs from the first step to the last": (
            lambda t, n, w, p, f: cosine(t / (n - 1), p, f)
        ),
        "the rate is at its peak all through the warm-up": rises(lambda t, n, w, p, f: p),
        "the cosine runs over a whole period: down, and up again": falls(
            lambda t, n, w, p, f: cosine(2 * (t - w) / (n - 1 - w), p, f)
        ),
        "the warm-up starts at zero, so the first step does nothing; it should start at peak / warmup_steps": rises(
            lambda t, n, w, p, f: p * t / w
        ),
        "the warm-up starts from the floor; it should rise from zero": rises(
            lambda t, n, w, p, f: f + (p - f) * (t + 1) / w
        ),
        "the cosine decays during the warm-up: measure its progress from the end of the warm-up": falls(
            lambda t, n, w, p, f: cosine(t / (n - 1), p, f)
        ),
        "the cosine is as long as the whole run and is cut off: it should not include the warm-up's steps": falls(
            lambda t, n, w, p, f: cosine((t - w) / (n - 1), p, f)
        ),
        "the last step is one step away from the floor: the last of n steps is number n - 1": falls(
            lambda t, n, w, p, f: cosine((t - w) / (n - w), p, f)
        ),
        "the peak comes once only: the first step after the warm-up should have it, too": falls(
            lambda t, n, w, p, f: cosine((t + 1 - w) / (n - w), p, f)
        ),
        "the cosine goes down to zero and not to the floor": falls(lambda t, n, w, p, f: rate(t, n, w, p, 0.0)),
        "the cosine goes down to zero, and what is below the floor is cut off": falls(
            lambda t, n, w, p, f: max(f, rate(t, n, w, p, 0.0))
        ),
        "the floor is added to a cosine that goes from the peak to zero: then it starts above the peak": falls(
            lambda t, n, w, p, f: f + rate(t, n, w, p, 0.0)
        ),
        "the ½ is left out: 1 + cos goes from 2 to 0": falls(
            lambda t, n, w, p, f: f + (p - f) * (1 + math.cos(math.pi * (t - w) / (n - 1 - w)))
        ),
        "the cosine has a minus, and the rate rises": falls(lambda t, n, w, p, f: p + f - rate(t, n, w, p, f)),
        "the warm-up has a step too many: its last step is number warmup_steps - 1": falls(
            lambda t, n, w, p, f: p * (t + 1) / w if t == w else rate(t, n, w, p, f)
        ),
        "the decay is linear": falls(lambda t, n, w, p, f: p + (f - p) * (t - w) / (n - 1 - w)),
        "the decay is exponential": falls(lambda t, n, w, p, f: p * (f / p) ** ((t - w) / (n - 1 - w))),
        "it is a share of the peak; multiply by the peak": lambda t, n, w, p, f: rate(t, n, w, p, f) / p,
        "the angle is in degrees: math.cos wants radians": falls(
            lambda t, n, w, p, f: cosine(180 / math.pi * (t - w) / (n - 1 - w), p, f)
        ),
    }


def all_steps(schedule: Callable[..., Any]) -> Callable[..., Any]:
    """All steps of a run as one tensor, for `compare`."""

    def curve(steps: Tensor, warmup: Tensor, peak: Tensor, floor: Tensor) -> Any:
        rates = [schedule(step, int(steps), int(warmup), float(peak), float(floor)) for step in range(int(steps))]
        for step, rate in enumerate(rates):
            if unwritten(rate):
                return rate
            if as_number(rate) is None:
                return Verdict(False, f"in step {step} it returns {describe(rate)}; a number was asked for.")
        return torch.tensor([as_number(rate) for rate in rates])

    return curve


def check_rate(answer: Callable[..., Any]) -> Verdict:
    """Check a schedule.

    Args:
        answer: `answer(step, steps, warmup_steps, peak, floor)` returns the learning rate of a step: a linear warm-up,
            then half a cosine from peak to floor.
    """

    def inputs() -> tuple:
        steps, warmup = torch.randint(30, 60, ()), torch.randint(4, 12, ())
        return steps, warmup, 0.5 + torch.rand(()), 0.1 + 0.1 * torch.rand(())

    wrong = {name: all_steps(schedule) for name, schedule in rate_mistakes().items()}
    praise = "right, in every step of three runs."
    return compare(all_steps(answer), all_steps(rate), inputs, wrong, praise, tolerance=1e-5, what="the rates are")


# --- accumulation


def gradient(network: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(F.cross_entropy(network(images), labels), list(network.parameters())))


def parts(network: nn.Module, images: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The gradients of the parts, one row each, and the number of images in each part."""
    pairs = list(zip(images.split(size), labels.split(size), strict=True))
    rows = [torch.cat([part.flatten() for part in gradient(network, *pair)]) for pair in pairs]
    return torch.stack(rows), torch.tensor([float(len(pair[1])) for pair in pairs])


@dataclass(eq=False)
class Graph:
    """Stands for the graph of a forward pass: it lives as long as the tensors that were saved for the gradient."""

    images: int


def resulting_gradient(answer: Callable[..., Any]) -> Callable[..., Any]:
    """The gradient that a function leaves in the weights' .grad, as one tensor, or a verdict on its side effects."""

    def run(network: nn.Module, images: Tensor, labels: Tensor, size: int) -> Any:
        network.zero_grad()
        graphs: weakref.WeakSet[Graph] = weakref.WeakSet()  # those that are still in memory
        most, forward = 0, network.forward

        def counted(batch: Tensor) -> Tensor:
            nonlocal most
            graph = Graph(len(batch))
            graphs.add(graph)
            with torch.autograd.graph.saved_tensors_hooks(lambda saved: (saved, graph), lambda packed: packed[0]):
                logits = forward(batch)
            most = max(most, sum(alive.images for alive in graphs))
            return logits

        before, mode = copy.deepcopy(network.state_dict()), network.training
        network.forward = counted
        try:
            returned = answer(network, images, labels, size)
        finally:
            del network.forward
        weights = list(network.parameters())
        if all(weight.grad is None for weight in weights):
            return (
                ... if returned is None else Verdict(False, "nothing is in the weights' .grad: backward() adds there.")
            )
        if most > size:
            return Verdict(
                False, f"{most} images are in memory at once, and {size} are allowed: backward() frees them."
            )
        if network.training != mode or any(
            not torch.equal(before[name], weight) for name, weight in network.state_dict().items()
        ):
            return Verdict(False, "it changes the network; only the weights' .grad should change.")
        grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        return torch.cat([grad.flatten() for grad in grads])

    return run


def small_network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 5)).double()


def inputs_of(count: int, size: int) -> Callable[[], tuple]:
    return lambda: (
        small_network(), torch.randn(count, 3, 2, 2, dtype=torch.float64), torch.randint(5, (count,)), size,
    )  # fmt: skip


def true_gradient(network: nn.Module, images: Tensor, labels: Tensor, size: int) -> Tensor:
    return torch.cat([part.flatten() for part in gradient(network, images, labels)])


def added(network: nn.Module, images: Tensor, labels: Tensor, size: int) -> Tensor:
    return parts(network, images, labels, size)[0].sum(dim=0)


def last_only(network: nn.Module, images: Tensor, labels: Tensor, size: int) -> Tensor:
    return parts(network, images, labels, size)[0][-1]


def check_accumulate(answer: Callable[..., Any]) -> Verdict:
    """Check gradient accumulation.

    Args:
        answer: `answer(network, images, labels, size)` leaves the gradient of the whole batch's mean loss in .grad of
            the weights, with at most `size` images in a forward pass.
    """

    def all_alike(network: nn.Module, images: Tensor, labels: Tensor, size: int) -> Tensor:
        return parts(network, images, labels, size)[0].mean(dim=0)

    def by_size(network: nn.Module, images: Tensor, labels: Tensor, size: int) -> Tensor:
        rows, counts = parts(network, images, labels, size)
        return (rows * counts[:, None]).sum(dim=0)

    def by_full_parts(network: nn.Module, images: Tensor, labels: Tensor, size: int) -> Tensor:
        return added(network, images, labels, size) * size / len(labels)

    def whole_parts(network: nn.Module, images: Tensor, labels: Tensor, size: int) -> Tensor:
        rows, counts = parts(network, images, labels, size)
        return (rows * counts[:, None])[counts == size].sum(dim=0) / counts[counts == size].sum()

    def last_share(network: nn.Module, images: Tensor, labels: Tensor, size: int) -> Tensor:
        rows, counts = parts(network, images, labels, size)
        return rows[-1] * counts[-1] / counts.sum()

    mistakes = {
        "all parts have the same weight, though the last is smaller": all_alike,
        "the parts' gradients are summed and not divided": added,
        "the sum over images is not divided by their number": by_size,
        "every part is weighted as if it were full; the last isn't": by_full_parts,
        "the images left over at the end are left out": whole_parts,
        "only the last part is left: the gradients were set to zero in between": last_only,
        "only the last part is left, with its weight: the gradients were set to zero in between": last_share,
    }
    praise = "right, on three batches whose last part is smaller."
    return compare(resulting_gradient(answer), true_gradient, inputs_of(26, 8), mistakes, praise, tolerance=1e-6)


def check_forget(answer: Callable[..., Any], sgd: Any, adamw: Any) -> Verdict:
    """Check accumulation without the division.

    Args:
        answer: as in `check_accumulate`, but it sums the gradients of equal parts.
        sgd, adamw: the factors by which the first step of each optimizer grows.
    """

    def squared(network: nn.Module, images: Tensor, labels: Tensor, size: int) -> Tensor:
        return 4 * added(network, images, labels, size)

    def by_size(network: nn.Module, images: Tensor, labels: Tensor, size: int) -> Tensor:
        return size * added(network, images, labels, size)

    mistakes = {
        "the parts are divided by their number, so nothing is broken": true_gradient,
        "only the last part is left: the gradients were set to zero in between": last_only,
        "the parts are multiplied by their number": squared,
        "the images' losses are summed and not averaged, which goes further than asked": by_size,
    }
    broken = compare(resulting_gradient(answer), added, inputs_of(32, 8), mistakes, tolerance=1e-6)
    if not broken.right:
        return broken
    if unwritten(sgd, adamw):
        return Verdict(False, f"broken as asked. Now the two factors: {NOT_YET.message}")
    return all_of(
        sgd_times=number(
            sgd,
            4,
            {1: "plain SGD's step is the learning rate times the gradient.", 2: "no root is taken in plain SGD.",
             0.25: "the gradient gets longer, not shorter.", 16: "each part has four times its weight, once."},
        ),
        adamw_times=number(
            adamw,
            1,
            {4: "AdamW divides by the root of the gradient's mean square, which is four times as large, too.",
             2: "the root is taken of a square: of 4², not of 4.", 0.25: "numerator and denominator grow alike.",
             0: "it still moves."},
            "right: four times as long with SGD, and with AdamW unchanged (but for its tiny ε). So with AdamW "
            "the bug stays hidden, until gradients are clipped.",
        ),
    )  # fmt: skip


def check_costs(steps: Any, total: Any, state: Any) -> Verdict:
    """Check three costs of the published recipe.

    Args:
        steps: in an epoch of 45,000 images in batches of 1,024.
        total: steps in 350 epochs.
        state: bytes of titn_paper's weights and AdamW state in float32.
    """
    weights = 5_821_280
    return all_of(
        steps_in_an_epoch=number(
            steps,
            43,
            {
                44: "the last, incomplete batch is left out.",
                45_000 / 1024: "steps are whole; the incomplete batch is left out.",
                48: "those are 50,000 images; a tenth is held out.",
                49: "those are 50,000 images; a tenth is held out, and the incomplete batch is left out.",
                351: "that is for batches of 128.",
            },
        ),
        steps_in_all=number(
            total,
            15_050,
            {
                15_400: "the last, incomplete batch of every epoch is left out.",
                15_380: "the incomplete batch at an epoch's end does not go into the next epoch.",
                350 * 45_000 / 1024: "the incomplete batch at an epoch's end does not go into the next epoch.",
                25_800: "that is for the 600 epochs on CIFAR-100.",
                16_800: "those are 50,000 images; a tenth is held out.",
                15_750_000: "those are images.",
            },
        ),
        state_bytes=number(
            state,
            12 * weights,
            {
                3 * weights: "those are values; each has four bytes in float32.",
                4 * weights: "those are the weights alone.",
                8 * weights: "AdamW keeps two values for each weight; the weight itself makes three.",
                16 * weights: "the gradients were not asked for.",
                6 * weights: "that is two bytes a value: float32 has four.",
                12 * 5_856_020: "that is the model with 100 classes.",
                weights: "that is the number of weights.",
            },
            "all three are right: 70 million bytes, of which the weights are a third.",
            within=0.003,  # three digits will do
        ),
    )
