"""Exercises of 10_your_images."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from titn_lib.course.checks import (
    NOT_YET,
    ROUNDS,
    Verdict,
    as_number,
    call_answer,
    describe,
    max_abs_diff,
    number,
    unwritten,
)
from titn_lib.data.datasets import CIFAR_MEAN, CIFAR_STD
from titn_lib.data.transforms import normalize

# --- 1 · a stratified split


def check_split(answer: Callable[[Tensor, float, int], tuple[Tensor, Tensor]]) -> Verdict:
    """Check a stratified split.

    Args:
        answer: `answer(labels, fraction, seed)` returns the indices of the images to keep, and of those to set aside.
            The same share of each class is set aside. Every image is in exactly one part. The seed determines which.
    """
    for turn in range(ROUNDS):
        counts = torch.randint(100, 300, (3 + turn,)).tolist()
        labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])  # as a folder is loaded
        if turn == 1:
            labels = labels[torch.randperm(len(labels))]
        fraction = (0.2, 0.25, 0.1)[turn]
        splits = []
        for seed in (7, 7, 8):
            parts = parse_parts(call_answer(answer, labels.clone(), fraction, seed), len(labels))
            if isinstance(parts, Verdict):
                return parts
            if max(int(part.max()) if len(part) else 0 for part in parts) < len(counts):
                return Verdict(False, "these are labels; the indices of the images were asked for.")
            splits.append(parts)
        for fault in (
            find_overlap(*splits[0], len(labels), fraction),
            find_uneven_shares(splits[0][1], labels, fraction),
        ):
            if fault:
                return Verdict(False, fault)
        first, again, other = (set(aside.tolist()) for _, aside in splits)
        if fault := find_missing_shuffle(splits[0][1], labels):
            return Verdict(False, fault)
        if first != again:
            return Verdict(
                False,
                f"called twice with the same seed it sets {len(first - again)} other images aside: draw from a "
                "generator seeded with `seed`, or two runs can't be compared.",
            )
        if first == other:
            return Verdict(False, "another seed sets the same images aside: the seed isn't used.")
    return Verdict(True, "right: each class gives its share, no image is in both parts, and the seed determines which.")


def parse_parts(got: Any, count: int) -> tuple[Tensor, Tensor] | Verdict:
    """Both parts as index tensors into `count` images, or the verdict on what is wrong with them."""
    if isinstance(got, Verdict):
        return got
    if isinstance(got, tuple | list) and unwritten(*got):
        return NOT_YET
    if not isinstance(got, tuple | list) or len(got) != 2:
        return Verdict(
            False, f"it returns {describe(got)}; a pair was asked for: indices to keep, indices to set aside."
        )
    parts = []
    for part in got:
        try:
            indices = torch.as_tensor(part)
        except Exception:
            return Verdict(False, f"a part is {describe(part)}; an integer tensor of indices was asked for.")
        if indices.dtype == torch.bool:
            return Verdict(False, "a part is a boolean mask; the indices themselves were asked for (nonzero).")
        if indices.ndim != 1 or (indices.is_floating_point() and len(indices)):
            return Verdict(
                False,
                f"a part has the shape {tuple(indices.shape)} and holds {indices.dtype}; a one-dimensional integer "
                "tensor was asked for.",
            )
        if beyond := [index for index in indices.tolist() if not 0 <= index < count]:
            return Verdict(False, f"it names image {beyond[0]} of {count}: indices go from 0 to {count - 1}.")
        parts.append(indices.long())
    return parts[0], parts[1]


def find_overlap(kept: Tensor, aside: Tensor, count: int, fraction: float) -> str:
    """Images that are in both parts, twice in one, or in none; parts that are swapped."""
    both = len(set(kept.tolist()) & set(aside.tolist()))
    if both:
        return f"{both} images are in both parts: the model would be tested on images it has memorized."
    twice = count_duplicates(kept) + count_duplicates(aside)
    if twice:
        return f"{twice} indices occur more than once: draw without replacement (a permutation does)."
    missing = count - len(kept) - len(aside)
    if missing:
        return f"{missing} of {count} images are in neither part."
    if abs(len(aside) - (1 - fraction) * count) < 0.05 * count:
        asked = f"{100 * fraction:.0f} % were asked for"
        return f"the parts are swapped: {len(aside)} of {count} are set aside, and {asked}."
    return ""


def count_duplicates(indices: Tensor) -> int:
    return len(indices) - len(indices.unique())


def find_uneven_shares(aside: Tensor, labels: Tensor, fraction: float) -> str:
    """Classes of which more or less than the share is set aside."""
    classes = int(labels.max()) + 1
    counts, given = labels.bincount(minlength=classes), labels[aside].bincount(minlength=classes)
    shares = given / counts
    if bool(((given - fraction * counts).abs() <= 1.5).all()):
        return ""
    if len(given.unique()) == 1 < len(counts.unique()) and int(given[0]):
        return f"{int(given[0])} images of each class are set aside; the same share of each was asked for."
    alike = float((shares - shares.mean()).abs().max()) < 0.02
    if alike and abs(float(shares.mean()) - fraction) > 0.02:
        return f"{100 * shares.mean():.0f} % of each class are set aside, and {100 * fraction:.0f} % were asked for."
    least, most = int(shares.argmin()), int(shares.argmax())
    text = (
        f"not the same share of each class: of class {most} {100 * shares[most]:.0f} % are set aside, of class {least} "
        f"{100 * shares[least]:.0f} %, and {100 * fraction:.0f} % were asked for."
    )
    inside = aside.sort().values
    if len(inside) and int(inside[-1] - inside[0]) == len(inside) - 1:
        end = "first" if int(inside[0]) == 0 else "last"
        text += f" These are the {end} images of the list, and a folder is loaded class by class."
    elif bool((shares - fraction).abs().max() < 0.15):
        text += " Drawing from all classes together gives each its share only roughly."
    return text


def find_missing_shuffle(aside: Tensor, labels: Tensor) -> str:
    """Images that were chosen by their position within the class and not at random."""
    ways = set()
    for label in labels.unique():
        rank = torch.isin((labels == label).nonzero().flatten(), aside).nonzero().flatten()
        steps = rank.diff().unique()
        if len(steps) != 1:
            return ""
        ways.add("every k-th" if int(steps) > 1 else "the first" if int(rank[0]) == 0 else "the last")
    return (
        f"of each class {' or '.join(sorted(ways))} images are set aside: files that lie together are often of one "
        "series. Shuffle within each class."
    )


# --- 2 and 3 · uncertainty


def check_error(standard_error: Any) -> Verdict:
    """The standard error of an accuracy of 90 % on 400 test images, in percentage points."""
    near = {
        0.015: "that is a share; in percentage points it is a hundred times as much.",
        0.0225: "that is the variance (times 100); the standard error is its square root.",
        0.000225: "that is the variance; the standard error is its square root.",
        30.0: "that is the standard deviation for a single image; the mean of 400 varies less.",
        0.3: "that is the standard deviation for a single image; the mean of 400 varies less.",
        0.075: "that divides by 400 and not by its square root.",
        2.94: "that is half the width of a 95 % interval: 1.96 standard errors.",
        5.0: "p (1 − p) is missing under the root: 1/√n is more than it can be.",
    }
    return number(standard_error, 1.5, near, "right: √(0.9 · 0.1 / 400) = 0.015. It takes 1,600 images to halve it.")


def check_needed(num_images: Any) -> Verdict:
    """The number of test images, different ones for each model, at which 90 % and 92 % are 1.96 standard errors of the
    difference apart."""
    near = {
        (864, 865): "that is for one model with 90 % and a fixed accuracy; both are measured, and both variances add.",
        (706, 708): "that is for one model with 92 % and a fixed accuracy; both are measured, and both variances add.",
        (408, 409): "that makes the difference one standard error; 1.96 were asked for, and they enter squared.",
        (801, 802): "1.96 enters squared.",
        (3142, 3143): "that is for both models together; the question is how many for each.",
        (392, 394): "that would do for a difference of 4 points; n goes with one over the square of the difference.",
        (6284, 6286): "that would be for a difference of 1 point.",
        (3200, 3215): "that finds the difference in four of five cases (a power of 80 %): more than was asked.",
    }
    count = as_number(num_images)
    for (low, high), reason in near.items():
        if count is not None and low <= count <= high:
            return Verdict(False, f"{count:,g} is not it: {reason}")
    praise = (
        "right: 1.96² · (0.9 · 0.1 + 0.92 · 0.08) / 0.02² ≈ 1,572. And that is only where hope begins: in half of all "
        "cases the measured difference comes out smaller than the true one."
    )
    return number(num_images, 1572, praise=praise, within=0.002)


# --- 4 · three implementations of normalization


def normalize_a(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    center, scale = torch.tensor(mean), torch.tensor(std[::-1])  # blue, green, red
    return ((images / 255).movedim(1, -1) - center).div(scale).movedim(-1, 1)


def normalize_b(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    center, scale = 255 * torch.tensor(mean), 255 * torch.tensor(std)
    return (images.float().movedim(1, -1) - center).div(scale).movedim(-1, 1)


def normalize_c(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    center, scale = torch.tensor(mean), torch.tensor(std)
    once = normalize(images, mean, std).movedim(1, -1)
    return (once - center).div(scale).movedim(-1, 1)


suspects = {"A": normalize_a, "B": normalize_b, "C": normalize_c}
ROLES = {"A": "quiet", "B": "right", "C": "loud"}


def check_suspects(right: Any, quiet: Any, loud: Any) -> Verdict:
    """Which of `suspects` is right, which is broken but hardly shows it, and which is broken and shows it at once."""
    claims = {"right": right, "quiet": quiet, "loud": loud}
    if unwritten(right, quiet, loud):
        return NOT_YET
    for letter in claims.values():
        if not isinstance(letter, str) or letter.strip().upper() not in suspects:
            return Verdict(False, f"it is {describe(letter)}; one of the letters A, B and C was asked for.")
    named = {role: letter.strip().upper() for role, letter in claims.items()}
    if len(set(named.values())) < 3:
        return Verdict(False, "each letter has one role: name all three.")
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    true = normalize(images, CIFAR_MEAN, CIFAR_STD)
    gaps = {letter: max_abs_diff(suspect(images, CIFAR_MEAN, CIFAR_STD), true) for letter, suspect in suspects.items()}
    letter = named["right"]
    if ROLES[letter] != "right":
        size = "little" if ROLES[letter] == "quiet" else "a lot"
        return Verdict(
            False,
            f"{letter} is broken: it differs from `normalize` by up to {gaps[letter]:.2g}. That is {size}, and not "
            "rounding.",
        )
    if ROLES[named["quiet"]] != "quiet":
        return Verdict(
            False,
            f"B is right, the other two are swapped: {named['quiet']} differs from `normalize` by up to "
            f"{gaps[named['quiet']]:.2g}, and {named['loud']} by {gaps[named['loud']]:.2g} only.",
        )
    return Verdict(
        True,
        "right: A takes the standard deviations in the order blue, green, red; C normalizes twice. A test on accuracy "
        "finds C; only a comparison of values finds A.",
    )
