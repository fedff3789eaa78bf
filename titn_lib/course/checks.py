"""The framework of the exercises' checks: compare a reader's answer with the truth, on fresh random inputs.

A check returns a `Verdict`. A notebook shows it as a sentence: the answer is right, or what is wrong and by how much.
The checks themselves are in one module for each notebook (ex01_patches_and_pixels.py …), the solutions in
notebooks/solutions/.
"""

import math
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
OTHER_MODULES = Verdict(False, "it has other modules than before: change weights and leave the modules alone.")
NOTHING = Verdict(False, "it returns None: is the `return` missing?")


def unwritten(*answers: Any) -> bool:
    """Whether one of the answers is still `...` or None."""
    return any(answer is None or answer is ... for answer in answers)


def call_answer(answer: Callable[..., Any], *arguments: Any) -> Any:
    """Call a reader's function with copies of the arguments: it may change them.

    Returns:
        Its result; a `Verdict` if it raised an error, returned None or still has its dots.
    """
    if unwritten(answer):
        return NOT_YET
    try:
        got = answer(*(value.clone() if isinstance(value, Tensor) else value for value in arguments))
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
    shapes = ", ".join(str(tuple(value.shape)) for value in arguments if isinstance(value, Tensor) and value.ndim)
    given = f" (its arguments had the shapes {shapes})" if shapes else ""
    message = " ".join([f"{type(problem).__name__}:", *str(problem).split()]).removesuffix(":")
    return Verdict(False, f"it stopped{location} with {message}{given}")


def as_tensor(value: Any) -> Tensor | None:
    """A reader's value as a dense tensor on the CPU; None if it isn't real numbers. Arrays and lists will do."""
    with suppress(Exception):  # whatever the value may be
        if isinstance(value, list | tuple):
            value = torch.stack([torch.as_tensor(part) for part in value])
        elif isinstance(value, np.ndarray):
            value = value.copy()  # PyTorch takes no array that runs backwards
        tensor = torch.as_tensor(value).to_dense().cpu()
        return None if tensor.is_complex() else tensor
    return None


def as_shaped(got: Any, expected: Tensor) -> Tensor | Verdict:
    """A reader's result as a tensor of the true result's shape, or the verdict that it can't be one. Where the true
    result has a single value, any number will do."""
    if expected.numel() == 1:
        value = as_number(got)
        if value is None:
            return Verdict(False, f"it returns {describe(got)}; a number was asked for.")
        return torch.full_like(expected, value, dtype=torch.float64)
    tensor = as_tensor(got)
    if tensor is None or tensor.ndim == 0:
        return Verdict(False, f"it returns {describe(got)}; a tensor of shape {tuple(expected.shape)} was asked for.")
    if tensor.shape != expected.shape:
        return Verdict(False, f"the shape is {tuple(tensor.shape)}; it should be {tuple(expected.shape)}.")
    return tensor


def compare(
    answer: Callable[..., Any],
    truth: Callable[..., Tensor],
    inputs: Callable[[], tuple],
    mistakes: Mapping[str, Callable[..., Any]] | None = None,
    praise: str = "right, on three random inputs.",
    tolerance: float = 1e-4,
    what: str = "",
) -> Verdict:
    """Compare a reader's function with the true one, on three sets of arguments.

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
        got = call_answer(answer, *arguments)
        got = got if isinstance(got, Verdict) else as_shaped(got, expected)
        if isinstance(got, Verdict):
            return got
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
    answer: Any,
    truth: float,
    near: Mapping[float, str] | None = None,
    praise: str = "right.",
    within: float | None = None,
) -> Verdict:
    """Judge a reader's prediction of a number. It may be rounded as in `rounding_error`. Where it could be the truth
    or a typical wrong answer, the nearest counts.

    Args:
        near: typical wrong answers, each with the sentence that explains it.
        praise: the message for a right answer.
        within: the relative error that is allowed, for whole numbers that needn't be exact.
    """
    if unwritten(answer):
        return NOT_YET
    value = as_number(answer)
    if value is None:
        return Verdict(False, f"it is {describe(answer)}; a number was asked for.")
    if math.isnan(value):
        return Verdict(False, "it is not a number (nan).")
    reasons = {truth: "", **(near or {})}
    close = [known for known in reasons if abs(value - known) <= rounding_error(known, within)]
    nearest = min(close, key=lambda known: abs(value - known), default=None)
    if nearest == truth:
        return Verdict(True, praise)
    shown = f"{value:,.0f}" if value.is_integer() else f"{value:,g}"
    if nearest is not None:
        return Verdict(False, f"{shown} is not it: {reasons[nearest]}")
    return Verdict(False, f"{shown} is too {'large' if value > truth else 'small'}.")


def rounding_error(value: float, within: float | None = None) -> float:
    """How far an answer may be from this value: whole numbers are exact, others may be rounded to two digits."""
    if within is not None:
        return within * abs(value)
    return 1e-6 if float(value).is_integer() else 0.5001 * 10.0 ** (math.floor(math.log10(abs(value))) - 1)


def as_number(answer: Any) -> float | None:
    """The answer as a float, or None if it isn't a number. A string never is, even "12", nor is True."""
    with suppress(Exception):  # whatever the answer may be
        answer = answer.item() if hasattr(answer, "item") else answer
        if isinstance(answer, int) and abs(answer) > sys.float_info.max:
            return math.copysign(math.inf, answer > 0 or -1)
        return None if isinstance(answer, str | bytes | bool) else float(answer)
    return None


def as_bool(answer: Any) -> bool | None:
    """The answer as a bool, or None if it isn't one. NumPy's and PyTorch's will do, as will 0 and 1."""
    with suppress(Exception):  # whatever the answer may be
        answer = answer.item() if hasattr(answer, "item") else answer
        return bool(answer) if answer in (False, True) else None
    return None


def all_of(**verdicts: Verdict) -> Verdict:
    """Several verdicts as one: the last if all are right, otherwise how many are, and the first wrong one."""
    wrong = {name: verdict for name, verdict in verdicts.items() if not verdict.right}
    if not wrong:
        return list(verdicts.values())[-1]
    if all(verdict is NOT_YET for verdict in verdicts.values()):
        return NOT_YET
    name, first = next(iter(wrong.items()))
    right = len(verdicts) - len(wrong)
    return Verdict(False, f"{right} of {len(verdicts)} right; `{name}`: {first.message}")


def describe(value: Any) -> str:
    """The type and size of a value: "ndarray of shape (4, 4)", "list of 3", "str 'b'", "None"."""
    if value is None:
        return "None"
    kind, shape = type(value).__name__, getattr(value, "shape", None)
    if isinstance(shape, tuple):
        size = f"of shape {tuple(shape)}" if shape else "with a single value"
        kind = f"complex {kind}" if "complex" in str(getattr(value, "dtype", "")) else kind
        device = str(getattr(value, "device", "cpu"))
        return f"{kind} {size}" + ("" if device == "cpu" else f" on the device {device}")
    if isinstance(value, list | tuple | dict | set):
        return f"{kind} of {len(value)}"
    return " ".join([kind, *repr(value).split()])[:80]
