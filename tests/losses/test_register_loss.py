"""The registry of losses, as someone uses it who adds one."""

from dataclasses import replace

import pytest
import torch

from titn_lib import TITNError, create_model, distillation_loss
from titn_lib.losses import FeatureDistillationLoss, Objective, freeze, list_losses, make_objective, register_loss
from titn_lib.losses.distillation import LOGIT_LOSSES
from titn_lib.losses.features import FEATURE_LOSSES
from titn_lib.losses.registry import BUILT_IN, OBJECTIVES, needs_teacher
from titn_lib.training import Recipe, Run, train


@pytest.fixture(autouse=True)
def own_losses_are_forgotten():
    tables = LOGIT_LOSSES, FEATURE_LOSSES, OBJECTIVES
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


def toy(student_logits, teacher_logits, labels, temperature):
    return (student_logits / temperature - teacher_logits / temperature).square().mean()


def test_a_step_with_a_loss_of_ones_own(tmp_path):
    """Three lines register it; a run finds it by name, and so does `distillation_loss`."""
    calls = []

    @register_loss("toy")
    def mine(student_logits, teacher_logits, labels, temperature):
        calls.append((len(labels), temperature))
        return toy(student_logits, teacher_logits, labels, temperature)

    assert {"toy", "toy+feature", "toy+manifold"} <= set(list_losses())
    assert needs_teacher("toy")
    recipe = Recipe(epochs=1, batch_size=64, train_images=64, test_images=16, temperature=3.0, precision="32-true")
    run = Run("digits", "titn_nano", recipe, loss="toy", teacher="vgg7_bn.digits", model_settings={"depth": 1})
    record = train(run, tmp_path, device="cpu", progress=False)
    assert calls == [(64, 3.0)]  # the one step of the one epoch
    assert record.run.loss == "toy"

    student, teacher, labels = torch.randn(4, 5), torch.randn(4, 5), torch.arange(4)
    expected = torch.nn.functional.cross_entropy(student, labels) / 2 + toy(student, teacher, labels, 2.0) / 2
    torch.testing.assert_close(distillation_loss(student, teacher, labels, "toy", temperature=2.0), expected)


def test_a_feature_loss_and_an_objective_of_ones_own():
    @register_loss("mean_map")
    class MeanMap(FeatureDistillationLoss):
        def pair_loss(self, index, student, teacher):
            return (student.mean() - teacher.mean()).square()

    @register_loss("penalty")
    class Penalty(Objective):
        pass

    teacher = freeze(create_model("vgg7_bn"))
    assert "soft+mean_map" in list_losses()
    assert isinstance(
        make_objective(create_model("titn_nano", depth=3), "hard+mean_map", teacher).feature_loss, MeanMap
    )
    assert not needs_teacher("penalty")
    assert type(make_objective(create_model("titn_nano", depth=1), "penalty")) is Penalty


def test_a_cell_that_runs_twice_replaces_its_loss():
    register_loss("toy")(toy)
    register_loss("toy")(lambda student, teacher, labels, temperature: student.sum() * 0)
    assert list_losses().count("toy") == 1
    assert LOGIT_LOSSES["toy"] is not toy


@pytest.mark.parametrize("name", sorted(BUILT_IN - {loss for loss in BUILT_IN if "+" in loss}))
def test_a_built_in_loss_is_not_replaced(name):
    with pytest.raises(TITNError, match=f"there is a built-in loss '{name}' already: choose another name"):
        register_loss(name)


def test_a_name_that_would_be_a_combination():
    with pytest.raises(TITNError, match="use letters, digits and underscores"):
        register_loss("toy+feature")


def test_what_is_no_loss():
    with pytest.raises(TITNError, match="is not a loss"):
        register_loss("model")(torch.nn.Linear)
    assert "model" not in list_losses()


def test_a_loss_that_nobody_registered():
    run = Run("digits", "titn_nano", Recipe())
    with pytest.raises(TITNError, match="unknown loss 'toy'"):
        replace(run, loss="toy")
