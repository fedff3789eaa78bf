"""Exercises of 04_titn."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib.course.checks import Verdict, all_of, compare, number
from titn_lib.models.layers import TransformerLayer


def random_norm(width: int) -> nn.LayerNorm:
    """One with something to get wrong: fresh ones do nothing after the first."""
    norm = nn.LayerNorm(width)
    nn.init.normal_(norm.weight, mean=1.0, std=0.3)
    nn.init.normal_(norm.bias, std=0.3)
    return norm


def check_report(answer: Callable[..., Any]) -> Verdict:
    """`answer(inner, outer, norm, linear, last_norm)`: flatten → LayerNorm → Linear → LayerNorm, added to the patch
    rows of outer tokens without a distillation token (original TNT)."""

    def news(inner: Tensor, norm: nn.Module, linear: nn.Module, last_norm: nn.Module) -> Tensor:
        return last_norm(linear(norm(inner.flatten(2))))

    def report(inner: Tensor, outer: Tensor, *modules: nn.Module) -> Tensor:
        return outer + F.pad(news(inner, *modules), (0, 0, 1, 0))

    def replaced(inner: Tensor, outer: Tensor, *modules: nn.Module) -> Tensor:
        return torch.cat([outer[:, :1], news(inner, *modules)], dim=1)

    def shifted(inner: Tensor, outer: Tensor, *modules: nn.Module) -> Tensor:
        return outer + F.pad(news(inner, *modules), (0, 0, 0, 1))

    def swapped(inner: Tensor, outer: Tensor, *modules: nn.Module) -> Tensor:
        return report(inner.transpose(2, 3), outer, *modules)

    def no_first(inner: Tensor, outer: Tensor, norm: nn.Module, linear: nn.Module, last_norm: nn.Module) -> Tensor:
        return report(inner, outer, nn.Identity(), linear, last_norm)

    def no_last(inner: Tensor, outer: Tensor, norm: nn.Module, linear: nn.Module, last_norm: nn.Module) -> Tensor:
        return report(inner, outer, norm, linear, nn.Identity())

    def neither(inner: Tensor, outer: Tensor, norm: nn.Module, linear: nn.Module, last_norm: nn.Module) -> Tensor:
        return report(inner, outer, nn.Identity(), linear, nn.Identity())

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
        "the last LayerNorm comes after the sum; it should come before, on the news alone": late,
        "the news replace the patch tokens; they should be added to them": replaced,
        "the news are added from row 0 on: the class token gets the first patch's, the last patch gets none": shifted,
        "pixels and numbers change places when a patch is flattened": swapped,
    }
    return compare(answer, report, inputs, mistakes)


def check_counts(block: Any, extra: Any) -> Verdict:
    """Parameters of a block twice as wide as titn_paper's; what distillation adds to titn_paper with 10 classes."""
    return all_of(
        block_parameters=number(
            block,
            1_929_576,
            {
                483_828: "that is a block of titn_paper, with c = 12 and d = 192.",
                1_781_688: "the projection is missing.",
                1_791_336: "the projection takes all pixels of a patch, M · c numbers, and not one pixel's c.",
                1_774_464: "that is the outer layer alone.",
                1_923_840: "those are the matrices; biases and LayerNorms count, too.",
                1_929_528: "the LayerNorm before the projection is missing: a scale and a shift for each of c numbers.",
                1_929_192: "the projection's bias is missing.",
                1_930_296: "the LayerNorm before the projection is over c numbers here, not over a whole patch.",
                1_929_576 + 195 * 7_224: "one inner layer serves all patches; you counted it for each.",
                1_929_576 + 15 * 7_224: "one inner layer serves all pixels; you counted it for each.",
                12 * 1_929_576: "those are all twelve blocks.",
            },
        ),
        extra_parameters=number(
            extra,
            6_154,
            {
                2_314: "that is the head alone; the token has rows in the outer tables, too.",
                2_506: "that is a head and one row; there are three tables.",
                2_698: "that is a head and a row in two tables; the third is there for distillation alone, all of it.",
                2_890: "that is a head and a row in three tables; the third is there for distillation, all of it.",
                5_770: "a head and the third table; the token's rows in the other two are missing.",
                6_346: "the token's row in the third table is counted twice.",
                5_962: "the token's row in one of the other two tables is missing.",
                23_524: "that is the price with 100 classes.",
                12_682: "a head and three tables; but two of them the model without distillation has, too.",
            },
            "both are right: a block has 7,224 + 147,888 + 1,774,464 parameters; the token brings a head (2,314), a "
            "row in two tables (384) and the third table (3,456).",
        ),
    )


def masked(layer: TransformerLayer, tokens: Tensor, allowed: Tensor) -> Tensor:
    """The layer, where query i may read key j only if `allowed[i, j]`."""
    attention, (batch, length, width) = layer.attn, tokens.shape
    split = attention.qkv(layer.attention_norm(tokens)).reshape(batch, length, 3, attention.heads, -1)
    query, key, value = split.permute(2, 0, 3, 1, 4)
    scores = (query * attention.scale @ key.transpose(-2, -1)).masked_fill(~allowed, -torch.inf)
    update = attention.proj((scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, length, width))
    tokens = tokens + update
    return tokens + layer.mlp(layer.mlp_norm(tokens))


def check_left_out(answer: Callable[..., Any]) -> Verdict:
    """`answer(outer, layer)`: the layer, but the last token reads only itself and no other token reads it."""

    def left_out(outer: Tensor, layer: TransformerLayer) -> Tensor:
        return torch.cat([layer(outer[:, :-1])[0], layer(outer[:, -1:])[0]], dim=1)

    def plain(outer: Tensor, layer: TransformerLayer) -> Tensor:
        return layer(outer)[0]

    def still_reads(outer: Tensor, layer: TransformerLayer) -> Tensor:
        return torch.cat([layer(outer[:, :-1])[0], layer(outer)[0][:, -1:]], dim=1)

    def still_read(outer: Tensor, layer: TransformerLayer) -> Tensor:
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

    mistakes = {
        "nothing is left out": plain,
        "nobody reads the distillation token, but it still reads the others": still_reads,
        "the distillation token reads only itself, but the others still read it": still_read,
        "the distillation token reads all but itself": only_others,
        "the distillation token skips the whole layer; its own attention and MLP should stay": skipped,
        "the distillation token skips attention; it may still read itself": no_attention,
        "the distillation token is set to zero and stays in the conversation": zeroed,
        "the images of a batch read each other: outer[:, -1] has no token axis any more": across,
        "the class token is left out (row 0); the distillation token is the last row": first,
    }

    def inputs() -> tuple:
        layer = TransformerLayer(12, heads=3)
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.5)
        return torch.randn(2, 18, 12), layer.requires_grad_(False)  # 18: an answer may count TITN's own tokens

    praise = (
        "right. In a whole TITN the distillation logits are now the same for all images: that token starts from a "
        "table, gets no news from the projection, and could learn of the image only by reading."
    )
    return compare(answer, left_out, inputs, mistakes, praise, tolerance=1e-3)
