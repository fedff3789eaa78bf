"""Exercises of 08_ablations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from titn_lib.course.checks import Verdict, all_of, as_number, call_answer, compare, describe, number

TABLES = 2000  # simulated comparisons without any effect, for check_report
REQUIRED_SHARE = 0.6  # of them must look like an improvement


def gap(change: Tensor, base: Tensor) -> Tensor:
    """Difference of the means, and its standard error (Welch's, without pooling); "seed", "seed" → 2."""
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
        "the difference has the opposite sign (it is the change minus the baseline), or has lost its sign": (
            lambda a, b: gap(a, b) * torch.tensor([-1.0, 1.0])
        ),
        "a variance is divided by the number of seeds and not by one less": (
            lambda a, b: spread(a, b, (a.var(correction=0) / len(a) + b.var(correction=0) / len(b)).sqrt())
        ),
        "it is the standard deviation of single runs: a mean of n runs has a variance n times smaller": (
            lambda a, b: spread(a, b, (a.var() + b.var()).sqrt())
        ),
        "the two standard errors are added; add their squares": (
            lambda a, b: spread(a, b, (a.var() / len(a)).sqrt() + (b.var() / len(b)).sqrt())
        ),
        "the square root is left out": lambda a, b: spread(a, b, a.var() / len(a) + b.var() / len(b)),
        "only the change's variance is used; the baseline is a mean of few runs, too": (
            lambda a, b: spread(a, b, (a.var() / len(a)).sqrt())
        ),
        "the variance is divided by n − 1 twice: torch.var does it once; the mean is of n runs": (
            lambda a, b: spread(a, b, (a.var() / (len(a) - 1) + b.var() / (len(b) - 1)).sqrt())
        ),
        "the error is half a 95 % interval: leave the factor of 1.96 out": (
            lambda a, b: gap(a, b) * torch.tensor([1.0, 1.96])
        ),
        "the second value is t: the difference over its error; the error was asked for": (
            lambda a, b: spread(a, b, gap(a, b)[0] / gap(a, b)[1])
        ),
        "standard deviations are added; add variances": (
            lambda a, b: spread(a, b, (a.std() / len(a) + b.std() / len(b)).sqrt())
        ),
        "the two values are in the wrong order: first the difference, then its error": lambda a, b: gap(a, b).flip(0),
        "the medians are compared; the means were asked for": (
            lambda a, b: torch.stack([a.quantile(0.5) - b.quantile(0.5), gap(a, b)[1]])
        ),
        "the variances are pooled; use each setting's own here": (
            lambda a, b: spread(a, b, (pooled(a, b) * (1 / len(a) + 1 / len(b))).sqrt())
        ),
        "there are always three seeds; use the length of each tensor": (
            lambda a, b: spread(a, b, ((a.var() + b.var()) / 3).sqrt())
        ),
    }
    sizes = iter([(3, 3, -2), (5, 3, 2), (2, 4, -1)])

    def inputs() -> tuple[Tensor, Tensor]:
        of_change, of_base, apart = next(sizes)
        change, base = 3 * torch.randn(of_change), 2 * torch.randn(of_base)
        return 50 + apart + change - change.mean(), 50 + base - base.mean()

    return compare(answer, gap, inputs, mistakes)


def check_probabilities(none: Any, needed: Any) -> Verdict:
    """The probability that none of 17 independent changes without effect is significant at the 5 % level; how many
    seeds a setting needs (3 so far) for half the standard error."""
    probability = 0.95**17
    return all_of(
        none=number(
            none,
            probability,
            {
                100 * probability: "that is in percent: a probability is at most 1.",
                0.95: "that is one change alone.",
                1 - probability: "that is the probability that at least one passes.",
                0.05**17: "that is the probability that all of them pass.",
                0.05: "that is the probability that one change passes.",
                1 - 17 * 0.05: "probabilities of passing add up only while small: multiply those of not passing.",
                17 * 0.05: "that is how many pass, on average.",
            },
        ),
        needed=number(
            needed,
            12,
            {
                6: "twice as many make it smaller by √2 only.",
                9: "n grows with the square, but of 2 and not of 3.",
                4: "four times as many, but of three.",
            },
            "both are right: in 58 of 100 such tables a useless change looks significant. And precision is expensive: "
            "four times the runs for half the standard error.",
        ),
    )


def check_report(answer: Callable[[Tensor, Tensor], Any]) -> Verdict:
    """`answer(change, base)`: three seeds each of the *same* setting. It reports an improvement in three of five
    tables, and nothing but the difference between a value of the one and a value of the other."""
    generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    better, total = 0, 0.0
    for _ in range(TABLES):
        change, base = 54 + 0.7 * torch.randn(2, 3, generator=generator, dtype=torch.float64)
        got = call_answer(answer, change, base)
        if isinstance(got, Verdict):
            return got
        value = as_number(got)
        if value is None:
            return Verdict(False, f"it returns {describe(got)}; one number was asked for: the improvement in points.")
        low, high = float(change.min() - base.max()), float(change.max() - base.min())
        if not low - 0.005 <= value <= high + 0.005:  # two decimals will do
            return Verdict(
                False,
                f"it reports {value:.2f}, though from a run of the baseline to a run of the change it is between "
                f"{low:.2f} and {high:.2f}: that is invented. Choose, but don't lie.",
            )
        better, total = better + (value > 0), total + value
    share, mean = better / TABLES, total / TABLES
    if share < REQUIRED_SHARE:
        honest = " About half: that is what an honest report gives." if 0.42 < share < 0.58 else ""
        return Verdict(False, f"it reports an improvement in {share:.0%} of the tables; make it three of five.{honest}")
    return Verdict(
        True,
        f"done: the change does nothing, and in {share:.0%} of the tables it “improves” the result, by {mean:.1f} "
        "points on average. No number in it is false. This is what it means to select runs after seeing them.",
    )
