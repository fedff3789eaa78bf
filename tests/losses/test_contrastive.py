"""LaCViT: the contrastive loss by hand, by loops and at its minimum; what each of the two runs trains and leaves."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from titn_lib import TITNError, create_model
from titn_lib.data.mixing import MixedTargets
from titn_lib.losses import contrastive
from titn_lib.losses.distillation import mixed_cross_entropy
from titn_lib.training.config import Recipe, Run
from titn_lib.training.optim import make_optimizer
from titn_lib.training.records import WEIGHTS
from titn_lib.training.run import train

QUICK = Recipe(epochs=12, batch_size=64, lr=2e-3, clip_norm=1.0, augmentation="shift", train_images=512, test_images=64)
FIRST = Run("digits", "titn_nano", QUICK, model_settings={"depth": 1}, loss="contrastive")
SECOND = replace(FIRST, loss="linear_probe", init_from=FIRST)


def rows(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


# --- the loss


def test_by_hand():
    """τ = ½, so products count twice. A and B are the same point, C stands at right angles to them; A, B and C are of
    one class. D, opposite to A, is alone in its own and no anchor.

        A·B = 1, A·C = 0, A·D = −1     Σ = e² + 1 + e⁻² = 8.524     B the same
        C·A = C·B = C·D = 0            Σ = 3
        A and B: −½ (log(e² / 8.524) + log(1 / 8.524)) = −½ (2 − 2 · 2.1429) = 1.1429
        C:       −½ (2 · log ⅓) = 1.0986
        mean of three anchors: (2 · 1.1429 + 1.0986) / 3 = 1.1282
    """
    z = torch.tensor([[1.0, 0], [1, 0], [0, 1], [-1, 0]])
    labels = torch.tensor([4, 4, 4, 7])
    assert contrastive.contrastive_loss(z, labels, 0.5).item() == pytest.approx(1.1282, abs=5e-5)
    assert contrastive.contrastive_loss(z, torch.arange(4)).item() == 0


def by_loops(z, labels, temperature):
    losses = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        total = sum(math.exp(z[i] @ z[a] / temperature) for a in others)
        terms = [math.log(math.exp(z[i] @ z[p] / temperature) / total) for p in others if labels[p] == labels[i]]
        if terms:
            losses.append(-sum(terms) / len(terms))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_by_loops(temperature):
    z, labels = rows(12, 5), torch.tensor([0, 1, 2, 1, 0, 0, 3, 1, 4, 0, 2, 1])  # 3 and 4 are alone
    ours = contrastive.contrastive_loss(z, labels, temperature)
    assert ours.item() == pytest.approx(by_loops(z, labels, temperature), abs=1e-12)
    order = torch.randperm(12)
    torch.testing.assert_close(contrastive.contrastive_loss(z[order], labels[order], temperature), ours)


def test_two_classes_far_apart():
    """Two classes of n each can't do better than to be opposite points: log(n − 1 + n exp(−2/τ)), with n − 1 in the
    place of 1 because the positives of an anchor compete."""
    n, labels = 4, torch.arange(2).repeat_interleave(4)
    bound = math.log(n - 1 + n * math.exp(-2 / 0.5))
    apart = torch.tensor([[1.0, 0, 0]]).repeat(8, 1) * torch.tensor([1.0, -1]).repeat_interleave(4)[:, None]
    assert contrastive.contrastive_loss(apart, labels, 0.5).item() == pytest.approx(bound, abs=1e-6)
    free = torch.randn(8, 3, requires_grad=True)
    optimizer = torch.optim.Adam([free], lr=0.05)
    for _ in range(200):
        loss = contrastive.contrastive_loss(F.normalize(free, dim=-1), labels, 0.5)
        assert loss > bound - 1e-6
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() == pytest.approx(bound, abs=1e-3)


def test_gradient():
    labels = torch.tensor([0, 0, 1, 1, 2])
    assert torch.autograd.gradcheck(
        lambda z: contrastive.contrastive_loss(F.normalize(z, dim=-1), labels), rows(5, 3).requires_grad_()
    )


def test_half_precision_does_not_round_the_scores():
    z, labels = rows(16, 8).float(), torch.arange(16) % 4
    with torch.autocast("cpu", torch.bfloat16):
        inside = contrastive.contrastive_loss(z, labels)
    assert torch.equal(inside, contrastive.contrastive_loss(z, labels))


# --- the first run: all but the heads


@pytest.mark.parametrize("settings", [{}, {"pooling": "class"}, {"distillation_token": False}])
def test_the_projection_has_the_class_heads_input(settings):
    model = create_model("titn_nano", depth=1, **settings)
    tokens = model.forward_features(torch.randn(3, 3, 32, 32)).hidden_states[-1]
    torch.testing.assert_close(
        model.heads.class_head(model.heads.pool(tokens)), model.heads.forward_all(tokens).class_logits
    )


def images_and_labels(views):
    labels = torch.arange(8) % 4
    return torch.randn(8 * views, 3, 32, 32), MixedTargets(labels.repeat(views), labels.repeat(views))


def moved(objective, weight_decay, views):
    """The names of what two steps of AdamW change, and the logits of the last."""
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    optimizer = make_optimizer(objective.train(), Recipe(weight_decay=weight_decay))
    for _ in range(2):
        loss, logits = objective(*images_and_labels(views))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name for name, value in objective.state_dict().items() if not torch.equal(value, before[name])}, logits


@pytest.mark.parametrize("model", ["titn_nano", "titn_mini", "mvt_nano"])
def test_the_first_run_moves_all_but_the_heads(model):
    objective = contrastive.Contrastive(create_model(model, depth=1))
    names, logits = moved(objective, 0.5, views=2)
    assert names == {name for name in objective.state_dict() if not name.startswith("network.heads.")}
    assert not logits.requires_grad
    assert logits.shape == (16, 10)


def test_the_loss_of_the_first_run_is_that_of_both_views():
    objective = contrastive.Contrastive(create_model("titn_nano", depth=1))
    images, labels = images_and_labels(views=2)
    loss, logits = objective(images, labels)
    tokens = objective.network.forward_features(images).hidden_states[-1]
    first, _, last = objective.projection
    hidden = (objective.network.heads.pool(tokens) @ first.weight.T + first.bias).clamp(min=0)
    z = (hidden @ last.weight.T + last.bias).detach().double()
    z = z / z.square().sum(dim=-1, keepdim=True).sqrt()
    assert z.shape == (16, 128)
    assert loss.item() == pytest.approx(by_loops(z, labels.a, 0.1), abs=1e-4)
    torch.testing.assert_close(logits, objective.network.eval()(images))


# --- the second run: the heads alone


@pytest.mark.parametrize("model", ["titn_nano", "titn_mini", "mvt_nano"])  # titn_mini has batch normalization
def test_the_second_run_moves_nothing_but_the_heads(model):
    objective = contrastive.LinearProbe(create_model(model, depth=1))
    names, _ = moved(objective, 0.5, views=1)
    assert names == {name for name in objective.state_dict() if name.startswith("network.heads.")}
    assert {name.split(".")[3] for name in names} == {"0", "1"}  # LayerNorm and Linear


def test_the_loss_of_the_second_run_is_that_of_its_heads():
    objective = contrastive.LinearProbe(create_model("titn_nano", depth=1), label_smoothing=0.1)
    images, labels = images_and_labels(views=1)
    mixed = MixedTargets(labels.a, labels.a.flip(0), 0.7)
    loss, logits = objective(images, mixed)
    both = objective.network.train()(images)
    torch.testing.assert_close(loss, sum(mixed_cross_entropy(part, mixed, 0.1) for part in both) / 2)
    torch.testing.assert_close(logits, (both.class_logits + both.distillation_logits) / 2)


def test_two_runs_one_after_the_other(tmp_path):
    """From the first run to the second the encoder stays the same bit for bit, and accuracy is far above chance."""
    record = train(SECOND, tmp_path, device="cpu", progress=False)
    before, after = (load_file(folder / WEIGHTS) for folder in (tmp_path / "init_from", tmp_path))
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if name.startswith("heads.")}
    assert record.test["top1"] > 60


def test_several_processes_do_not_wait_for_gradients_that_never_come(tmp_path):
    """In a group of one, DistributedDataParallel raises in the second step if a gradient is missing."""
    group = f"file://{tmp_path / 'group'}"
    torch.distributed.init_process_group("gloo", init_method=group, rank=0, world_size=1)
    try:
        for stage in (contrastive.Contrastive, contrastive.LinearProbe):
            objective = stage(create_model("titn_nano", depth=1))
            together = torch.nn.parallel.DistributedDataParallel(objective)
            for _ in range(2):
                together(*images_and_labels(stage.VIEWS))[0].backward()
    finally:
        torch.distributed.destroy_process_group()


def test_what_does_not_fit(tmp_path):
    with pytest.raises(TITNError, match="vgg7_bn has no tokens for contrastive training: choose a TITN, TNT or ViT"):
        train(replace(FIRST, model="vgg7_bn", model_settings={}), tmp_path, device="cpu", progress=False)


# --- the measures


def test_measures_by_hand():
    """Three rows of lengths 2, 3, 5: cosines 0, 0, −1; squared distances 2, 2, 4."""
    features = torch.tensor([[2.0, 0], [0, 3], [0, -5]])
    assert contrastive.average_cosine(features) == pytest.approx(-1 / 3)
    assert contrastive.alignment(features, torch.tensor([0, 0, 0])) == pytest.approx(8 / 3)
    assert contrastive.alignment(features, torch.tensor([0, 1, 1])) == pytest.approx(4)
    expected = math.log((2 * math.exp(-4) + math.exp(-8)) / 3)
    assert contrastive.uniformity(features) == pytest.approx(expected)


def test_measures_of_one_point_and_of_all_directions():
    labels, point = torch.zeros(500, dtype=torch.long), torch.ones(500, 32)
    everywhere = torch.randn(500, 32)
    measures = contrastive.average_cosine, lambda rows: contrastive.alignment(rows, labels), contrastive.uniformity
    assert [measure(point) for measure in measures] == pytest.approx([1, 0, 0], abs=1e-4)
    assert [measure(everywhere) for measure in measures] == pytest.approx([0, 2, -4 + 4**2 / 2 / 32], abs=0.05)
