"""Exercises of 06_a_run_goes_wrong, and the twelve faulty runs in it."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib.course.checks import (
    NOT_YET,
    NOTHING,
    Verdict,
    all_of,
    call_answer,
    describe,
    max_abs_diff,
    number,
    unwritten,
)
from titn_lib.data.datasets import load_dataset
from titn_lib.data.transforms import normalize
from titn_lib.models.base import Classifier
from titn_lib.models.registry import create_model

FAULTS = {  # letter: what is wrong, and where to look for it
    "a": ("the labels are shuffled", "its training loss stays at ln 10, and its weights don't vanish"),
    "b": ("the validation images are not normalized", "its training loss is that of the healthy run"),
    "c": ("the logits go through softmax twice", "its accuracy is good for its training loss, which can't reach 1.46"),
    "d": ("the learning rate is 100 times too high", "its loss leaves ln 10 upwards in the first steps"),
    "e": ("the learning rate is 30 times too low", "its loss falls in a nearly straight line, and slowly"),
    "f": ("the weight decay is 1,000 times too high", "its loss comes back to ln 10, and its weights vanish"),
    "g": ("the gradients are never set to zero", "its gradient gets larger and larger"),
    "h": ("the softmax runs over the batch", "its loss before the first step is ln 64 and not ln 10"),
    "i": ("the optimizer has the heads' parameters only", "hardly any of its parameters have changed"),
    "j": ("the images are sorted by class", "its training loss goes up and down within every epoch"),
    "k": ("every step has the same 64 images", "its training loss is near zero, and its validation loss isn't"),
    "l": ("a pixel that is always black is divided by its standard deviation", "its loss is not a number"),
}
IMAGES, BATCH, EPOCHS, LR, WEIGHT_DECAY = 640, 64, 6, 4e-3, 0.05


@dataclass
class Curves:
    """What a run leaves behind.

    Attributes:
        train_loss: of each step's batch, before the step.
        gradient_norm: in each step.
        val_loss, val_accuracy: after each epoch.
        weight_norm: after the last step.
        changed: the share of all parameters that the run has changed.
    """

    train_loss: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    weight_norm: float = 0.0
    changed: float = 0.0


def small_titn() -> Classifier:
    """An untrained TITN for the digits, with one block."""
    torch.manual_seed(0)
    return create_model("titn_nano", num_classes=10, in_channels=1, image_size=(16, 16), depth=1, outer_width=64)


def norm(tensors: Sequence[Tensor]) -> float:
    """The Euclidean norm of all values together."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).norm().item()


def faulty_run(fault: str = "") -> Curves:
    """Train a small TITN on some of the digits with one of `FAULTS`, or with none."""
    data, network, curves = load_dataset("digits"), small_titn(), Curves()
    images, labels = normalize(data.train.images[:IMAGES], data.mean, data.std), data.train.labels[:IMAGES]
    val_images, val_labels = normalize(data.validation.images, data.mean, data.std), data.validation.labels
    if fault == "a":
        labels = labels[torch.randperm(IMAGES)]
    if fault == "b":
        val_images = data.validation.images.float()
    if fault == "l":
        images = (images - images.mean(dim=0)) / images.std(dim=0)
    parameters = list(network.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(
        network.get_submodule("heads").parameters() if fault == "i" else parameters,
        lr=LR * {"d": 100, "e": 1 / 30}.get(fault, 1),
        weight_decay=WEIGHT_DECAY * (1000 if fault == "f" else 1),
        fused=True,
    )
    for _ in range(EPOCHS):
        order = labels.argsort(stable=True) if fault == "j" else torch.randperm(IMAGES)
        for batch in order.split(BATCH):
            if fault == "k":
                batch = torch.arange(BATCH)
            network.train()
            both = network(images[batch])
            loss = (faulty_loss(both[0], labels[batch], fault) + faulty_loss(both[1], labels[batch], fault)) / 2
            if fault != "g":
                network.zero_grad()
            loss.backward()
            optimizer.step()
            curves.train_loss.append(loss.item())
            curves.gradient_norm.append(
                norm([parameter.grad for parameter in parameters if parameter.grad is not None])
            )
        with torch.no_grad():
            logits = network.eval()(val_images)
        curves.val_loss.append(F.cross_entropy(logits, val_labels).item())
        curves.val_accuracy.append((logits.argmax(dim=1) == val_labels).double().mean().item())
    curves.weight_norm = norm(parameters)
    same = sum(int((old == new).sum()) for old, new in zip(before, parameters, strict=True))
    curves.changed = 1 - same / sum(old.numel() for old in before)
    return curves


def faulty_loss(logits: Tensor, labels: Tensor, fault: str) -> Tensor:
    if fault == "c":
        logits = logits.softmax(dim=1)
    return F.nll_loss(logits.log_softmax(dim=0 if fault == "h" else 1), labels)


def hidden_faults() -> dict[int, str]:
    """The number of each run in the notebook, and its fault."""
    letters = sorted(FAULTS)
    random.Random(2502).shuffle(letters)
    return dict(enumerate(letters, start=1))


def faulty_runs() -> dict[int, Curves]:
    """Twelve runs, each with another fault. No peeking: `hidden_faults` has the answers."""
    return {run: faulty_run(fault) for run, fault in hidden_faults().items()}


def check_diagnosis(answer: Any) -> Verdict:
    """`{1: "a", 2: "b", …}`: the fault of each run, by its letter."""
    if not isinstance(answer, Mapping):
        return Verdict(False, f"it is {describe(answer)}; a dict was asked for: the number of a run, and a letter.")
    truth = hidden_faults()
    given = {run: str(letter).strip().lower() for run, letter in answer.items() if not unwritten(letter)}
    if not given:
        return NOT_YET
    if unknown := [run for run in given if run not in truth]:
        return Verdict(False, f"there is no run {unknown[0]!r}: the runs have the numbers 1 to {len(truth)}.")
    if unknown := [run for run in given if given[run] not in FAULTS]:
        return Verdict(False, f"{describe(answer[unknown[0]])} is none of the letters {', '.join(FAULTS)}.")
    wrong = [run for run in truth if run in given and given[run] != truth[run]]
    right = sum(given.get(run) == fault for run, fault in truth.items())
    if wrong:
        run = wrong[0]
        hint = FAULTS[truth[run]][1]
        return Verdict(False, f"{right} of 12 are right. Run {run} isn't {given[run]!r}: {hint}.")
    if right < len(truth):
        return Verdict(False, f"{right} of 12 are right so far, and none is wrong.")
    return Verdict(True, "all twelve are right.")


Step = Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor], Any]


def right_step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    network.train()
    class_logits, distillation_logits = network(images)
    loss = (F.cross_entropy(class_logits, labels) + F.cross_entropy(distillation_logits, labels)) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def step_mistakes() -> dict[str, Step]:
    """Training steps that go wrong as readers' do, each with the reason."""

    def without_zero_grad(network: nn.Module, optimizer: Any, images: Tensor, labels: Tensor) -> None:
        class_logits, distillation_logits = network.train()(images)
        ((F.cross_entropy(class_logits, labels) + F.cross_entropy(distillation_logits, labels)) / 2).backward()
        optimizer.step()

    def with_loss(loss_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Step:
        def step(network: nn.Module, optimizer: Any, images: Tensor, labels: Tensor) -> None:
            optimizer.zero_grad()
            class_logits, distillation_logits = network.train()(images)
            loss_of(class_logits, distillation_logits, labels).backward()
            optimizer.step()

        return step

    return {
        "the gradients of the step before are still there: set them to zero": without_zero_grad,
        "only the class head is trained": with_loss(lambda a, b, y: F.cross_entropy(a, y)),
        "only the distillation head is trained": with_loss(lambda a, b, y: F.cross_entropy(b, y)),
        "the loss is that of the heads' mean, as in evaluation; in training each head has one of its own": with_loss(
            lambda a, b, y: F.cross_entropy((a + b) / 2, y)
        ),
        "the logits go through softmax twice: cross_entropy takes logits": with_loss(
            lambda a, b, y: (F.cross_entropy(a.softmax(1), y) + F.cross_entropy(b.softmax(1), y)) / 2
        ),
        "the two losses are added; take their mean": with_loss(
            lambda a, b, y: F.cross_entropy(a, y) + F.cross_entropy(b, y)
        ),
    }


def weights_after(step: Step, seed: int) -> tuple[list[Tensor], Any]:
    """The parameters after two training steps of a small TITN, and what the second returned."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 8, 1, 16, 16, generator=generator)
    labels = torch.randint(10, (2, 8), generator=generator)
    network = small_titn().eval()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)  # of its size it keeps, unlike Adam, what a loss scales
    got: Any = None
    for batch in range(2):
        got = call_answer(step, network, optimizer, images[batch], labels[batch])
    return [parameter.detach().clone() for parameter in network.parameters()], got


def check_step(answer: Step) -> Verdict:
    """`answer(network, optimizer, images, labels)`: one training step of a TITN on labels; it returns the loss."""
    seed = int(torch.randint(2**31, ()))
    expected, loss = weights_after(right_step, seed)
    weights, got = weights_after(answer, seed)
    if isinstance(got, Verdict) and got is not NOTHING:
        return got

    def same(others: list[Tensor]) -> bool:
        return all(max_abs_diff(mine, other) < 1e-4 for mine, other in zip(weights, others, strict=True))

    if not same(expected):
        if same(list(small_titn().parameters())):
            return Verdict(False, "no weight has changed: `backward` computes gradients, `optimizer.step` uses them.")
        for reason, mistake in step_mistakes().items():
            if same(weights_after(mistake, seed)[0]):
                return Verdict(False, f"the weights are wrong after two steps: {reason}.")
        return Verdict(False, "after two steps the weights aren't what they should be.")
    if got is NOTHING:
        return Verdict(False, "the weights are right; now return the loss, too.")
    verdict = number(got, loss, within=1e-4)
    return verdict if not verdict.right else Verdict(True, "right: the same weights after two steps.")


def check_losses(initial: Any, over_batch: Any, floor: Any) -> Verdict:
    """Cross-entropy of an untrained network on CIFAR-100; the same on a batch of 128 if the softmax runs over the
    batch; and the lowest loss with ten classes if the logits go through softmax twice."""
    decimals = "that is the logarithm to base 10; cross-entropy takes the natural one."
    return all_of(
        initial=number(
            initial,
            math.log(100),
            {2.0: decimals, math.log(10): "that is for ten classes.", 0.01: "that is the probability."},
            within=0.005,
        ),
        over_batch=number(
            over_batch,
            math.log(128),
            {math.log(100): "the softmax runs over 128 images, not over 100 classes.", math.log10(128): decimals},
            within=0.005,
        ),
        floor=number(
            floor,
            math.log(math.e + 9) - 1,
            {
                0.0: "the second softmax sees probabilities: one 1 and nine 0s at best.",
                math.log(math.e + 10) - 1: "there are nine other classes, not ten.",
                math.log(math.e + 9): "that is the logarithm of the denominator; the numerator is e, not 1.",
            },
            "right: three numbers that unmask three faults.",
            within=0.005,
        ),
    )
