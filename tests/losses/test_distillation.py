"""Every loss against a hand-computed example; the teacher stays as it is."""

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

import titn_lib
from titn_lib import TITNError, create_model
from titn_lib.data.mixing import MixedTargets, cutmix, cutmix_box
from titn_lib.losses.distillation import (
    TeacherOutput,
    distillation_loss,
    dkd_loss,
    freeze,
    hard_loss,
    mixed_cross_entropy,
    soft_loss,
    teacher_forward,
)
from titn_lib.losses.features import FeatureLoss, ManifoldLoss, similarity_mse
from titn_lib.losses.objective import Objective
from titn_lib.losses.registry import list_losses, make_objective, needs_teacher
from titn_lib.models.layers import TokenLogits
from titn_lib.training.config import Recipe

DISTILLATION = [name for name in list_losses() if needs_teacher(name)]


class Fixed(torch.nn.Module):
    """Replaces a student's heads: always the same logits."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def forward_all(self, _):
        return self.values


def test_the_published_loss_by_hand_with_cutmix():
    """Two images, three classes, a quarter of each replaced by the other."""
    rows, columns, weight = cutmix_box(8, 8, lam=0.75, row=0.5, column=0.5)
    assert (rows, columns, weight) == (slice(2, 6), slice(2, 6), 0.75)
    labels = MixedTargets(torch.tensor([0, 2]), torch.tensor([2, 0]), weight)
    student = create_model("titn_nano", num_classes=3, depth=1)
    student.heads = Fixed(
        TokenLogits(torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])),
                    torch.log(torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])))
    )  # fmt: skip
    teacher = freeze(create_model("vgg7_bn", num_classes=3))
    output = TeacherOutput(torch.tensor([[1.0, 9.0, 2.0], [0.0, 1.0, 5.0]]), [])  # predicts 1, then 2

    class_part = -(0.75 * math.log(0.5) + 0.25 * math.log(0.2) + 0.75 * math.log(0.8) + 0.25 * math.log(0.1)) / 2
    token_part = -(math.log(0.3) + math.log(0.6)) / 2
    loss, _ = Objective(student, "hard", teacher)(torch.zeros(2, 3, 32, 32), labels, output)
    assert loss.item() == pytest.approx((class_part + token_part) / 2, abs=1e-6)


def test_hard_loss_depends_only_on_the_teachers_class():
    student = torch.randn(4, 5)
    teacher = torch.randn(4, 5)
    assert torch.equal(hard_loss(student, teacher), hard_loss(student, 100 * teacher))
    expected = -torch.log_softmax(student, -1)[torch.arange(4), teacher.argmax(-1)].mean()
    torch.testing.assert_close(hard_loss(student, teacher), expected)


def test_soft_loss():
    student, teacher = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    assert soft_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-12)
    temperature = 3.0
    p, q = (logits / temperature for logits in (teacher, student))
    p, q = p.exp() / p.exp().sum(-1, keepdim=True), q.exp() / q.exp().sum(-1, keepdim=True)
    by_hand = temperature**2 * sum((p * (p / q).log()).sum(-1)) / 4
    torch.testing.assert_close(soft_loss(student, teacher, temperature), by_hand)


def test_dkd_loss():
    """By hand with loops, and Zhao et al.'s identity: the soft loss has the weights 1 and 1 − p(right class)."""
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    labels, temperature = torch.tensor([2, 0, 3]), 2.0
    by_hand = {"target": 0.0, "others": 0.0}
    for image, label in enumerate(labels.tolist()):
        q, p = ([math.exp(v / temperature) for v in logits[image].tolist()] for logits in (student, teacher))
        q, p = ([v / sum(row) for v in row] for row in (q, p))
        target = p[label] * math.log(p[label] / q[label])
        by_hand["target"] += target + (1 - p[label]) * math.log((1 - p[label]) / (1 - q[label]))
        for other in {0, 1, 2, 3} - {label}:
            share, students_share = p[other] / (1 - p[label]), q[other] / (1 - q[label])
            by_hand["others"] += share * math.log(share / students_share)
    expected = temperature**2 * (1.5 * by_hand["target"] + 5 * by_hand["others"]) / 3
    assert dkd_loss(student, teacher, labels, temperature, 1.5, 5.0).item() == pytest.approx(expected, rel=1e-9)

    for image in range(3):
        one = slice(image, image + 1)
        left = 1 - (teacher[one] / temperature).softmax(-1)[0, labels[image]].item()
        same = dkd_loss(student[one], teacher[one], labels[one], temperature, 1.0, left)
        torch.testing.assert_close(same, soft_loss(student[one], teacher[one], temperature))


def test_dkd_takes_the_dominant_class():
    heads, teacher = TokenLogits(torch.randn(2, 3), torch.randn(2, 3)), torch.randn(2, 3)
    first, second = torch.tensor([0, 2]), torch.tensor([1, 1])
    for weight, dominant in ((0.7, first), (0.3, second)):
        targets = MixedTargets(first, second, weight)
        loss = distillation_loss(heads, teacher, targets, "dkd")
        label_half = mixed_cross_entropy(heads.class_logits, targets) / 2
        assert torch.equal(loss, label_half + dkd_loss(heads.distillation_logits, teacher, dominant) / 2)


BOTH = TokenLogits(torch.tensor([[1.0, -1.0, 0.5], [0.2, 0.1, 2.0]]), torch.tensor([[0.3, 2.0, -1.0], [1.5, 0.0, 0.4]]))
TEACHER_LOGITS = torch.tensor([[1.0, 3.0, 2.0], [0.0, 1.0, 2.5]])
LABELS = MixedTargets(torch.tensor([0, 2]), torch.tensor([1, 0]), 0.75)


def fixed_objective(loss, **settings):
    """For a student whose logits are always BOTH."""
    student = create_model("titn_nano", num_classes=3, depth=3)
    objective = Objective(student, loss, freeze(create_model("vgg7_bn", num_classes=3)), **settings)
    student.heads = Fixed(BOTH)
    return objective


@pytest.mark.parametrize("name", ["cross_entropy", "hard", "soft", "dkd"])
def test_objectives_use_every_setting(name):
    def smooth(logits):
        first, second = (cross_entropy(logits, labels, label_smoothing=0.2) for labels in LABELS[:2])
        return 0.75 * first + 0.25 * second

    objective = fixed_objective(name, temperature=2.0, label_smoothing=0.2)
    loss, logits = objective(torch.zeros(2, 3, 32, 32), LABELS, TeacherOutput(TEACHER_LOGITS, []))
    last = {
        "cross_entropy": smooth(BOTH[1]),
        "hard": cross_entropy(BOTH[1], TEACHER_LOGITS.argmax(-1)),
        "soft": soft_loss(BOTH[1], TEACHER_LOGITS, 2.0),
        "dkd": dkd_loss(BOTH[1], TEACHER_LOGITS, LABELS.a, 2.0),
    }[name]
    torch.testing.assert_close(loss, smooth(BOTH[0]) / 2 + last / 2)
    torch.testing.assert_close(logits, (BOTH[0] + BOTH[1]) / 2)


@pytest.mark.parametrize(("name", "weight"), [("feature", 7.0), ("hard+feature", 7.0), ("manifold", 1.0)])
def test_a_feature_loss_is_added_with_its_weight(name, weight, monkeypatch):
    objective, images = fixed_objective(name, feature_weight=7.0), torch.zeros(2, 3, 32, 32)
    output = TeacherOutput(TEACHER_LOGITS, [torch.zeros(2, 4, 8, 8)] * 4)
    monkeypatch.setattr(objective.feature_loss, "forward", lambda *_: torch.tensor(10.0))
    with_it, _ = objective(images, LABELS, output)
    objective.feature_loss = None
    without, _ = objective(images, LABELS, output)
    assert (with_it - without).item() == pytest.approx(10 * weight)


def test_default_settings():
    """Published, or first guesses that results/README.md names."""
    labels = torch.tensor([0, 2])
    assert torch.equal(soft_loss(*BOTH), soft_loss(*BOTH, 4.0))
    assert torch.equal(dkd_loss(*BOTH, labels), dkd_loss(*BOTH, labels, 4.0, 1.0, 8.0))
    assert ManifoldLoss.SAMPLE == 192
    assert fixed_objective("feature").feature_weight == Recipe().feature_weight == 2.5


def test_half_precision_rounds_no_loss():
    rows = torch.randn(2, 30, 16).bfloat16()
    assert torch.equal(similarity_mse(rows[0], rows[1]), similarity_mse(rows[0].float(), rows[1].float()))
    objective = Objective(create_model("titn_nano", depth=1))
    with torch.autocast("cpu", torch.bfloat16):
        loss, logits = objective(torch.randn(2, 3, 32, 32), MixedTargets(LABELS.a, LABELS.a))
    assert loss.dtype == logits.dtype == torch.float32


def test_mixed_targets():
    logits, first, second = torch.randn(4, 5), torch.tensor([0, 1, 2, 3]), torch.tensor([4, 4, 0, 0])
    expected = 0.3 * cross_entropy(logits, first) + 0.7 * cross_entropy(logits, second)
    torch.testing.assert_close(mixed_cross_entropy(logits, MixedTargets(first, second, 0.3)), expected)
    assert torch.equal(mixed_cross_entropy(logits, MixedTargets(first, second)), cross_entropy(logits, first))


@pytest.mark.parametrize("loss", ["cross_entropy", *DISTILLATION])
@pytest.mark.parametrize("name", ["titn_nano", "vit_paper"])
def test_gradients_reach_the_student_and_never_the_teacher(loss, name):
    teacher = create_model("vgg7_bn")
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    freeze(teacher)
    objective = make_objective(create_model(name, depth=3), loss, teacher)
    images = torch.randn(4, 3, 32, 32)
    labels = torch.tensor([1, 2, 3, 4])
    value, logits = objective(images, MixedTargets(labels, labels), teacher_forward(teacher, images))
    value.backward()
    assert logits.shape == (4, 10)
    assert all(
        p.grad is not None and p.grad.abs().max() > 0 for n, p in objective.named_parameters() if "key.bias" not in n
    )
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_a_teacher_in_training_mode_is_refused():
    whole, part = create_model("vgg7_bn").train(), freeze(create_model("vgg7_bn"))
    next(layer for layer in part.modules() if isinstance(layer, torch.nn.BatchNorm2d)).train()
    for teacher in (whole, part):
        with pytest.raises(TITNError, match="the teacher is in training mode"):
            teacher_forward(teacher, torch.zeros(2, 3, 32, 32))


def test_a_feature_loss_leaves_every_part_of_the_teacher_in_its_mode():
    teacher = create_model("vgg7_bn").train()
    teacher.stages[0].eval()
    before, weights = [part.training for part in teacher.modules()], copy.deepcopy(teacher.state_dict())
    FeatureLoss(create_model("titn_nano", depth=3), teacher)
    assert [part.training for part in teacher.modules()] == before
    assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())


def test_the_output_is_the_teachers_own():
    teacher, images = freeze(create_model("vgg7_bn")), torch.randn(2, 3, 32, 32)
    output = teacher_forward(teacher, images)
    assert torch.equal(output.logits, teacher(images))
    assert not output.logits.requires_grad


@pytest.mark.parametrize(
    ("depth", "teacher", "pairs"),
    [
        (12, "vgg16_bn", [(3, 2), (7, 3), (11, 4)]),
        (5, "vgg7_bn", [(1, 1), (2, 2), (4, 3)]),
        (1, "vgg7_bn", [(0, 1), (0, 2), (0, 3)]),
    ],
)
def test_a_third_two_thirds_and_all_of_the_way_meet_the_last_three_stages(depth, teacher, pairs):
    assert FeatureLoss(create_model("titn_nano", depth=depth), create_model(teacher)).pairs == pairs


def test_feature_loss_pulls_features_together():
    """First only the projections are trained, on an untrained student's tokens. Then they are frozen, and training the
    student moves its tokens closer to the teacher's maps, on unseen images."""
    teacher = freeze(create_model("vgg7_bn", image_size=(16, 16)))
    student = create_model("titn_nano", depth=2, image_size=(16, 16))
    images, unseen = (torch.randn(count, 3, 16, 16).cumsum(-1).cumsum(-2) / 8 for count in (32, 32))
    loss = FeatureLoss(student, teacher)
    maps = teacher_forward(teacher, images).maps

    def learn(parameters, blocks):
        optimizer = torch.optim.AdamW(parameters, lr=2e-3)
        for _ in range(60):
            value = loss(blocks(), maps)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    def measure():
        with torch.no_grad():
            return loss(student.forward_features(unseen).hidden_states, teacher_forward(teacher, unseen).maps).item()

    assert measure() > 1.5  # the squared difference of two unrelated standardized vectors is about 2
    tokens = [block.detach() for block in student.forward_features(images).hidden_states]
    learn(loss.parameters(), lambda: tokens)
    before = measure()
    learn(student.parameters(), lambda: student.forward_features(images).hidden_states)
    assert measure() < 0.85 * before


def test_feature_loss_is_zero_for_a_perfect_student():
    teacher = freeze(create_model("vgg7_bn"))
    student = create_model("titn_nano", depth=3, outer_width=256)
    loss = FeatureLoss(student, teacher)
    maps = teacher_forward(teacher, torch.randn(2, 3, 32, 32)).maps
    for projection in loss.projections:
        torch.nn.init.zeros_(projection.bias)
        torch.nn.init.eye_(projection.weight)
    blocks = []
    for (_, stage), projection in zip(loss.pairs, loss.projections, strict=True):
        pooled = torch.nn.functional.adaptive_avg_pool2d(maps[stage], (8, 8)).flatten(2).transpose(1, 2)
        tokens = torch.zeros(2, 66, 256)
        tokens[:, 1:65, : pooled.shape[-1]] = pooled
        blocks.append(tokens)
        assert projection.weight.shape[0] == pooled.shape[-1]
    assert loss(blocks, maps).item() == pytest.approx(0, abs=1e-6)


def test_manifold_loss_by_hand():
    torch.manual_seed(0)
    teacher, student = freeze(create_model("vgg7_bn")), create_model("vit_paper", depth=3)
    loss = ManifoldLoss(student, teacher)
    maps = teacher_forward(teacher, torch.randn(5, 3, 32, 32)).maps
    blocks = [torch.randn(5, 17, 192) for _ in range(3)]

    def gap(student_rows, teacher_rows):
        differences = []
        for i in range(len(student_rows)):
            for j in range(len(student_rows)):
                cosines = [
                    torch.dot(rows[i], rows[j]) / rows[i].norm() / rows[j].norm()
                    for rows in (student_rows, teacher_rows)
                ]
                differences.append((cosines[0] - cosines[1]) ** 2)
        return torch.stack(differences).mean()

    expected = 0.0
    for block, stage in loss.pairs:
        mine = blocks[block][:, 1:17]
        its = torch.nn.functional.adaptive_avg_pool2d(maps[stage], (4, 4)).flatten(2).transpose(1, 2)
        within = torch.stack([gap(mine[i], its[i]) for i in range(5)]).mean()
        between = torch.stack([gap(mine[:, j], its[:, j]) for j in range(16)]).mean()
        everything = gap(mine.flatten(0, 1), its.flatten(0, 1))  # 80 tokens: all are in the sample of 192
        expected = expected + (4 * within + 0.1 * between + 0.2 * everything) / 3
    torch.testing.assert_close(loss(blocks, maps), expected, rtol=1e-4, atol=1e-6)


def test_manifold_loss_is_zero_for_one_that_is_like_itself():
    """Turned, stretched and in another width, a teacher's map has the same similarities."""
    teacher = freeze(create_model("vgg7_bn"))
    loss = ManifoldLoss(create_model("titn_nano", depth=3, outer_width=256), teacher)
    maps = teacher_forward(teacher, torch.randn(4, 3, 32, 32)).maps
    blocks = []
    for _, stage in loss.pairs:
        pooled = torch.nn.functional.adaptive_avg_pool2d(maps[stage], (8, 8)).flatten(2).transpose(1, 2)
        tokens = torch.randn(4, 66, 256)
        tokens[:, 1:65] = 3 * pooled @ torch.linalg.qr(torch.randn(256, pooled.shape[-1])).Q.T
        blocks.append(tokens)
    assert loss(blocks, maps).item() == pytest.approx(0, abs=1e-6)
    assert loss([block.roll(1, dims=0) for block in blocks], maps).item() > 1e-3


@pytest.mark.parametrize(("loss", "message"), [("harsh", "did you mean 'hard'"), ("hard", "needs a teacher")])
def test_impossible_objectives(loss, message):
    with pytest.raises(TITNError, match=message):
        make_objective(create_model("titn_nano"), loss)


@pytest.mark.parametrize("loss", DISTILLATION)
def test_a_forgotten_teacher_output_is_noticed(loss):
    teacher, labels = freeze(create_model("vgg7_bn")), torch.tensor([1])
    objective = make_objective(create_model("titn_nano", depth=3), loss, teacher)
    with pytest.raises(TITNError, match="needs the teacher's output"):
        objective(torch.zeros(1, 3, 32, 32), MixedTargets(labels, labels))


def test_a_network_without_tokens_learns_from_a_teachers_logits_but_not_from_its_maps():
    teacher, network = freeze(create_model("vgg7_bn")), create_model("vgg7_bn").eval()
    with pytest.raises(
        TITNError, match=r"vgg7_bn has no patch tokens for the loss 'soft\+feature': .*\(hard, soft, dkd"
    ):
        make_objective(network, "soft+feature", teacher)
    with pytest.raises(TITNError, match="vgg7_bn has no patch tokens for the loss 'feature'"):
        Objective(network, "feature", teacher)
    images, labels = torch.randn(3, 3, 32, 32), torch.tensor([1, 0, 2])
    output = teacher_forward(teacher, images)
    loss, logits = make_objective(network, "soft", teacher)(images, MixedTargets(labels, labels), output)
    torch.testing.assert_close(logits, network(images))
    kl = (output.logits / 4).softmax(1) * ((output.logits / 4).log_softmax(1) - (logits / 4).log_softmax(1))
    torch.testing.assert_close(loss, (cross_entropy(logits, labels) + 16 * kl.sum(1).mean()) / 2)


# --- titn_lib.distillation_loss


@pytest.mark.parametrize("name", ["cross_entropy", "hard", "soft", "dkd"])
def test_the_public_function_equals_the_objectives_loss(name):
    objective = fixed_objective(name, temperature=2.0, label_smoothing=0.2)
    expected, _ = objective(torch.zeros(2, 3, 32, 32), LABELS, TeacherOutput(TEACHER_LOGITS, []))
    teacher = None if name == "cross_entropy" else TEACHER_LOGITS
    loss = titn_lib.distillation_loss(BOTH, teacher, LABELS, name, temperature=2.0, label_smoothing=0.2)
    assert torch.equal(loss, expected)


def test_the_public_function_takes_plain_labels_and_one_head():
    labels = torch.tensor([0, 2])
    plain = titn_lib.distillation_loss(BOTH, TEACHER_LOGITS, labels)
    assert torch.equal(plain, titn_lib.distillation_loss(BOTH, TEACHER_LOGITS, MixedTargets(labels, labels)))
    expected = (cross_entropy(BOTH[0], labels) + cross_entropy(BOTH[1], TEACHER_LOGITS.argmax(-1))) / 2
    torch.testing.assert_close(plain, expected)
    one_head = titn_lib.distillation_loss(BOTH[0], TEACHER_LOGITS, labels)
    assert torch.equal(one_head, titn_lib.distillation_loss(TokenLogits(BOTH[0], BOTH[0]), TEACHER_LOGITS, labels))


def test_the_public_function_refuses_a_teacher_of_another_shape():
    with pytest.raises(TITNError, match=r"the teacher's logits have the shape .* and the student's \(2, 3\)"):
        titn_lib.distillation_loss(BOTH, torch.zeros(2, 4), torch.tensor([0, 2]))


def test_the_public_function_names_what_is_wrong():
    labels = torch.tensor([0, 2])
    with pytest.raises(TITNError, match="unknown loss of logits 'softt': did you mean 'soft'"):
        titn_lib.distillation_loss(BOTH, TEACHER_LOGITS, labels, "softt")
    with pytest.raises(TITNError, match="the loss 'soft' needs the teacher's logits"):
        titn_lib.distillation_loss(BOTH, None, labels, "soft")


def test_cutmix_keeps_pixels_and_labels_together():
    import numpy as np

    images = torch.arange(8)[:, None, None, None].expand(8, 1, 32, 32).float()  # image k is all k
    labels = torch.arange(8)
    clipped = 0
    for seed in range(40):
        mixed, both = cutmix(images, labels, np.random.default_rng(seed))
        for image, first, second in zip(mixed, both.a, both.b, strict=True):
            share = (image == first).float().mean().item() if first != second else 1.0
            assert share == pytest.approx(both.lam if first != second else 1.0, abs=1e-6)
        drawn = np.random.default_rng(seed).beta(1, 1)
        clipped += abs(drawn - both.lam) > 0.1
    assert clipped > 5  # boxes at the border: the drawn share would have been wrong
