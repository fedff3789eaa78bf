"""Exercises of 04_titn."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib.course.checks import Verdict, all_of, compare, number
from titn_lib.models.layers import TransformerLayer


def random_norm(width: int) -> nn.LayerNorm:
    """A LayerNorm with random scale and shift: with fresh ones, leaving the second out would make no difference."""
    norm = nn.LayerNorm(width)
    nn.init.normal_(norm.weight, mean=1.0, std=0.3)
    nn.init.normal_(norm.bias, std=0.3)
    return norm


def check_projection(answer: Callable[..., Any]) -> Verdict:
    """`answer(inner, outer, norm, linear, last_norm)`: flatten → LayerNorm → Linear → LayerNorm, added to the
    patch tokens (the original TNT; there is no distillation token)."""

    def update(inner: Tensor, norm: nn.Module, linear: nn.Module, last_norm: nn.Module) -> Tensor:
        return last_norm(linear(norm(inner.flatten(2))))

    def project(inner: Tensor, outer: Tensor, *modules: nn.Module) -> Tensor:
        return outer + F.pad(update(inner, *modules), (0, 0, 1, 0))

    def replaced(inner: Tensor, outer: Tensor, *modules: nn.Module) -> Tensor:
        return torch.cat([outer[:, :1], update(inner, *modules)], dim=1)

    def shifted(inner: Tensor, outer: Tensor, *modules: nn.Module) -> Tensor:
        return outer + F.pad(update(inner, *modules), (0, 0, 0, 1))

    def swapped(inner: Tensor, outer: Tensor, *modules: nn.Module) -> Tensor:
        return project(inner.transpose(2, 3), outer, *modules)

    def no_first(inner: Tensor, outer: Tensor, norm: nn.Module, linear: nn.Module, last_norm: nn.Module) -> Tensor:
        return project(inner, outer, nn.Identity(), linear, last_norm)

    def no_last(inner: Tensor, outer: Tensor, norm: nn.Module, linear: nn.Module, last_norm: nn.Module) -> Tensor:
        return project(inner, outer, norm, linear, nn.Identity())

    def neither(inner: Tensor, outer: Tensor, norm: nn.Module, linear: nn.Module, last_norm: nn.Module) -> Tensor:
        return project(inner, outer, nn.Identity(), linear, nn.Identity())

    def late(inner: Tensor, outer: Tensor, norm: nn.Module, linear: nn.Module, last_norm: nn.Module) -> Tensor:
        patches = last_norm(outer[:, 1:] + linear(norm(inner.flatten(2))))
        return torch.cat([outer[:, :1], patches], dim=1)

    def inputs() -> tuple:
        batch, patches, pixels, c, d = 2, 4, 9, 5, 7
        norms = random_norm(pixels * c), nn.Linear(pixels * c, d, bias=False), random_norm(d)
        inner, outer = torch.randn(batch, patches, pixels, c), torch.randn(batch, 1 + patches, d)
        return inner, outer, *(module.requires_grad_(False) for module in norms)

    mistakes: dict[str, Callable[..., Any]] = {
        "the last LayerNorm is left out: TITN has none there, the original TNT has": no_last,
        "the first LayerNorm is left out": no_first,
        "both LayerNorms are left out": neither,
        "the last LayerNorm comes after the sum; it should come before, on the update alone": late,
        "the update replaces the patch tokens; it should be added to them": replaced,
        "the update is added from row 0 on: the class token gets that of the first patch, the last patch none": shifted,
        "a patch is flattened feature by feature; it should be token by token": swapped,
    }
    return compare(answer, project, inputs, mistakes)


def check_counts(block: Any, extra: Any) -> Verdict:
    """Parameters of a block twice as wide as those of titn_paper; parameters that the distillation token and its head
    add to titn_paper with 10 classes."""
    return all_of(
        block_parameters=number(
            block,
            1_929_576,
            {
                483_828: "that is a block of titn_paper, with c = 12 and d = 192.",
                1_781_688: "the projection is missing.",
                1_791_336: "the projection's input is all pixel tokens of a patch, M · c features, and not one.",
                1_774_464: "that is the outer layer alone.",
                1_923_840: "those are the matrices; count biases and LayerNorms, too.",
                1_929_528: "the LayerNorm before the projection is missing: c scales and c shifts.",
                1_929_192: "the projection's bias is missing.",
                1_930_296: "the LayerNorm before the projection is over c features here, not over a whole patch.",
                1_929_576 + 195 * 7_224: "all patches share one inner layer; you counted it for each.",
                1_929_576 + 15 * 7_224: "all pixel tokens share one inner layer; you counted it for each.",
                12 * 1_929_576: "those are all twelve blocks.",
            },
        ),
        extra_parameters=number(
            extra,
            6_154,
            {
                2_314: "that is the head alone; the token has rows in the outer tables, too.",
                2_506: "that is a head and one row; there are three tables.",
                2_698: "that is a head and a row in two tables; the whole third table exists for distillation alone.",
                2_890: "that is a head and a row in three tables; the whole third table exists for distillation alone.",
                5_770: "a head and the third table; the token's rows in the other two are missing.",
                6_346: "the token's row in the third table is counted twice.",
                5_962: "the token's row in one of the other two tables is missing.",
                23_524: "that is for 100 classes.",
                12_682: "that is a head and three tables; the model without distillation has two of them, too.",
            },
            "both are right: a block has 7,224 + 147,888 + 1,774,464 parameters; distillation adds a head (2,314), a "
            "row in two tables (384) and the third table (3,456).",
        ),
    )


def masked(layer: TransformerLayer, tokens: Tensor, allowed: Tensor) -> Tensor:
    """The layer with a mask: query i may attend to key j only if `allowed[i, j]`."""
    attention, (batch, length, width) = layer.attn, tokens.shape
    split = attention.qkv(layer.attention_norm(tokens)).reshape(batch, length, 3, attention.heads, -1)
    query, key, value = split.permute(2, 0, 3, 1, 4)
    scores = (query * attention.scale @ key.transpose(-2, -1)).masked_fill(~allowed, -torch.inf)
    update = attention.proj((scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, length, width))
    tokens = tokens + update
    return tokens + layer.mlp(layer.mlp_norm(tokens))


def isolation_mistakes() -> dict[str, Callable[[Tensor, TransformerLayer], Tensor]]:
    """Typical mistakes: something else is masked, or only half of it."""

    def plain(outer: Tensor, layer: TransformerLayer) -> Tensor:
        return layer(outer)[0]

    def still_attends(outer: Tensor, layer: TransformerLayer) -> Tensor:
        return torch.cat([layer(outer[:, :-1])[0], layer(outer)[0][:, -1:]], dim=1)

    def still_attended(outer: Tensor, layer: TransformerLayer) -> Tensor:
        return torch.cat([layer(outer)[0][:, :-1], layer(outer[:, -1:])[0]], dim=1)

    def only_others(outer: Tensor, layer: TransformerLayer) -> Tensor:
        allowed = torch.ones(outer.shape[1], outer.shape[1], dtype=torch.bool)
        allowed[:-1, -1] = False
        allowed[-1, -1] = False
        return masked(layer, outer, allowed)

    def skipped(outer: Tensor, layer: TransformerLayer) -> Tensor:
        return torch.cat([layer(outer[:, :-1])[0], outer[:, -1:]], dim=1)

    def no_attention(outer: Tensor, layer: TransformerLayer) -> Tensor:
        last = outer[:, -1:] + layer.mlp(layer.mlp_norm(outer[:, -1:]))
        return torch.cat([layer(outer[:, :-1])[0], last], dim=1)

    def zeroed(outer: Tensor, layer: TransformerLayer) -> Tensor:
        return layer(torch.cat([outer[:, :-1], 0 * outer[:, -1:]], dim=1))[0]

    def across(outer: Tensor, layer: TransformerLayer) -> Tensor:
        return torch.cat([layer(outer[:, :-1])[0], layer(outer[None, :, -1])[0][0][:, None]], dim=1)

    def first(outer: Tensor, layer: TransformerLayer) -> Tensor:
        return torch.cat([layer(outer[:, :1])[0], layer(outer[:, 1:])[0]], dim=1)

    return {
        "nothing is masked": plain,
        "no token attends to the distillation token, but it still attends to the others": still_attends,
        "the distillation token attends only to itself, but the others still attend to it": still_attended,
        "the distillation token attends to all but itself": only_others,
        "the distillation token skips the whole layer; its own attention and MLP should stay": skipped,
        "the distillation token skips attention; it should still attend to itself": no_attention,
        "the distillation token is set to zero; the others still attend to it": zeroed,
        "the images of a batch attend to each other: outer[:, -1] has no token axis any more": across,
        "the class token is isolated (row 0); the distillation token is the last row": first,
    }


def check_isolated(answer: Callable[..., Any]) -> Verdict:
    """`answer(outer, layer)`: the layer, but the last token attends only to itself, and no other token attends to
    it."""

    def isolated(outer: Tensor, layer: TransformerLayer) -> Tensor:
        return torch.cat([layer(outer[:, :-1])[0], layer(outer[:, -1:])[0]], dim=1)

    def inputs() -> tuple:
        layer = TransformerLayer(12, heads=3)
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.5)
        return torch.randn(2, 18, 12), layer.requires_grad_(False)  # 18, as in TITN: an answer may count on it

    praise = (
        "right. In a whole TITN, the distillation logits would now be the same for all images: the token starts from a "
        "table, the projection does not update it, and attention was its only connection to the image."
    )
    return compare(answer, isolated, inputs, isolation_mistakes(), praise, tolerance=1e-3)
