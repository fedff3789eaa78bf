"""The checks of 04_titn notice wrong answers and explain them."""

import pytest
import torch
from torch.nn import functional as F

from titn_lib import count_parameters, create_model
from titn_lib.course import ex04_titn as exercise
from titn_lib.course.ex04_titn import masked
from titn_lib.models.layers import TransformerLayer


def update(inner, norm, linear, last_norm):
    return last_norm(linear(norm(inner.flatten(2))))


def last_norm_by_hand(inner, norm, linear, last_norm):
    got = linear(norm(inner.flatten(2)))
    normed = (got - got.mean(-1, keepdim=True)) / (got.var(-1, keepdim=True, correction=0) + last_norm.eps).sqrt()
    return normed * last_norm.weight + last_norm.bias


def in_place(inner, outer, *modules):
    outer[:, 1:] += update(inner, *modules)
    return outer


def loops(inner, outer, norm, linear, last_norm):
    for patch in range(inner.shape[1]):
        outer[:, 1 + patch] += last_norm(linear(norm(inner[:, patch].reshape(len(inner), -1))))
    return outer


def late(inner, outer, norm, linear, last_norm):
    outer[:, 1:] = last_norm(outer[:, 1:] + linear(norm(inner.flatten(2))))
    return outer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (in_place, "✓"),
        (loops, "✓"),
        (lambda i, o, *m: o + F.pad(last_norm_by_hand(i, *m), (0, 0, 1, 0)), "✓"),
        (lambda i, o, *m: torch.cat([o[:, :1], o[:, 1:] + update(i, *m)], 1), "✓"),
        (lambda i, o, n, p, last: o + F.pad(p(n(i.flatten(2))), (0, 0, 1, 0)), "the last LayerNorm is left out"),
        (lambda i, o, n, p, last: o + F.pad(last(p(i.flatten(2))), (0, 0, 1, 0)), "the first LayerNorm is left out"),
        (late, "comes after the sum"),
        (lambda i, o, *m: torch.cat([o[:, :1], update(i, *m)], 1), "replaces the patch tokens"),
        (lambda i, o, *m: o + F.pad(update(i, *m), (0, 0, 0, 1)), "from row 0 on"),
        (lambda i, o, *m: o + F.pad(update(i.transpose(2, 3), *m), (0, 0, 1, 0)), "feature by feature"),
        (lambda i, o, *m: o[:, 1:] + update(i, *m), r"✗ the shape is (2, 4, 7); it should be (2, 5, 7)"),
        (lambda i, o, *m: o, "✗ the shape is right"),
        (lambda i, o, *m: None, "it returns None"),
        (lambda i, o, n, p, last: n(i), "it stopped with RuntimeError"),
    ],
)
def test_projection(answer, message, expect):
    expect(message, exercise.check_projection, answer)


def test_the_counts_are_the_library_s():
    block = count_parameters(create_model("titn_paper", inner_width=24, outer_width=384).blocks[0])
    extra = count_parameters(create_model("titn_paper")) - count_parameters(create_model("tnt_paper"))
    assert exercise.check_counts(block, extra).right


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ((1_929_576, 6_154), "✓"),
        ((7_224 + 1_774_464 + 147_888, torch.tensor(2_314 + 20 * 192)), "✓"),
        ((..., 6_154), "not written yet"),
        ((483_828, 6_154), "a block of titn_paper"),
        ((1_781_688, 6_154), "the projection is missing"),
        ((7_224 + (24 * 384 + 384 + 48) + 1_774_464, 6_154), "all pixel tokens of a patch"),
        ((1_929_576 - 147_888 - 7_224, 6_154), "the outer layer alone"),
        ((1_929_576 - 2 * 24, 6_154), "the LayerNorm before the projection is missing"),
        ((1_929_576 - 384, 6_154), "the projection's bias is missing"),
        ((1_929_576 + 2 * 15 * 24, 6_154), "over c features here"),
        ((7_224 * 16 + 1_774_464 + 147_888, 6_154), "all pixel tokens share"),
        ((12 * 1_929_576, 6_154), "all twelve blocks"),
        ((1_923_840, 6_154), "count biases and LayerNorms"),
        ((7_224 * 196 + 1_774_464 + 147_888, 6_154), "for each"),
        ((1_929_576, ...), "not written yet"),
        ((1_929_576, 2_314), "that is the head alone"),
        ((1_929_576, 2_314 + 192), "there are three tables"),
        ((1_929_576, 2_698), "for distillation alone"),
        ((1_929_576, 2_314 + 3 * 192), "a row in three tables"),
        ((1_929_576, 2_314 + 18 * 192), "rows in the other two are missing"),
        ((1_929_576, 2_314 + (2 + 19) * 192), "counted twice"),
        ((1_929_576, 2_314 + (1 + 18) * 192), "row in one of the other two tables is missing"),
        ((1_929_576, 2_314 + 3 * 18 * 192), "the model without distillation has two of them"),
        ((1_929_576, 23_524), "for 100 classes"),
        ((1_929_576, 7_000), "too large"),
        ((1_929_576, "many"), "a number was asked for"),
    ],
)
def test_counts(answers, message):
    assert message in repr(exercise.check_counts(*answers))


def by_mask(outer, layer):
    last = torch.arange(outer.shape[1]) == outer.shape[1] - 1
    return masked(layer, outer, last[:, None] == last)


def hidden(query, key):
    """Mask the distillation token as a query, as a key, or as both."""

    def answer(outer, layer):
        allowed = torch.ones(outer.shape[1], outer.shape[1], dtype=torch.bool)
        if query:
            allowed[-1, :-1] = False
        if key:
            allowed[:-1, -1] = False
        return masked(layer, outer, allowed)

    return answer


def all_but_itself(outer, layer):
    allowed = torch.ones(outer.shape[1], outer.shape[1], dtype=torch.bool)
    allowed[:, -1] = False
    return masked(layer, outer, allowed)


def apart(outer, layer):
    return torch.cat([layer(outer[:, :-1])[0], layer(outer[:, -1:])[0]], dim=1)


def token_by_token(outer, layer):
    return torch.cat([layer(outer[:, i : i + 1])[0] for i in range(outer.shape[1])], dim=1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (apart, "✓"),
        (by_mask, "✓"),
        (lambda z, layer: torch.cat([layer(z[:, :17])[0], layer(z[:, 17:18])[0]], 1), "✓"),  # TITN's own 18 tokens
        (hidden(True, True), "✓"),
        (lambda z, layer: layer(z)[0], "nothing is masked"),
        (hidden(False, True), "it still attends to the others"),
        (hidden(True, False), "the others still attend to it"),
        (all_but_itself, "attends to all but itself"),
        (lambda z, layer: torch.cat([layer(z[:, :-1])[0], z[:, -1:]], 1), "skips the whole layer"),
        (lambda z, layer: torch.cat([layer(z[:, :-1])[0], z[:, -1:] + layer.mlp(layer.mlp_norm(z[:, -1:]))], 1),
         "skips attention"),
        (lambda z, layer: layer(torch.cat([z[:, :-1], 0 * z[:, -1:]], 1))[0], "set to zero"),
        (lambda z, layer: torch.cat([layer(z[:, :1])[0], layer(z[:, 1:])[0]], 1), "the class token is isolated"),
        (lambda z, layer: layer(z[:, :-1])[0], "✗ the shape is (2, 17, 12)"),
        (token_by_token, "✗ the shape is right"),
        (lambda z, layer: layer(z), "it returns tuple"),
        (lambda z, layer: ..., "not written yet"),
    ],
)  # fmt: skip
def test_isolated(answer, message, expect):
    expect(message, exercise.check_isolated, answer)


def test_masked_is_the_layer():
    layer, tokens = TransformerLayer(12, heads=3), torch.randn(2, 6, 12)
    torch.testing.assert_close(masked(layer, tokens, torch.ones(6, 6, dtype=torch.bool)), layer(tokens)[0])


def test_the_praise_is_true(monkeypatch):
    """With the distillation token isolated in every block, its logits are the same for all images. The class logits
    are not."""
    model = create_model("titn_paper", depth=2).train()
    for block in model.blocks:
        run = block.outer.forward
        monkeypatch.setattr(block.outer, "forward", lambda z, _=False, run=run: (apart(z, run), None))
    with torch.no_grad():
        class_logits, distillation_logits = model(torch.randn(4, 3, 32, 32))
    assert distillation_logits.std(dim=0).max() < 1e-5
    assert class_logits.std(dim=0).max() > 1e-3
