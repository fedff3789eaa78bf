"""The framework of the exercises' checks: compare a reader's answer with the truth, on fresh random inputs.

A check returns a `Verdict`. A notebook shows it as a sentence: the answer is right, or what is wrong and by how much.
The checks themselves are in one module for each notebook (ex01_patches_and_pixels.py …), the solutions in
notebooks/solutions/.
"""

import math
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROUNDS = 3  # fresh inputs for each check
LIBRARY_PATHS = (str(Path(__file__).parents[1]), sysconfig.get_path("stdlib"), "site-packages", "dist-packages")


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and the sentence that the reader sees."""

    right: bool
    message: str

    def __repr__(self) -> str:
        return ("✓ " if self.right else "✗ ") + self.message


NOT_YET = Verdict(False, "not written yet: replace the dots with your answer and run the cell again.")
NOTHING_CHANGED = Verdict(
    False,
    "no weight has changed: replace the dots with in-place changes (`zero_()`, `weight[...] = 0`).",
)
NOTHING = Verdict(False, "it returns None: is the `return` missing?")


def unwritten(*answers: Any) -> bool:
    """Whether one of the answers is still `...` or None."""
    return any(answer is None or answer is ... for answer in answers)


def call_answer(answer: Callable[..., Any], *arguments: Any) -> Any:
    """Call a reader's function.

    Returns:
        Its result; a `Verdict` if it raised an error, returned None or still has its dots.
    """
    try:
        got = answer(*arguments)
    except Exception as problem:  # whatever the reader's code may do
        return from_exception(problem, *arguments)
    if got is None:
        return NOTHING
    return NOT_YET if unwritten(got) else got


def from_exception(problem: Exception, *arguments: Any) -> Verdict:
    """The verdict on an answer that raised an error: the line, the error, and the shapes of its arguments."""
    frames = traceback.extract_tb(problem.__traceback__)
    lines = [frame.line for frame in frames if not any(part in frame.filename for part in LIBRARY_PATHS)]
    location = f" at `{lines[-1]}`" if lines and lines[-1] else ""
    shapes = ", ".join(str(tuple(value.shape)) for value in arguments if isinstance(value, Tensor))
    given = f" (its arguments had the shapes {shapes})" if shapes else ""
    return Verdict(False, f"it stopped{location} with {type(problem).__name__}: {problem}{given}")


def compare(
    answer: Callable[..., Any],
    truth: Callable[..., Tensor],
    inputs: Callable[[], tuple],
    mistakes: Mapping[str, Callable[..., Any]] | None = None,
    praise: str = "right, on three random inputs.",
    tolerance: float = 1e-4,
    what: str = "",
) -> Verdict:
    """Compare a reader's function with the true one, on three sets of arguments. If the true result has a single
    value, the reader's may be a Python number.

    Args:
        inputs: makes one set of arguments.
        mistakes: typical wrong solutions. If the answer agrees with one of them, the verdict quotes its key, which
            completes the sentence "this is what comes out when …".
        praise: the message for a right answer.
        tolerance: the largest absolute difference that counts as rounding.
        what: the beginning of the message about wrong values, such as "the gradient is".
    """
    for _ in range(ROUNDS):
        arguments = inputs()
        expected = truth(*arguments)
        got = call_answer(answer, *(value.clone() if isinstance(value, Tensor) else value for value in arguments))
        if expected.numel() == 1 and isinstance(got, int | float) and not isinstance(got, bool):
            got = call_answer(
                lambda like, value: torch.full_like(like, float(value), dtype=torch.float64), expected, got
            )
        if isinstance(got, Verdict):
            return got
        if not isinstance(got, Tensor):
            asked = "a number" if expected.numel() == 1 else "a tensor"
            return Verdict(False, f"it returns {describe(got)}; {asked} was asked for.")
        if got.shape != expected.shape:
            return Verdict(False, f"the shape is {tuple(got.shape)}; it should be {tuple(expected.shape)}.")
        if max_abs_diff(got, expected) <= tolerance:
            continue
        for name, mistake in (mistakes or {}).items():
            if alike(got, mistake(*arguments), tolerance):
                return Verdict(False, f"{distance(got, expected)}: this is what comes out when {name}.")
        if expected.numel() == 1:
            return Verdict(False, f"{what or 'the number is'} {distance(got, expected)}.")
        return Verdict(False, f"the shape is right, {what or 'the values are'} {distance(got, expected)}.")
    return Verdict(True, praise)


def alike(got: Tensor, wrong: Tensor, tolerance: float) -> bool:
    """Whether two tensors have the same shape and the same values, with nan equal to nan."""
    return got.shape == wrong.shape and torch.allclose(
        got.double(), wrong.double(), rtol=0, atol=tolerance, equal_nan=True
    )


def distance(got: Tensor, expected: Tensor) -> str:
    """The error of an answer, in words: the largest difference; of integers, how many are wrong."""
    if not expected.is_floating_point():
        return f"wrong in {int((got != expected).sum())} of {expected.numel()} places"
    gap = max_abs_diff(got, expected)
    return "not a number (nan)" if math.isnan(gap) else f"off by up to {gap:.2g}"


def max_abs_diff(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference between two tensors of the same shape; nan if one of them has a nan."""
    return (a.detach().to(torch.float64) - b.detach().to(torch.float64)).abs().max().item() if a.numel() else 0.0


def number(
    answer: Any, truth: float, near: Mapping[float, str] | None = None, praise: str = "right.", within: float = 1e-6
) -> Verdict:
    """Judge a reader's prediction of a number.

    Args:
        near: typical wrong answers, each with the sentence that explains it.
        praise: the message for a right answer.
        within: the relative error that is allowed; 0.01 for answers with two or three digits.
    """
    if unwritten(answer):
        return NOT_YET
    value = as_number(answer)
    if value is None:
        return Verdict(False, f"it is {describe(answer)}; a number was asked for.")
    if math.isnan(value):
        return Verdict(False, "it is not a number (nan).")
    shown = f"{value:,.0f}" if value.is_integer() else f"{value:,g}"
    if abs(value - truth) <= max(1e-6, within * abs(truth)):
        return Verdict(True, praise)
    for wrong, reason in (near or {}).items():
        if abs(value - wrong) <= max(1e-6, within * abs(wrong)):
            return Verdict(False, f"{shown} is not it: {reason}")
    return Verdict(False, f"{shown} is too {'large' if value > truth else 'small'}.")


def as_number(answer: Any) -> float | None:
    """The answer as a float, or None if it isn't a number. A string never is, even "12"."""
    with suppress(TypeError, ValueError, RuntimeError):
        return None if isinstance(answer, str) else float(answer)
    return None


def all_of(**verdicts: Verdict) -> Verdict:
    """Several verdicts as one: the last if all are right, otherwise the first wrong one, with the answer's name."""
    for name, verdict in verdicts.items():
        if not verdict.right:
            return verdict if verdict is NOT_YET else Verdict(False, f"`{name}`: {verdict.message}")
    return verdict


def describe(value: Any) -> str:
    """The type and size of a value: "ndarray of shape (4, 4)", "list of 3", "str 'b'", "None"."""
    if value is None:
        return "None"
    kind, shape = type(value).__name__, getattr(value, "shape", None)
    if shape is not None:
        return f"{kind} of shape {tuple(shape)}"
    if isinstance(value, list | tuple | dict | set):
        return f"{kind} of {len(value)}"
    return f"{kind} {value!r}"[:80]
