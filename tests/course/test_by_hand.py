"""notebooks/by_hand has what the notebooks write by hand, and it computes what the library and SciPy compute."""

import importlib.util
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from titn_lib import create_model, interpret, load_model, predict
from titn_lib.course import ex05_teacher
from titn_lib.data import load_dataset
from titn_lib.experiments.statistics import chance_of
from titn_lib.losses.contrastive import contrastive_loss
from titn_lib.models.related.adavit import gate

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"by_hand_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def chapter(name):
    return load(NOTEBOOKS / "by_hand" / f"{name}.py")


@pytest.fixture(scope="module")
def collect():
    return load(NOTEBOOKS / "collect.py")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("titn_paper", num_classes=10).double().eval().requires_grad_(False)


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, dtype=torch.float64)


def test_files_are_up_to_date(collect):
    written = {path.name: path.read_text(encoding="utf-8") for path in (NOTEBOOKS / "by_hand").glob("*.py")}
    assert written == {
        f"{name[3:]}.py": collect.formatted(collect.collect(NOTEBOOKS / f"{name}.ipynb", functions))
        for name, functions in collect.CHAPTERS.items()
    }, "run notebooks/collect.py"
    assert all(text.count("\n") <= 90 for text in written.values())


def test_a_function_that_is_gone_is_missed(collect):
    with pytest.raises(KeyError):
        collect.collect(NOTEBOOKS / "02_inner_attention.ipynb", ("attend", "no_such_function"))


def test_the_whole_model(model, images):
    mine = chapter("titn").HandMadeTITN().double()
    chapter("titn").copy_weights(mine, model)
    torch.testing.assert_close(mine.eval()(images), model(images))
    own, theirs = mine.train()(images), model.train()(images)
    model.eval()
    torch.testing.assert_close(own[0], theirs.class_logits)
    torch.testing.assert_close(own[1], theirs.distillation_logits)


def test_inner_and_outer_attention(model, images):
    inner, outer = chapter("inner_attention"), chapter("outer_attention")
    block = model.blocks[0]
    Y, Z = torch.randn(2, 16, 16, 12, dtype=torch.float64), torch.randn(2, 18, 192, dtype=torch.float64)
    torch.testing.assert_close(inner.whole_layer(Y[0, 3], block.inner), block.inner(Y)[0][0, 3])
    own_Y, own_Z, _ = outer.block_by_hand(Y, Z, block)
    their_Y, their_Z = block(Y, Z)[:2]
    torch.testing.assert_close(own_Y, their_Y)
    torch.testing.assert_close(own_Z, their_Z)
    class_logits, distillation_logits = outer.both_heads(Z, model.heads)
    torch.testing.assert_close((class_logits + distillation_logits) / 2, model.heads(Z))


def test_rollout(model, images):
    attention = model(images, return_attention=True)[1].outer
    shares = torch.eye(18, dtype=torch.float64)
    traced = torch.stack([chapter("attention").trace_back(row.expand(2, -1), attention) for row in shares], dim=1)
    torch.testing.assert_close(traced, interpret.rollout(attention))


def test_losses_and_gates():
    by_hand = chapter("distillation")
    logits, labels = torch.randn(5, 7), torch.randint(7, (5,))
    torch.testing.assert_close(by_hand.cross_entropy(logits, labels), F.cross_entropy(logits, labels))
    p, q = logits.softmax(dim=-1), torch.randn(5, 7).softmax(dim=-1)
    torch.testing.assert_close(by_hand.kl(p, q), F.kl_div(q.log(), p, reduction="none").sum(dim=-1))
    torch.testing.assert_close(by_hand.standardize(logits), F.layer_norm(logits, (7,)))
    pairs = F.cosine_similarity(logits[:, None], logits[None], dim=-1)
    torch.testing.assert_close(by_hand.similarity(logits), pairs)

    q, k, v = torch.randn(3, 2, 10, 4)
    linear = chapter("related_attention")
    weights = torch.tensor([[[float((F.elu(a) + 1) @ (F.elu(b) + 1)) for b in k[i]] for a in q[i]] for i in range(2)])
    for function in (linear.with_matrix, linear.with_summary):
        torch.testing.assert_close(function(q, k, v), F.normalize(weights, p=1, dim=-1) @ v)
    maps, convolution = torch.randn(2, 3, 16, 16), nn.Conv2d(3, 3, 3, padding=1, groups=3)
    perceived = chapter("related_convolutions").local_perception(maps, convolution.weight, convolution.bias)
    torch.testing.assert_close(perceived, maps + convolution(maps))

    z, y = F.normalize(torch.randn(8, 4), dim=-1), torch.tensor([0, 0, 1, 1, 2, 2, 2, 3])
    torch.testing.assert_close(chapter("related_training").by_hand(z, y), contrastive_loss(z, y, temperature=0.1))
    gates = []
    for function in (chapter("related_cost").my_gate, lambda logits: gate(logits, training=True)):
        torch.manual_seed(0)
        gates.append(function(torch.linspace(-3, 3, 1000)))
    torch.testing.assert_close(*gates)


def test_calibration():
    by_hand = chapter("teacher")
    logits, labels = 3 * torch.randn(200, 5), torch.randint(5, (200,))
    own = by_hand.calibration_error(by_hand.calibration_bins(logits, labels))
    assert own == pytest.approx(float(ex05_teacher.calibration_error(logits.softmax(dim=-1), labels)), abs=1e-6)


def test_intervals_and_tests_of_significance():
    by_hand = chapter("your_images")
    interval = stats.binomtest(93, 104).proportion_ci(method="wilson")
    assert by_hand.wilson(93, 104, stats.norm.ppf(0.975)) == pytest.approx((100 * interval.low, 100 * interval.high))
    assert by_hand.coverage(lambda k, n: (0, 100 * k / n), 0.5, 9) == pytest.approx(stats.binom.sf(4, 9, 0.5))
    a, b = torch.rand(2, 300) > torch.tensor([[0.2], [0.3]])
    only_a, only_b, p = by_hand.mcnemar_test(a, b)
    assert p == pytest.approx(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)

    by_hand = chapter("ablations")
    groups = [torch.randn(3), torch.randn(4)]
    s, freedom = by_hand.pooled(groups)
    assert freedom == 5
    t = (groups[0].mean() - groups[1].mean()) / (s * (1 / 3 + 1 / 4) ** 0.5)
    assert float(t) == pytest.approx(stats.ttest_ind(*groups).statistic, abs=1e-5)
    torch.manual_seed(0)
    single, corrected = by_hand.thresholds([3] * 9, 18, tables=100_000)
    assert single == pytest.approx(stats.t.ppf(0.975, 18), abs=0.1)
    assert chance_of(corrected, [3] * 8, 3, 18) == pytest.approx(0.05, abs=0.008)


def test_your_images():
    by_hand = chapter("your_images")
    student, digits = load_model("titn_nano.digits"), load_dataset("digits")
    with torch.no_grad():
        features = by_hand.extract_features(student, digits.validation)
        logits = student.heads.class_head(features[:, 0]) + student.heads.distillation_head(features[:, 1])
        expected = predict(student, digits.validation.images)
        torch.testing.assert_close(logits / 2, expected, atol=1e-4, rtol=1e-4)
        whole = by_hand.WithPreprocessing(student)(digits.validation.images)
        torch.testing.assert_close(whole, expected.softmax(dim=-1), atol=1e-4, rtol=1e-4)
