"""The checks of 15_related_cost detect wrong answers and say what is wrong."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from titn_lib import create_model
from titn_lib.course import ex15_related_cost as exercise
from titn_lib.kernels import build
from titn_lib.models.related.adavit import Gates


def quarters(soft):
    return (4 * soft).round() / 4


class Step(torch.autograd.Function):
    """Straight through, by autograd's own means."""

    @staticmethod
    def forward(context, soft):
        return (4 * soft).round() / 4

    @staticmethod
    def backward(context, gradient):
        return gradient


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Step.apply, "✓"),
        (lambda s: s + (quarters(s) - s).detach(), "✓"),
        (lambda s: quarters(s) + s - s.detach(), "✓"),
        (lambda s: (s / 0.25 + 0.5).floor() * 0.25 + s - s.detach(), "✓"),
        (lambda s: list(s + (quarters(s) - s).detach()), "✓"),
        (lambda s: s.add_((quarters(s) - s).detach()), "✓"),  # its own copy
        (lambda s: s.numpy().round(), "it stopped at"),
        (lambda s: quarters(s).detach().numpy(), "no gradient gets through"),
        (lambda s: quarters(s), "no gradient gets through"),
        (lambda s: (4 * s).ceil() / 4 + s - s.detach(), "rounded up"),
        (lambda s: (8 * s).round() / 8 + s - s.detach(), "rounded to eighths"),
        (lambda s: quarters(s.detach()), "no gradient gets through"),
        (lambda s: quarters(s) + (s - s), "no gradient gets through"),
        (lambda s: s.clone(), "and not rounded"),
        (lambda s: quarters(s) + s, "not subtracted again"),
        (lambda s: quarters(s) - s + s.detach(), "the wrong sign"),
        (lambda s: s.round() + s - s.detach(), "quarters were asked for"),
        (lambda s: (4 * s).floor() / 4 + s - s.detach(), "to the nearest quarter"),
        (lambda s: (4 * s).round() + s - s.detach(), "not divided by 4"),
        (lambda s: s * quarters(s), "multiplied by soft"),
        (lambda s: quarters(s) + 2 * (s - s.detach()), "✗ the shape is right, and so are the values, but the gradient"),
        (lambda s: quarters(s) * s / s.detach(), "but the gradient is off"),
        (lambda s: s > 0.5, "quarters were asked for"),
        (lambda s: s[:3], "✗ the shape is"),
        (lambda s: 1, "a tensor of shape (40,) was asked for"),
        (lambda s: 1 / 0, "it stopped with ZeroDivisionError"),
        (lambda s: ..., "not written yet"),
        (lambda s: None, "it returns None"),
    ],
)
def test_straight_through(answer, says, expect):
    expect(says, exercise.check_straight_through, answer)


@pytest.mark.parametrize("tokens", [64, 32])
def test_attention_costs_what_pytorch_counts(tokens, monkeypatch):
    from titn_lib.models.layers import Attention

    monkeypatch.setattr(build, "available", lambda *_: False)  # PyTorch can't count their operations
    layer = Attention(32, 4)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.randn(1, tokens, 32))
    cost = counter.get_total_flops() // 2
    right = {64: 524_288, 32: 196_608}
    assert cost == right[tokens]
    assert exercise.check_counts(right[64], right[32], 262_144, 180).right


def test_closed_heads_save_what_the_library_says():
    model = create_model("adavit_nano", patch_size=4, outer_width=32, outer_heads=4, depth=2, distillation_token=False)
    tokens = model.config.num_tokens
    gates = Gates(torch.ones(1, 1, model.config.num_patches), torch.tensor([[[1, 1, 0, 0]]]), torch.ones(1, 1, 2))
    whole = tokens * (4 * 32 * 32 + 2 * tokens * 32)
    assert model.saved_macs(gates).item() == whole // 2


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ((524_288, 196_608, 262_144, 180), "✓"), ((torch.tensor(524_288), 196_608, 262_144, 180.0), "✓"),
        ((262_144, 196_608, 262_144, 180), "the rest"), ((393_216, 196_608, 262_144, 180), "counts twice"),
        ((458_752, 196_608, 262_144, 180), "four projections"), ((1_048_576, 196_608, 262_144, 180), "count as one"),
        ((2_097_152, 196_608, 262_144, 180), "share the width"),
        ((1_310_720, 196_608, 262_144, 180), "share the width"),
        ((524_288, 262_144, 262_144, 180), "shrinks in both"), ((524_288, 131_072, 262_144, 180), "half of the four"),
        ((524_288, 393_216, 262_144, 180), "open tokens only"), ((524_288, 327_680, 262_144, 180), "open tokens only"),
        ((524_288, 98_304, 262_144, 180), "whatever the number"),
        ((524_288, 196_608, 524_288, 180), "a closed head needs no"), ((524_288, 196_608, 393_216, 180), "goes, too"),
        ((524_288, 196_608, 196_608, 180), "nothing is quartered"), ((524_288, 196_608, 131_072, 180), "halved once"),
        ((524_288, 196_608, 262_144, 90), "what they keep"), ((524_288, 196_608, 262_144, 60), "all three images"),
        ((524_288, 196_608, 262_144, 30), "the mean doesn't matter"), ((524_288, 196_608, 262_144, 192), "without g"),
        ((524_288, 196_608, 262_144, 100), "too small"), ((524_288, 196_608, 262_144, "all"), "a number was asked for"),
        ((524_288, 196_608, 262_144, ...), "not written yet"), ((..., ..., ..., ...), "not written yet"),
    ],
)  # fmt: skip
def test_counts(answers, says):
    assert says in repr(exercise.check_counts(*answers))


def all_or_nothing(images, patches):
    return (torch.arange(images) % 2 == 0).float()[:, None].expand(images, patches)


def one_keeps_all(images, patches):
    gates = torch.zeros(images * patches)
    gates[: images * patches // 2] = 1
    return gates.reshape(images, patches)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (all_or_nothing, "✓"),
        (one_keeps_all, "✓"),
        (lambda n, p: all_or_nothing(n, p).long(), "✓"),
        (lambda n, p: all_or_nothing(n, p).bool(), "✓"),
        (lambda n, p: all_or_nothing(n, p).numpy(), "✓"),
        (lambda n, p: all_or_nothing(n, p).tolist(), "✓"),
        (lambda n, p: all_or_nothing(n, p).to_sparse(), "✓"),
        (lambda n, p: (torch.arange(p) % 2).expand(n, p), "the rest is saved"),
        (lambda n, p: torch.ones(n, p), "100% of the gates are open"),
        (lambda n, p: torch.zeros(n, p), "0% of the gates"),
        (lambda n, p: torch.full((n, p), 0.5), "a gate is 0 or 1"),
        (lambda n, p: torch.full((n, p), torch.nan), "a gate is 0 or 1"),
        (lambda n, p: all_or_nothing(n, p + 4).T, "was asked for"),
        (lambda n, p: 3, "was asked for"),
        (lambda n, p: 1 / 0, "it stopped with ZeroDivisionError"),
        (lambda n, p: ..., "not written yet"),
        (lambda n, p: None, "it returns None"),
    ],
)
def test_idle(answer, says, expect):
    expect(says, exercise.check_idle, answer)


def test_idle_gates_leave_the_library_s_work_as_it_was(monkeypatch):
    monkeypatch.setattr(build, "available", lambda *_: False)  # PyTorch can't count their operations
    model = create_model("adavit_nano", depth=2, image_size=(16, 16)).eval()

    def work(patches):
        gates = Gates(patches, torch.ones(8, 4), torch.ones(8, 2))
        model.blocks[1].compute_gates = lambda outer: gates
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(8, 3, 16, 16))
        return counter.get_total_flops()

    spread = (torch.arange(16) % 2).float().expand(8, 16)
    assert work(all_or_nothing(8, 16)) == work(torch.ones(8, 16)) > work(spread)
