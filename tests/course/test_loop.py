"""The notebooks' training loop does what the same loop does when it is written out, and each setting matters."""

import numpy as np
import pytest
import torch

from titn_lib import TITNError, create_model, load_model
from titn_lib.course.loop import digits, fit, make_network, make_optimizer, prepare
from titn_lib.data import MixedTargets, augment, load_dataset, normalize
from titn_lib.losses import Objective, freeze, teacher_forward
from titn_lib.losses.budget import BudgetObjective
from titn_lib.losses.contrastive import Contrastive
from titn_lib.losses.relabeling import Relabeling

SMALL = {"depth": 1, "patch_size": 8, "outer_width": 32, "outer_heads": 4}
PART = digits().train[:80]


def weights(network):
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def written_out(objective, part, epochs, lr, size, seed, teacher):
    """Notebook 14's loop as it was in its cell. Returns the losses; the network is trained in place."""
    data = load_dataset("digits")
    steps, rng, losses = len(part) // size, np.random.default_rng(seed), []
    optimizer = torch.optim.AdamW(objective.parameters(), lr=lr, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps, pct_start=0.1)
    for epoch in range(epochs):
        objective.train()
        for step, some in enumerate(torch.from_numpy(rng.permutation(len(part))).split(size)[:steps]):
            views = [augment(part.images[some], "shift", rng) for _ in range(objective.VIEWS)]
            x = normalize(torch.cat(views), data.mean, data.std)
            y = part.labels[some].repeat(objective.VIEWS)
            objective.progress = (epoch + step / steps) / epochs
            loss, _ = objective(x, MixedTargets(y, y), teacher_forward(teacher, x) if teacher else None)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return losses


def recorded(objective):
    """The objective, and the list of losses to which every later step in training adds its own."""
    losses = []
    objective.register_forward_hook(lambda module, inputs, output: losses.append(output[0].item()))
    return objective, losses


@pytest.mark.parametrize("kind", ["labels", "teacher", "two views"])
def test_the_same_losses_and_weights_as_written_out(kind):
    teacher = freeze(load_model("vgg7_bn.digits")) if kind == "teacher" else None

    def make():
        network = make_network(seed=3, **SMALL)
        return Contrastive(network) if kind == "two views" else Objective(
            network, "manifold" if teacher else "cross_entropy", teacher
        )  # fmt: skip

    expected = make()  # which seeds torch, too: the manifold loss draws rows
    wanted = written_out(expected, PART, 3, 3e-3, 32, 7, teacher)
    mine, losses = recorded(make())
    network = fit(mine, PART, 3, lr=3e-3, batch_size=32, seed=7, teacher=teacher)
    assert losses == wanted
    assert len(losses) == 3 * 2
    assert torch.equal(weights(network), weights(expected.network))
    assert not network.training


def test_initial_weights_and_images():
    torch.manual_seed(5)
    direct = create_model("titn_nano", in_channels=1, image_size=(16, 16), depth=1)
    assert torch.equal(weights(make_network(seed=5, depth=1)), weights(direct))
    assert not torch.equal(weights(make_network(seed=6, depth=1)), weights(direct))
    assert make_network("adavit_nano", depth=2).config.name == "adavit_nano"
    data = load_dataset("digits")
    assert torch.equal(prepare(data.test.images), normalize(data.test.images, data.mean, data.std))


@pytest.mark.parametrize("changed", [{"lr": 1e-3}, {"batch_size": 20}, {"seed": 1}, {"fast": "heads."}])
def test_every_setting_matters(changed):
    settings = {"lr": 2e-3, "batch_size": 40, "seed": 0}
    one = fit(Objective(make_network(**SMALL)), PART, 1, **settings)
    same = fit(Objective(make_network(**SMALL)), PART, 1, **settings)
    other = fit(Objective(make_network(**SMALL)), PART, 1, **{**settings, **changed})
    assert torch.equal(weights(one), weights(same))
    assert not torch.allclose(weights(one), weights(other), atol=1e-6)


def test_the_teacher_matters():
    """And without it, a loss that needs one says so."""
    teacher = freeze(load_model("vgg7_bn.digits"))
    fit(Objective(make_network(**SMALL), "hard", teacher), PART, 1, batch_size=40, teacher=teacher)
    with pytest.raises(TITNError, match="needs the teacher's output"):
        fit(Objective(make_network(**SMALL), "hard", teacher), PART, 1, batch_size=40)


def test_gates_learn_ten_times_as_fast():
    objective = BudgetObjective(make_network("adavit_nano", depth=2))
    plain, fast = make_optimizer(objective, 1e-3, None), make_optimizer(objective, 1e-3, "nets.")
    assert [group["lr"] for group in plain.param_groups] == [1e-3]
    assert [group["lr"] for group in fast.param_groups] == [1e-3, 1e-2]
    gates = [weight for name, weight in objective.named_parameters() if "nets." in name]
    assert gates
    assert [id(weight) for weight in fast.param_groups[1]["params"]] == list(map(id, gates))
    assert sum(len(group["params"]) for group in fast.param_groups) == len(list(objective.parameters()))


def test_after_every_epoch_the_network_is_in_evaluation_mode():
    seen, objective = [], Objective(make_network(**SMALL))
    network = fit(
        objective, PART, 3, batch_size=40, after_epoch=lambda network: seen.append((network, network.training))
    )
    assert seen == [(network, False)] * 3
    assert network is objective.network


def test_the_objective_knows_the_progress_of_the_run():
    """Relabeling starts after 80 % of it."""
    seen = []

    class Watched(Relabeling):
        def forward(self, images, targets, teacher_output=None):
            seen.append((self.progress, self.training))
            return super().forward(images, targets, teacher_output)

    fit(Watched(make_network(**SMALL)), PART, 2, batch_size=20)
    assert seen == [(step / 8, True) for step in range(8)]


def test_the_learning_rate_rises_and_falls(monkeypatch):
    rates, step = [], torch.optim.AdamW.step

    def watched(self, *arguments, **named):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    fit(Objective(make_network(**SMALL)), PART, 5, lr=1e-2, batch_size=10)
    top = rates.index(max(rates))
    assert (len(rates), top) == (40, 3)
    assert max(rates) == pytest.approx(1e-2)
    assert rates[-1] < 1e-6


def test_too_few_images_are_one_sentence():
    with pytest.raises(TITNError, match=r"^80 images don't fill a batch of 81: choose a smaller batch_size$"):
        fit(Objective(make_network(**SMALL)), PART, 1, batch_size=81)
