"""Exercises of 07_ablations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from titn_lib.course.checks import Verdict, all_of, as_number, call_answer, compare, describe, number

TABLES = 2000  # of useless changes, for check_report
ENOUGH = 0.6  # of them must look like an improvement


def gap(change: Tensor, base: Tensor) -> Tensor:
    error = (change.var() / len(change) + base.var() / len(base)).sqrt()
    return torch.stack([change.mean() - base.mean(), error])


def check_gap(answer: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """`answer(change, base)`, the accuracies of their seeds: the difference of the means, and its standard error."""

    def spread(change: Tensor, base: Tensor, error: Tensor) -> Tensor:
        return torch.stack([change.mean() - base.mean(), error])

    def pooled(change: Tensor, base: Tensor) -> Tensor:
        squares = change.var() * (len(change) - 1) + base.var() * (len(base) - 1)
        return squares / (len(change) + len(base) - 2)

    mistakes: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "the difference is taken the other way round (it is the change minus the base), or has lost its sign": (
            lambda a, b: gap(a, b) * torch.tensor([-1.0, 1.0])
        ),
        "a variance is divided by the number of seeds and not by one less": (
            lambda a, b: spread(a, b, (a.var(correction=0) / len(a) + b.var(correction=0) / len(b)).sqrt())
        ),
        "it is the spread of single runs: a mean of n runs has a variance n times smaller": (
            lambda a, b: spread(a, b, (a.var() + b.var()).sqrt())
        ),
        "the two standard errors are added; it is their squares that add": (
            lambda a, b: spread(a, b, (a.var() / len(a)).sqrt() + (b.var() / len(b)).sqrt())
        ),
        "the root is left out": lambda a, b: spread(a, b, a.var() / len(a) + b.var() / len(b)),
        "only the change's seeds count; the base is a mean of few runs, too": (
            lambda a, b: spread(a, b, (a.var() / len(a)).sqrt())
        ),
        "one less is taken off twice: torch.var has done it; the mean is of n runs": (
            lambda a, b: spread(a, b, (a.var() / (len(a) - 1) + b.var() / (len(b) - 1)).sqrt())
        ),
        "the variances are pooled; each setting has its own here": (
            lambda a, b: spread(a, b, (pooled(a, b) * (1 / len(a) + 1 / len(b))).sqrt())
        ),
        "there are always three seeds; take the length of each tensor": (
            lambda a, b: spread(a, b, ((a.var() + b.var()) / 3).sqrt())
        ),
    }
    sizes = iter([(3, 3, -2), (5, 3, 2), (2, 4, -1)])

    def inputs() -> tuple[Tensor, Tensor]:
        of_change, of_base, apart = next(sizes)
        change, base = 3 * torch.randn(of_change), 2 * torch.randn(of_base)
        return 50 + apart + change - change.mean(), 50 + base - base.mean()

    return compare(answer, gap, inputs, mistakes)


def check_chances(none: Any, needed: Any) -> Verdict:
    """The chance that none of 17 independent changes without effect passes a bar that one of them passes in 5 of 100
    cases; how many seeds a setting takes (3 so far) for a standard error half as long."""
    chance = 0.95**17
    return all_of(
        none=number(
            none,
            chance,
            {
                **{round(chance, digits): "that is rounded: write the expression." for digits in (2, 3, 4)},
                **{round(100 * chance, digits): "that is per cent: a chance is at most 1." for digits in (0, 1, 2, 9)},
                0.95: "that is one change alone.",
                1 - chance: "that is the chance that at least one passes.",
                0.05**17: "that is the chance that all of them pass.",
                0.05: "that is the chance that one change passes.",
                1 - 17 * 0.05: "chances of passing add up only while they are small: multiply those of not passing.",
                17 * 0.05: "that is how many pass, on average.",
            },
        ),
        needed=number(
            needed,
            12,
            {
                6: "twice as many make it shorter by √2 only.",
                9: "n goes with the square, but of 2 and not of 3.",
                4: "four times as many, but of three.",
            },
            "both are right: in 58 of 100 such tables something useless looks useful. And precision is dear: four "
            "times the runs for half the error.",
        ),
    )


def check_report(answer: Callable[[Tensor, Tensor], Any]) -> Verdict:
    """`answer(change, base)`, three seeds each of the *same* setting, reports an improvement in three of five tables,
    though it reports nothing but the difference of a value of the one and a value of the other."""
    generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    better, total = 0, 0.0
    for _ in range(TABLES):
        change, base = 54 + 0.7 * torch.randn(2, 3, generator=generator, dtype=torch.float64)
        got = call_answer(answer, change.clone(), base.clone())
        if isinstance(got, Verdict):
            return got
        value = as_number(got)
        if value is None or isinstance(got, bool) or getattr(got, "dtype", None) == torch.bool:
            return Verdict(False, f"it returns {describe(got)}; one number was asked for: the improvement in points.")
        low, high = float(change.min() - base.max()), float(change.max() - base.min())
        if not low - 1e-9 <= value <= high + 1e-9:
            return Verdict(
                False,
                f"it reports {value:.2f}, though from a run of the base to a run of the change it is between {low:.2f} "
                f"and {high:.2f}: that is invented. Choose, but don't lie.",
            )
        better, total = better + (value > 0), total + value
    share, mean = better / TABLES, total / TABLES
    if share < ENOUGH:
        honest = " About half: that is what an honest report gives." if 0.42 < share < 0.58 else ""
        return Verdict(False, f"it reports an improvement in {share:.0%} of the tables; make it three of five.{honest}")
    return Verdict(
        True,
        f"done: the change does nothing, and in {share:.0%} of the tables it “improves” the result, by {mean:.1f} "
        "points on average. No figure in it is false. This is what choosing runs after seeing them means.",
    )
