"""MVT: masks pixel by pixel and against a plain ViT; relabeling by hand, and in runs with wrong labels."""

import math
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from titn_lib import TITNError, count_macs, count_parameters, create_model, load_model, save_model
from titn_lib.data.datasets import add_label_noise, load_dataset
from titn_lib.data.mixing import MixedTargets
from titn_lib.errors import TrainingInterrupted
from titn_lib.losses import relabeling
from titn_lib.losses.objective import Objective
from titn_lib.models.inference import predict
from titn_lib.models.vit import ViT, ViTConfig
from titn_lib.models.weights import resample_pos_embed
from titn_lib.training.config import Recipe, Run
from titn_lib.training.records import WEIGHTS
from titn_lib.training.run import train

from . import contract
from .reference import layer_norm, linear, scramble


def test_sizes():
    model = create_model("mvt_nano")
    assert count_parameters(model) == 754_138
    assert count_parameters(model.mask_network) == 75_472
    assert count_macs(model) == pytest.approx(54.0e6, rel=0.01)


def test_both_networks_have_small_initial_weights():
    model = create_model("mvt_nano")
    for network in (model, model.mask_network):
        for initial in (network.pos_embed, network.heads.class_head[1].weight):
            assert initial.std().item() == pytest.approx(0.02, rel=0.1)


# --- masks


def test_masks_pixel_by_pixel():
    """Output y · 4 + x of the mask network's head for patch (row, column) is the mask at (4 row + y, 4 column + x)."""
    model = scramble(create_model("mvt_nano", image_size=(8, 12), in_channels=2))
    nn.init.normal_(model.mask_network.heads.class_head[1].weight)
    weights = model.mask_network.state_dict()
    images = torch.randn(2, 2, 8, 12, dtype=torch.float64)
    masks, tokens = model.masks(images), model.mask_network.forward_features(images).hidden_states[-1]
    assert masks.shape == (2, 1, 8, 12)
    for index in range(2):
        for row in range(2):
            for column in range(3):
                token = tokens[index, 1 + 3 * row + column]
                numbers = linear(weights, "heads.class_head.1", layer_norm(weights, "heads.class_head.0", token))
                for y in range(4):
                    for x in range(4):
                        seen = masks[index, 0, 4 * row + y, 4 * column + x].item()
                        assert seen == pytest.approx(1 / (1 + math.exp(-numbers[4 * y + x].item())), abs=1e-6)
    assert masks.min() < 0.2
    assert masks.max() > 0.8


def unmasked_vit(model):
    """The same ViT without the mask."""
    settings = {name: getattr(model.config, name) for name in ViTConfig.__dataclass_fields__}
    unmasked = ViT(ViTConfig(**settings))
    unmasked.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("mask_network.")})
    return unmasked.eval()


def set_mask(model, value):
    """Make every value of the mask the same: this one, before the sigmoid."""
    nn.init.zeros_(model.mask_network.heads.class_head[1].weight)
    nn.init.constant_(model.mask_network.heads.class_head[1].bias, value)
    return model.eval()


def test_a_mask_of_ones_or_zeros():
    model, images = create_model("mvt_nano"), torch.randn(3, 3, 32, 32)
    unmasked = unmasked_vit(model)
    masked = model.eval()(images)
    torch.testing.assert_close(masked, unmasked(images * model.masks(images)))
    assert (masked - unmasked(images)).abs().max() > 1e-3
    set_mask(model, 200)
    assert torch.equal(model.masks(images), torch.ones(3, 1, 32, 32))
    assert torch.equal(model(images), unmasked(images))
    set_mask(model, -200)
    torch.testing.assert_close(model(images), unmasked(torch.zeros(3, 3, 32, 32)))


def test_bfloat16():
    model, images = create_model("mvt_nano", depth=1), torch.randn(2, 3, 32, 32)
    expected = model.eval()(images)
    torch.testing.assert_close(model.bfloat16()(images.bfloat16()).float(), expected, atol=0.05, rtol=0)


def test_attention_and_another_size(tmp_path):
    model = create_model("mvt_nano", in_channels=1, distillation_token=True)
    _, maps = model.eval()(torch.randn(2, 1, 32, 32), return_attention=True)
    assert [tuple(attention.shape) for attention in maps.outer] == 5 * [(2, 4, 66, 66)]
    save_model(model, tmp_path / "m.safetensors")
    larger = load_model(tmp_path / "m.safetensors", image_size=(40, 32))
    assert larger.masks(torch.randn(2, 1, 40, 32)).shape == (2, 1, 40, 32)
    expected = resample_pos_embed(model.mask_network.pos_embed, (8, 8), (10, 8))
    torch.testing.assert_close(larger.mask_network.pos_embed, expected)


def test_shapes_gradients_and_files(tmp_path):
    contract.check_shapes("mvt_nano")
    contract.check_gradients("mvt_nano")
    contract.check_file("mvt_nano", tmp_path)


def test_learns():
    contract.check_learns("mvt_nano", bound=1.4)


# --- relabeling


def test_relabel_by_hand():
    """p = 0.6, 0.3, 0.1: labels 1 and 2 are changed. p = 0.45, 0.35, 0.2: only label 2 is."""
    logits = torch.tensor([[0.6, 0.3, 0.1]] * 3 + [[0.45, 0.35, 0.2]] * 3).log() + 7
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    assert relabeling.relabel(logits, labels).tolist() == [0, 0, 0, 0, 1, 0]
    assert relabeling.relabel(logits, labels, 0.4).tolist() == [0, 1, 0, 0, 1, 2]
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("logits", "label", "delta", "becomes"),
    [
        ([0.0, 0.0], 1, 0.0, 1),  # ½ − ½ is not more than 0
        ([200.0, 0.0], 1, 1.0, 1),  # 1 − 0 is not more than 1
        ([200.0, 0.0], 1, 0.999, 0),
        ([0.0, 0.0, -200.0], 2, 0.5, 2),  # ½ − 0 is not more than ½
        ([0.0, 0.0, -200.0], 2, 0.499, 0),  # of two that are as likely, the first
    ],
)
def test_relabel_at_the_threshold(logits, label, delta, becomes):
    assert relabeling.relabel(torch.tensor([logits]), torch.tensor([label]), delta).tolist() == [becomes]


def test_relabeling_quality_by_hand():
    """Labels 3–6 are wrong. 2–5 and 7 are changed: 3 and 4 to the right one, 5 to a wrong one, 2 and 7 needlessly."""
    true = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])
    given = torch.tensor([0, 1, 2, 0, 0, 0, 0, 7])
    relabeled = torch.tensor([0, 1, 9, 3, 4, 9, 0, 9])
    quality = relabeling.relabeling_quality(relabeled, given, true)
    assert quality == pytest.approx((2 / 5, 2 / 4))
    assert relabeling.relabeling_quality(true, given, true) == (1, 1)
    assert math.isnan(relabeling.relabeling_quality(given, given, true).precision)
    assert math.isnan(relabeling.relabeling_quality(true, true, true).recall)


def constant_prediction(model):
    """A network that predicts 5 for every image: with one head, or as the mean of two, which predict 3 and 4."""
    network = create_model(model, **({} if model == "vgg7_bn" else {"depth": 1}))
    biases = [p for name, p in network.named_parameters() if p.shape == (10,) and "head" in name]
    logits = [{5: 5.0}] if len(biases) == 1 else [{3: 6.0, 5: 5.0}, {4: 6.0, 5: 5.0}]
    for bias, values in zip(biases, logits, strict=True):
        nn.init.zeros_(bias)
        for label, value in values.items():
            bias.data[label] = value
    return network.train()


@pytest.mark.parametrize("model", ["titn_nano", "mvt_nano", "vgg7_bn"])
def test_labels_change_after_the_warm_up_and_can_change_back(model):
    objective = relabeling.Relabeling(constant_prediction(model), label_smoothing=0.1)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    both = objective.network(images)
    heads = both if isinstance(both, tuple) else [both]

    def expected(targets):
        return sum(F.cross_entropy(head, targets, label_smoothing=0.1) for head in heads) / len(heads)

    mean, changed, warm = sum(heads) / len(heads), torch.full((8,), 5), objective.WARM_UP
    for progress, targets in [(0.0, labels), (warm - 1e-9, labels), (warm, changed), (0.99, changed), (0.1, labels)]:
        objective.progress = progress
        loss, logits = objective(images, MixedTargets(labels, labels))
        torch.testing.assert_close(loss, expected(targets))
        torch.testing.assert_close(logits, mean)
        assert labels.tolist() == list(range(8))


def test_before_the_warm_up_the_loss_is_that_of_the_given_labels():
    network = create_model("titn_nano", depth=1)  # of two heads, whose mean has another loss
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    for mode in (True, False):
        network.train(mode)
        plain = Objective(network)(images, MixedTargets(labels, labels))
        relabeled = relabeling.Relabeling(network)(images, MixedTargets(labels, labels))
        torch.testing.assert_close(relabeled, plain)


def test_invalid_settings():
    objective = relabeling.Relabeling(create_model("mvt_nano"))
    labels = torch.arange(4)
    with pytest.raises(TITNError, match="mixed images: set both cutmix and mixup to 0"):
        objective(torch.randn(4, 3, 32, 32), MixedTargets(labels, labels.flip(0), 0.7))


NOISY = Recipe(epochs=12, batch_size=64, lr=2e-3, clip_norm=1.0, augmentation="shift", label_noise=0.4, test_images=64)
RUN = Run("digits", "titn_nano", NOISY, model_settings={"depth": 1}, loss="relabeling")


def test_a_run_with_wrong_labels(tmp_path, monkeypatch):
    """Relabeling runs in the last fifth only, and then changes more wrong labels than right ones."""
    relabel, changed = relabeling.relabel, []
    monkeypatch.setattr(
        relabeling, "relabel", lambda *given: changed.append(relabel(*given) != given[1]) or relabel(*given)
    )
    record = train(RUN, tmp_path, device="cpu", progress=False)
    clean = load_dataset("digits").train
    steps = len(clean) // 64
    progress = [(epoch + step / steps) / 12 for epoch in range(12) for step in range(steps)]
    assert len(changed) == sum(done >= relabeling.Relabeling.WARM_UP for done in progress)
    assert torch.cat(changed).any()
    network, given = load_model(tmp_path / WEIGHTS), add_label_noise(clean, 0.4, 10, seed=0).labels
    labels = relabel(predict(network, clean.images), given)
    precision, recall = relabeling.relabeling_quality(labels, given, clean.labels)
    assert (labels == clean.labels).float().mean() > 0.65  # 0.6 of the given ones
    assert min(precision, recall) > 0.5
    assert record.test["top1"] > 50


def test_a_run_resumed_after_every_step_equals_an_uninterrupted_run(tmp_path, monkeypatch):
    monkeypatch.setattr(relabeling.Relabeling, "WARM_UP", 0.3)
    monkeypatch.setattr(relabeling.Relabeling, "DELTA", 0.0)  # four steps are too few for a margin of 0.2
    recipe = replace(NOISY, epochs=2, batch_size=32, train_images=64)
    run = replace(RUN, model="mvt_nano", recipe=recipe, model_settings={"depth": 1, "mask_depth": 1})
    train(run, tmp_path / "whole", device="cpu", progress=False)
    sessions = 0
    while not (tmp_path / "stopped" / WEIGHTS).exists():
        sessions += 1
        with suppress(TrainingInterrupted):
            train(run, tmp_path / "stopped", device="cpu", progress=False, max_minutes=0)
    assert sessions == 5  # four steps, and the one that finds nothing left to do
    whole, stopped = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
