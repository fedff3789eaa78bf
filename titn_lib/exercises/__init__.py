"""The checks that the notebooks' exercises call: a reader's answer against the truth, on fresh random inputs.

A check returns a `Verdict`, which a notebook shows as a sentence: what is right, or what is wrong and by how much.
Each notebook has its own module here. Solutions are in notebooks/solutions/.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROUNDS = 3  # fresh inputs for each check


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and the sentence for its reader."""

    right: bool
    says: str

    def __repr__(self) -> str:
        return ("✓ " if self.right else "✗ ") + self.says


NOT_YET = Verdict(False, "not written yet: replace the dots with your answer, and run the cell again.")


def unwritten(*answers: Any) -> bool:
    """Whether one of the answers still has its dots."""
    return any(answer is None or answer is ... for answer in answers)


def stopped(problem: Exception) -> Verdict:
    """The verdict on an answer that raised an error."""
    return Verdict(False, f"it stopped with {type(problem).__name__}: {problem}")


def ask(answer: Callable[..., Any], *arguments: Any) -> Any:
    """What a reader's function returns, or the verdict on one that raised an error or isn't written yet."""
    try:
        got = answer(*arguments)
    except Exception as problem:  # whatever the reader's code may do
        return stopped(problem)
    return NOT_YET if unwritten(got) else got


def compare(
    answer: Callable[..., Any],
    truth: Callable[..., Tensor],
    inputs: Callable[[], tuple],
    mistakes: Mapping[str, Callable[..., Any]] | None = None,
    praise: str = "right, on three random inputs.",
    tolerance: float = 1e-4,
) -> Verdict:
    """A reader's function against the true one. A Python number will do where the truth is a tensor of one value.

    Args:
        inputs: makes one set of arguments.
        mistakes: functions that go wrong as readers do. Where the answer agrees with one of them, the verdict says
            its name: the end of a sentence that begins "this is what comes out when".
        tolerance: largest difference that still counts as rounding.
    """
    for _ in range(ROUNDS):
        arguments = inputs()
        expected = truth(*arguments)
        got = ask(answer, *(value.clone() if isinstance(value, Tensor) else value for value in arguments))
        if expected.numel() == 1 and isinstance(got, int | float) and not isinstance(got, bool):
            got = ask(lambda like, value: torch.full_like(like, float(value), dtype=torch.float64), expected, got)
        if isinstance(got, Verdict):
            return got
        if not isinstance(got, Tensor):
            return Verdict(False, f"it returns {describe(got)}; a tensor was asked for.")
        if got.shape != expected.shape:
            return Verdict(False, f"the shape is {tuple(got.shape)}; it should be {tuple(expected.shape)}.")
        gap = furthest(got, expected)
        if not gap <= tolerance:
            for name, mistake in (mistakes or {}).items():
                wrong = mistake(*arguments)
                if wrong.shape == got.shape and furthest(got, wrong) <= tolerance:
                    return Verdict(False, f"off by up to {gap:.2g}: this is what comes out when {name}.")
            return Verdict(False, f"the shape is right, the numbers are off by up to {gap:.2g}.")
    return Verdict(True, praise)


def furthest(a: Tensor, b: Tensor) -> float:
    """The largest difference between two tensors of one shape; not a number where one of them isn't."""
    return (a.detach().to(torch.float64) - b.detach().to(torch.float64)).abs().max().item() if a.numel() else 0.0


def number(
    answer: Any, truth: float, near: Mapping[float, str] | None = None, praise: str = "right.", within: float = 1e-6
) -> Verdict:
    """A reader's prediction of a number.

    Args:
        near: wrong answers that have a reason, and the sentence that says so.
        within: the share of a number by which an answer may miss it: 0.01 for answers with two or three digits.
    """
    if unwritten(answer):
        return NOT_YET
    try:
        value = float(answer)
    except (TypeError, ValueError):
        return Verdict(False, f"it is {describe(answer)}; a number was asked for.")
    if math.isnan(value):
        return Verdict(False, "it is not a number (nan).")
    if abs(value - truth) <= max(1e-6, within * abs(truth)):
        return Verdict(True, praise)
    for wrong, reason in (near or {}).items():
        if abs(value - wrong) <= max(1e-6, within * abs(wrong)):
            return Verdict(False, f"{value:g} is not it: {reason}")
    return Verdict(False, f"{value:g} is too {'large' if value > truth else 'small'}.")


def together(*verdicts: Verdict) -> Verdict:
    """Several verdicts as one: right if all are, else the first that isn't."""
    return next((verdict for verdict in verdicts if not verdict.right), verdicts[-1])


def describe(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"[:80]
