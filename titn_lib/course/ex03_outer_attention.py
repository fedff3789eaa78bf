"""Exercises of 03_outer_attention."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib.course.checks import (
    NOTHING_CHANGED,
    OTHER_MODULES,
    Verdict,
    all_of,
    compare,
    from_exception,
    max_abs_diff,
    number,
)
from titn_lib.models.titn import TITN, TITNConfig


def project(
    inner: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    axes: int = 1,
    correction: int = 0,
    centered: bool = True,
    power: float = 0.5,
    norm: bool = True,
    affine: bool = True,
    swap: bool = False,
    transpose: bool = False,
    biased: bool = True,
) -> Tensor:
    """Pixel tokens → the updates of their patch tokens; the keyword arguments are typical mistakes."""
    over = list(range(-axes, 0))
    spread = inner.var(over, keepdim=True, correction=correction) if centered else (inner**2).mean(over, keepdim=True)
    normed = inner - inner.mean(over, keepdim=True) if centered else inner
    normed = normed / (spread + 1e-5) ** power if norm else inner
    normed = normed * scale + shift if affine else normed
    flat = (normed.transpose(1, 2) if swap else normed).flatten(1)
    # Only a square matrix can be transposed by mistake without an error.
    matrix = weight if transpose and weight.shape[0] == weight.shape[1] else weight.T
    return flat @ matrix + biased * bias


def add_update(
    inner: Tensor, outer: Tensor, *weights: Tensor, first: int = 1, replace: bool = False, **wrong: Any
) -> Tensor:
    """Add the projected pixel tokens to the patch tokens, from row `first` on; `wrong` as in `project`."""
    update = project(inner, *weights, **wrong)
    outer = outer.clone()
    rows = slice(first, first + len(update))
    outer[rows] = update[: len(outer) - first] + (0 if replace else outer[rows])
    return outer


def projection_mistakes() -> dict[str, Callable[..., Tensor]]:
    """Typical mistakes, each with the end of its sentence, as in `checks.compare`."""

    def nothing(inner: Tensor, outer: Tensor, *_: Tensor) -> Tensor:
        return outer

    def padded_before(inner: Tensor, outer: Tensor, *weights: Tensor) -> Tensor:
        return outer + project(F.pad(inner, (0, 0, 0, 0, 1, 1)), *weights)

    def bias_for_all(inner: Tensor, outer: Tensor, *weights: Tensor) -> Tensor:
        return add_update(inner, outer, *weights, biased=False) + weights[-1]

    return {
        "nothing is added": nothing,
        "the update is added from row 0 on; that is the class token, the patches begin at row 1": partial(
            add_update, first=0
        ),
        "the update is added from row 2 on; the patches begin at row 1": partial(add_update, first=2),
        "the patch tokens are replaced; the update should be added to them": partial(add_update, replace=True),
        "class and distillation token get an update, too: pad with zeros, after the projection": padded_before,
        "class and distillation token get the bias, too": bias_for_all,
        "a patch is flattened feature by feature; it should be token by token": partial(add_update, swap=True),
        "LayerNorm is left out": partial(add_update, norm=False, affine=False),
        "LayerNorm's learned scale and shift are left out": partial(add_update, affine=False),
        "LayerNorm is over the whole patch; every pixel token has its own mean and standard deviation": partial(
            add_update, axes=2
        ),
        "the variance is divided by n − 1; LayerNorm divides by n (correction=0)": partial(add_update, correction=1),
        "it is divided by the variance; LayerNorm divides by its square root": partial(add_update, power=1.0),
        "the mean is not subtracted (that would be RMSNorm)": partial(add_update, centered=False),
        "the matrix is not transposed": partial(add_update, transpose=True),
        "the bias is left out": partial(add_update, biased=False),
    }


def check_projection(answer: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]) -> Verdict:
    """`answer(inner, outer, norm_weight, norm_bias, weight, bias)`: "patch pixel width" and "token width" → the outer
    tokens (class, patches, distillation) after the update from the pixel tokens."""
    sizes = iter([(6, 4, 5, 20), (9, 6, 4, 10), (4, 9, 3, 16)])

    def inputs() -> tuple[Tensor, ...]:
        patches, pixels, width, outer_width = next(sizes)
        tokens = torch.randn(patches, pixels, width) * torch.rand(patches, pixels, 1).add(0.5) + torch.randn(pixels, 1)
        return (
            100 * tokens,  # so large that LayerNorm's eps, which readers may leave out, makes no difference
            torch.randn(patches + 2, outer_width),
            torch.rand(width) + 0.5,
            torch.randn(width),
            torch.randn(outer_width, pixels * width),
            torch.randn(outer_width),
        )

    changed = False

    def watched(inner: Tensor, outer: Tensor, *weights: Tensor) -> Any:
        nonlocal changed
        before = outer.clone()
        got = answer(inner, outer, *weights)
        changed = changed or not torch.equal(outer, before)
        return got

    verdict = compare(watched, add_update, inputs, projection_mistakes(), tolerance=1e-3)
    if verdict.right and changed:
        return Verdict(False, "the values are right, but the caller's own tokens change: add to a copy (`clone`).")
    return verdict


def heads(outer: Tensor, class_head: nn.Module, distillation_head: nn.Module) -> Tensor:
    """TITN's logits in evaluation: the mean of both heads."""
    return (class_head(outer[:, :-1].mean(dim=1)) + distillation_head(outer[:, -1])) / 2


def check_heads(answer: Callable[[Tensor, nn.Module, nn.Module], Tensor]) -> Verdict:
    """`answer(outer, class_head, distillation_head)`: "batch token width" → TITN's logits in evaluation,
    "batch classes"."""

    def pooled(pool: Callable[[Tensor], Tensor]) -> Callable[[Tensor, nn.Module, nn.Module], Tensor]:
        return lambda outer, first, second: (first(pool(outer)) + second(outer[:, -1])) / 2

    def norm_first(outer: Tensor, first: Any, second: nn.Module) -> Tensor:
        return (first[1](first[0](outer[:, :-1]).mean(dim=1)) + second(outer[:, -1])) / 2

    mistakes: dict[str, Callable[..., Tensor]] = {
        "the class head is applied to the class token alone (as in ViT and TNT); here it is applied to a mean": pooled(
            lambda z: z[:, 0]
        ),
        "the mean includes the distillation token": pooled(lambda z: z.mean(dim=1)),
        "the mean leaves the class token out": pooled(lambda z: z[:, 1:-1].mean(dim=1)),
        "the mean leaves the last patch out: rows 0 to 16 are 0:17 in Python": pooled(lambda z: z[:, :-2].mean(dim=1)),
        "the mean includes the distillation token and leaves the class token out": pooled(
            lambda z: z[:, 1:].mean(dim=1)
        ),
        "probabilities are averaged; the logits should be": lambda outer, first, second: (
            (first(outer[:, :-1].mean(dim=1)).softmax(dim=-1) + second(outer[:, -1]).softmax(dim=-1)) / 2
        ),
        "LayerNorm comes before the mean; the mean should come first": norm_first,
        "the two heads' logits are added and not averaged": lambda *arguments: 2 * heads(*arguments),
        "the two heads are swapped": lambda outer, first, second: heads(outer, second, first),
        "the class head is used alone": lambda outer, first, _: first(outer[:, :-1].mean(dim=1)),
        "the distillation head is used alone": lambda outer, _, second: second(outer[:, -1]),
    }

    def head(width: int) -> nn.Module:
        norm = nn.LayerNorm(width)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        return nn.Sequential(norm, nn.Linear(width, 7))

    def inputs() -> tuple:
        return torch.randn(3, 18, 24) * torch.linspace(0.5, 3, 18)[:, None], head(24), head(24)

    with torch.no_grad():
        return compare(answer, heads, inputs, mistakes)


def check_sizes(tokens: Any, features: Any, parameters: Any) -> Verdict:
    """Images of 48×64, patches of 16×16, pixel tokens of 4×4, inner width 20, outer width 384, a distillation token:
    how many outer tokens, how many input features the projection has, how many parameters it has with its bias and its
    LayerNorm."""
    return all_of(
        token_count=number(
            tokens,
            14,
            {
                12: "those are the patches; two more tokens stand for no patch.",
                13: "the class or the distillation token is missing.",
                18: "that is for 16 patches; here there are 3 rows of 4.",
            },
        ),
        feature_count=number(
            features,
            320,
            {
                16: "that is the number of pixel tokens; each has 20 features.",
                20: "that is one pixel token; a patch has 16.",
                384: "that is the number of output features.",
                192: "that is for the sizes in this notebook's table.",
                768: "those are the image values in a patch; the pixel tokens have a width of their own.",
            },
        ),
        parameter_count=number(
            parameters,
            123_304,
            {
                122_880: "the bias (384) and the LayerNorm (40) are missing.",
                123_264: "the LayerNorm is missing: scale and shift of 20 features.",
                122_920: "the bias is missing: 384 values.",
                123_284: "the LayerNorm has a scale and a shift.",
                123_904: "the LayerNorm is over one pixel token (20 features), not over the whole patch.",
            },
            "all three are right.",
        ),
    )


def check_image_independent(answer: Callable[[TITN], Any]) -> Verdict:
    """`answer(model)` changes the weights of `titn_paper`'s projections, and nothing else, so that its logits no longer
    depend on the image."""
    model = TITN(TITNConfig()).eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    images = torch.randn(4, 3, 32, 32)
    try:
        with torch.no_grad():
            returned = answer(model)
            model = returned if isinstance(returned, TITN) else model
            after = model.state_dict()
            logits = model.eval()(images) if after.keys() == before.keys() else None
    except Exception as problem:  # whatever the reader's code may do
        return from_exception(problem)
    if after.keys() != before.keys():
        return OTHER_MODULES
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    if not changed:
        return NOTHING_CHANGED
    if others := [name for name in changed if ".projection." not in name]:
        more = f", and {len(others) - 1} more" if len(others) > 1 else ""
        return Verdict(False, f"{others[0]}{more}: changed, but only the projections should be.")
    if not isinstance(logits, Tensor) or not logits.isfinite().all():
        return Verdict(False, "the logits are no longer finite.")
    if (gap := max_abs_diff(logits, logits[:1].expand_as(logits))) > 1e-6:
        tokens = torch.randn(2, 16, 16, 12)
        with torch.no_grad():
            updates = [block.projection(tokens) for block in model.blocks]  # type: ignore[operator]
        active = [i for i, update in enumerate(updates, 1) if max_abs_diff(update[0], update[1]) > 1e-6]
        return Verdict(
            False,
            f"the logits of four images still differ by up to {gap:.2g}: the projections of blocks {active} still "
            "depend on the pixel tokens.",
        )
    return Verdict(True, "right: all images get the same logits. They depend on the learned tables alone.")
