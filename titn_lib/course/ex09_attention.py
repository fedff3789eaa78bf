"""Exercises of 09_attention."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib import interpret
from titn_lib.course.checks import Verdict, all_of, as_number, call_answer, compare, describe, number, unwritten
from titn_lib.models.registry import create_model

MapFunction = Callable[[nn.Module, Tensor], Tensor]  # model, "batch channel height width" → "batch height width"
RolloutFunction = Callable[[Tensor], Tensor]  # "block head query key" → "query key"


def check_rollout(answer: RolloutFunction) -> Verdict:
    """`answer(attention)`: "block head query key" → the rollout "query key"."""

    def inputs() -> tuple[Tensor]:
        return ((2 * torch.randn(4, 3, 6, 6)).softmax(dim=-1),)

    return compare(answer, rollout, inputs, step_mistakes() | order_mistakes())


def rollout(attention: Tensor) -> Tensor:
    return interpret.rollout(list(attention))


def chain(steps: Tensor) -> Tensor:
    """The product of all steps, the last one on the left."""
    rolled = steps[0]
    for later in steps[1:]:
        rolled = later @ rolled
    return rolled


def add_residual(attention: Tensor) -> Tensor:
    return (attention + torch.eye(attention.shape[-1])) / 2


def no_residual(attention: Tensor) -> Tensor:
    return chain(attention.mean(dim=1))


def step_mistakes() -> dict[str, RolloutFunction]:
    """Mistakes within one block (heads, residual, normalization), by what they do."""

    def not_normalized(attention: Tensor) -> Tensor:
        return chain(2 * add_residual(attention.mean(dim=1)))

    def columns(attention: Tensor) -> Tensor:
        steps = add_residual(attention.mean(dim=1))
        return chain(steps / steps.sum(dim=-2, keepdim=True))

    def maximum(attention: Tensor) -> Tensor:
        steps = add_residual(attention.amax(dim=1))
        return chain(steps / steps.sum(dim=-1, keepdim=True))

    def summed(attention: Tensor) -> Tensor:
        steps = add_residual(attention.sum(dim=1))
        return chain(steps / steps.sum(dim=-1, keepdim=True))

    def heads_apart(attention: Tensor) -> Tensor:
        return torch.stack([chain(add_residual(head)) for head in attention.unbind(dim=1)]).mean(dim=0)

    return {
        "the residual is left out: a token also keeps its own features": no_residual,
        "the rows are not normalized to sum to 1 after I was added": not_normalized,
        "columns are normalized to sum to 1; it should be rows": columns,
        "the maximum over heads is taken; it should be the mean": maximum,
        "the heads are summed; it should be their mean": summed,
        "each head is rolled out alone and the mean taken at the end; take it in every block": heads_apart,
    }


def order_mistakes() -> dict[str, RolloutFunction]:
    """Mistakes in how the blocks are multiplied, by what they do."""

    def backwards(attention: Tensor) -> Tensor:
        return rollout(attention.flip(0))

    def backwards_without_residual(attention: Tensor) -> Tensor:
        return no_residual(attention.flip(0))

    def residual_at_the_end(attention: Tensor) -> Tensor:
        return add_residual(no_residual(attention))

    def last_block(attention: Tensor) -> Tensor:
        return add_residual(attention[-1].mean(dim=0))

    def transposed_attention(attention: Tensor) -> Tensor:
        return rollout(attention.mT)

    def transposed_result(attention: Tensor) -> Tensor:
        return rollout(attention).mT

    def by_element(attention: Tensor) -> Tensor:
        return add_residual(attention.mean(dim=1)).prod(dim=0)

    def averaged(attention: Tensor) -> Tensor:
        return add_residual(attention.mean(dim=1)).mean(dim=0)

    return {
        "the matrices are multiplied element by element; use the matrix product": by_element,
        "the blocks are averaged; they should be multiplied": averaged,
        "the blocks are multiplied in the wrong order: the last one stands on the left": backwards,
        "the residual is left out, and the blocks are multiplied in the wrong order": backwards_without_residual,
        "the residual is added once at the end; every block has one": residual_at_the_end,
        "only the last block is used": last_block,
        "the attention is transposed: a row is what a query attends to": transposed_attention,
        "the result is transposed: row i says where token i comes from": transposed_result,
    }


def check_uniform(patch: Any, itself: Any) -> Verdict:
    """The class token's row of the rollout, 5 blocks of 18 tokens, uniform attention: a patch, the token itself."""
    kept, uniform = 1 / 32, 1 / 18
    others = (1 - kept) * uniform
    wrong = {
        uniform: "that is attention alone; half of every block's matrix is I.",
        uniform**5: "rows of a product of such matrices still sum to 1; yours would sum to much less.",
        uniform / 2: "that is a single block; there are five.",
        **{100 * value: "that is in percent: give a share." for value in (others, kept + others)},
        1 / 32: "the class token keeps that in five halvings; it also attends to itself.",
        0.5 + uniform / 2: "that is a single block; there are five.",
        (1 - kept) / 17: "what is not kept is spread over all 18 tokens, itself among them.",
    }
    return all_of(
        for_a_patch=number(patch, others, {**wrong, kept + others: "that is the token itself."}),
        for_itself=number(
            itself,
            kept + others,
            {**wrong, others: "that is any other token; the token itself also keeps a share."},
            "both are right: in five blocks a token keeps ½⁵ of itself and spreads the rest evenly.",
        ),
    )


def map_a(model: nn.Module, images: Tensor) -> Tensor:
    """A map for the class head's prediction."""
    return interpret.relevance(model, images, classes=interpret.head_logits_fn(model)(images).argmax(dim=-1)).image


def map_b(model: nn.Module, images: Tensor) -> Tensor:
    """A map for the class head's prediction."""
    local = F.pad(images, (1, 1, 1, 1), mode="replicate")
    strength = (local[:, :, 1:-1, 2:] - local[:, :, 1:-1, :-2]) ** 2 + (
        local[:, :, 2:, 1:-1] - local[:, :, :-2, 1:-1]
    ) ** 2
    weight = interpret.head_logits_fn(model)(images).softmax(dim=-1).sum(dim=-1)[:, None, None]
    return (interpret.blur(strength.sqrt(), width=1.0).sum(dim=1) * weight).detach()


def map_c(model: nn.Module, images: Tensor) -> Tensor:
    """A map for the class head's prediction."""
    classes = interpret.head_logits_fn(model)(images).argmax(dim=-1)
    return interpret.blur((interpret.input_gradient(model, images, classes) * images).abs(), width=1.0).sum(dim=1)


def check_suspect(moved: Callable[[MapFunction, nn.Module, Tensor], Any], suspect: Any) -> Verdict:
    """`moved(map_function, model, images)`: the mean rank correlation of the maps before and after all weights are
    randomized; and which of the maps a, b, c does not depend on them."""
    wrong = find_wrong_correlation(moved)
    if wrong:
        return wrong
    if unwritten(suspect):
        return Verdict(False, "moved is right. Now use it: which of a, b and c is it?")
    letter = str(suspect).strip().lower().removeprefix("map_")
    if letter != "b":
        known = letter in ("a", "c")
        return Verdict(
            False, f"map_{letter} changes with the weights." if known else f"{describe(suspect)} is none of a, b, c."
        )
    return Verdict(
        True, "right: map_b is an edge detector. It runs the model, but sums all its probabilities, which is always 1."
    )


def find_wrong_correlation(moved: Callable[[MapFunction, nn.Module, Tensor], Any]) -> Verdict | None:
    """What is wrong with `moved`, if anything: tried on maps that depend on the image, on parts of the weights, and on
    whether the weights are those of the model."""
    model = create_model("titn_nano", in_channels=1, image_size=(8, 8), depth=5).eval()
    images, before = torch.randn(4, 1, 8, 8), {name: value.clone() for name, value in model.state_dict().items()}
    used = []  # for each call: whether it was with the weights of the model that was passed in

    def image_only(one: nn.Module, batch: Tensor) -> Tensor:
        used.append(has_weights(one, before))
        return batch.sum(dim=1)

    def same_order(one: nn.Module, batch: Tensor) -> Tensor:
        """The same for all images. With other weights the values are others, but in the same order."""
        order = quadrants(images[:1]).expand(len(batch), 8, 8)
        return order if has_weights(one, before) else (8 * order).exp()

    def first_kept(one: nn.Module, batch: Tensor) -> Tensor:
        """With other weights the order is reversed, but not in the first image, whose values are the largest. Other
        images differ by more than the values within one."""
        order, own = quadrants(batch), (batch[:, None] == images).flatten(2).all(dim=2).float().argmax(dim=1)
        sign = torch.where(torch.tensor(has_weights(one, before)) | (own == 0), 1.0, -1.0)
        return (sign * (own == 0).float().mul(1000).add(1))[:, None, None] * order + 10_000.0 * own[:, None, None]

    parts = (seeded_by(part) for part in ("heads.", "blocks.", "pixel_embedding."))
    values = []
    for map_function in (image_only, *parts, same_order, first_kept):
        got = call_answer(moved, map_function, model, images)
        if isinstance(got, Verdict):
            return got
        value = as_number(got)
        if value is None:
            return Verdict(False, f"moved returns {describe(got)}; one number was asked for: the mean over images.")
        values.append(value)
    if not has_weights(model, before):
        return Verdict(
            False,
            "the weights of the model that was passed in have changed: use the copy that randomize_weights makes.",
        )
    return judge_correlations(values, any(used))


def has_weights(model: nn.Module, weights: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def quadrants(images: Tensor) -> Tensor:
    """Each image's four quadrants, 0 for the darkest to 3 for the brightest: "batch 8 8"."""
    brightness = F.avg_pool2d(images, 4).flatten(1)
    order = brightness.argsort(dim=1).argsort(dim=1).float().unflatten(1, (2, 2))
    return order.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)


def seeded_by(part: str) -> MapFunction:
    """Random maps, seeded by the weights of one part of the network."""

    def random_map(model: nn.Module, images: Tensor) -> Tensor:
        total = sum(float(value.double().sum()) for name, value in model.state_dict().items() if part in name)
        generator = torch.Generator().manual_seed(abs(hash(round(total, 6))) % 2**31)
        return torch.rand(len(images), 8, 8, generator=generator)

    return random_map


def judge_correlations(values: list[float], used: bool) -> Verdict | None:
    """What is wrong with the correlations of find_wrong_correlation's six maps, if anything.

    Args:
        used: whether the model that was passed in was used.
    """
    image_only, *by_part, same_order, first_kept = values
    heads, blocks, embedding = (abs(value) > 0.99 for value in by_part)
    if not 0.99 < image_only < 1.01:
        return Verdict(
            False, f"for a map that depends on the image only, moved gives {image_only:.2f}; it should be 1."
        )
    if not used:
        return Verdict(False, "the model that was passed in is never used: one of the two maps should be its own.")
    if heads and blocks and embedding:
        return Verdict(False, "both maps come from the same weights.")
    if heads:
        return Verdict(False, "the heads kept their weights: call randomize_weights with depth + 1.")
    if blocks:
        return Verdict(False, "the blocks kept their weights: call randomize_weights with depth + 1.")
    if embedding:
        return Verdict(
            False, "the blocks are random, the pixel embedding isn't: call randomize_weights with depth + 1."
        )
    if not 0.99 < same_order < 1.01:
        return Verdict(
            False,
            f"for a map whose values change, but not their order, moved gives {same_order:.2f}; it should be 1. Is it "
            "the *rank* correlation?",
        )
    if not -0.51 < first_kept < -0.49:
        return Verdict(
            False,
            "if one of four images keeps its map, and the other three maps are reversed, moved gives "
            f"{first_kept:.2f}; it should be -0.50: the mean over images of each one's own correlation.",
        )
    return None
