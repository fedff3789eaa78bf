"""The checks that the notebooks' exercises call: a reader's answer against the truth, on fresh random inputs.

A check returns a `Verdict`, which a notebook shows as a sentence: what is right, or what is wrong and by how much.
Each notebook has its own module here. Solutions are in notebooks/solutions/.
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
    """Whether an answer is right, and the sentence for its reader."""

    right: bool
    message: str

    def __repr__(self) -> str:
        return ("✓ " if self.right else "✗ ") + self.message


NOT_YET = Verdict(False, "not written yet: replace the dots with your answer, and run the cell again.")
NOTHING_CHANGED = Verdict(
    False, "no weight has changed: write over the dots, and change weights in place (`zero_()`, `weight[...] = 0`)."
)
NOTHING = Verdict(False, "it returns None: is the `return` missing?")


def unwritten(*answers: Any) -> bool:
    """Whether one of the answers still has its dots."""
    return any(answer is None or answer is ... for answer in answers)


def call_answer(answer: Callable[..., Any], *arguments: Any) -> Any:
    """What a reader's function returns, or the verdict on one that raised an error, returned nothing or isn't written
    yet."""
    try:
        got = answer(*arguments)
    except Exception as problem:  # whatever the reader's code may do
        return from_exception(problem, *arguments)
    if got is None:
        return NOTHING
    return NOT_YET if unwritten(got) else got


def from_exception(problem: Exception, *arguments: Any) -> Verdict:
    """The verdict on an answer that raised an error: its line, the error, and the shapes it was given."""
    frames = traceback.extract_tb(problem.__traceback__)
    lines = [frame.line for frame in frames if not any(part in frame.filename for part in LIBRARY_PATHS)]
    place = f" at `{lines[-1]}`" if lines and lines[-1] else ""
    shapes = ", ".join(str(tuple(value.shape)) for value in arguments if isinstance(value, Tensor))
    given = f" (it was given {shapes})" if shapes else ""
    return Verdict(False, f"it stopped{place} with {type(problem).__name__}: {problem}{given}")


def compare(
    answer: Callable[..., Any],
    truth: Callable[..., Tensor],
    inputs: Callable[[], tuple],
    mistakes: Mapping[str, Callable[..., Any]] | None = None,
    praise: str = "right, on three random inputs.",
    tolerance: float = 1e-4,
    what: str = "",
) -> Verdict:
    """A reader's function against the true one. A Python number will do where the truth is a tensor of one value.

    Args:
        inputs: makes one set of arguments.
        mistakes: functions that go wrong as readers do. Where the answer agrees with one of them, the verdict says
            its name: the end of a sentence that begins "this is what comes out when".
        tolerance: largest difference that still counts as rounding.
        what: "the gradient is", say, for the verdict: what is compared.
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
        return Verdict(False, f"the shape is right, {what or 'the numbers are'} {distance(got, expected)}.")
    return Verdict(True, praise)


def alike(got: Tensor, wrong: Tensor, tolerance: float) -> bool:
    """Whether two tensors have one shape and the same numbers, or none in the same places."""
    return got.shape == wrong.shape and torch.allclose(
        got.double(), wrong.double(), rtol=0, atol=tolerance, equal_nan=True
    )


def distance(got: Tensor, expected: Tensor) -> str:
    """How far an answer is from the truth, in words; of whole numbers, how many are wrong."""
    if not expected.is_floating_point():
        return f"wrong in {int((got != expected).sum())} of {expected.numel()} places"
    gap = max_abs_diff(got, expected)
    return "not a number (nan)" if math.isnan(gap) else f"off by up to {gap:.2g}"


def max_abs_diff(a: Tensor, b: Tensor) -> float:
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
    """A reader's number, if it is one; a string isn't, whatever it says."""
    with suppress(TypeError, ValueError, RuntimeError):
        return None if isinstance(answer, str) else float(answer)
    return None


def all_of(**verdicts: Verdict) -> Verdict:
    """Several verdicts as one, by the names of the answers: right if all are, else the first that isn't."""
    for name, verdict in verdicts.items():
        if not verdict.right:
            return verdict if verdict is NOT_YET else Verdict(False, f"`{name}`: {verdict.message}")
    return verdict


def describe(value: Any) -> str:
    """ "ndarray of shape (4, 4)", "list of 3", "str 'b'", "None"."""
    if value is None:
        return "None"
    kind, shape = type(value).__name__, getattr(value, "shape", None)
    if shape is not None:
        return f"{kind} of shape {tuple(shape)}"
    if isinstance(value, list | tuple | dict | set):
        return f"{kind} of {len(value)}"
    return f"{kind} {value!r}"[:80]
