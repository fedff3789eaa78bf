"""Rollout, relevance and faithfulness tests: by hand, against slow references, and on models whose map is known."""

import math

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from titn_lib import TITNError, create_model, interpret, load_model
from titn_lib.data.datasets import load_dataset
from titn_lib.data.transforms import normalize

SMALL = {"num_classes": 5, "in_channels": 1, "image_size": (8, 12), "patch_size": 4, "depth": 2}
STUDENTS = [
    ("titn_paper", {}),
    ("titn_nano", {}),
    ("tnt_paper", {}),
    ("tnt_s", {"patch_size": 4, "pixel_size": 2, "inner_width": 8, "outer_width": 24}),
    ("titn_pico", {}),
    ("vit_paper", {}),
    ("distilled_vit_paper", {}),
]


def make(name, **settings):
    """A small student whose attention is far from even."""
    model = create_model(name, **{**SMALL, **settings})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


def random_images(model, count=3):
    return torch.randn(count, model.config.in_channels, *model.config.image_size)


@pytest.fixture(params=STUDENTS, ids=lambda pair: pair[0])
def student(request):
    name, settings = request.param
    return make(name, **settings)


# --- attention, heads and gradients


def test_attention_of_both_streams(student):
    maps = interpret.attention(student, random_images(student))
    assert [len(maps.outer), len(maps.inner)] == [2, 0 if "vit" in student.config.name else 2]
    for one in [*maps.outer, *maps.inner]:
        assert not one.requires_grad
        torch.testing.assert_close(one.sum(dim=-1), torch.ones(one.shape[:-1]))


def test_refusals():
    images, model = torch.zeros(1, 1, 8, 12), make("tnt_paper")
    with pytest.raises(TITNError, match="this titn_nano has no inner layers"):
        interpret.attention(create_model("titn_nano", inner_layers=False).eval(), torch.zeros(1, 3, 32, 32))
    with pytest.raises(TITNError, match="vgg7_bn has no attention maps: use a student"):
        interpret.attention(create_model("vgg7_bn").eval(), torch.zeros(1, 3, 32, 32))
    with pytest.raises(TITNError, match="tnt_paper has no distillation token: choose head='class'"):
        interpret.relevance(model, images, head="distillation")
    with pytest.raises(TITNError, match="unknown head 'clas': did you mean 'class'"):
        interpret.outer_rollout(model, images, head="clas")
    with pytest.raises(TITNError, match=r"in training mode: call model\.eval\(\) first"):
        interpret.relevance(model.train(), images)


def test_logits_are_those_of_the_head():
    model = make("titn_paper")
    images = random_images(model)
    both = model.train()(images)
    model.eval()
    torch.testing.assert_close(interpret.head_logits_fn(model)(images), both.class_logits)
    torch.testing.assert_close(interpret.head_logits_fn(model, "distillation")(images), both.distillation_logits)
    torch.testing.assert_close(interpret.head_logits_fn(make("vit_paper"))(images).shape, both.class_logits.shape)


def test_input_gradient_is_the_slope():
    model = make("titn_paper").double()
    images, classes = random_images(model).double(), torch.tensor([1, 4, 0])
    gradient = interpret.input_gradient(model, images, classes, "distillation")
    shifted = images.clone()
    shifted[:, 0, 5, 7] += 1e-5
    slope = (
        interpret.head_logits_fn(model, "distillation")(shifted)
        - interpret.head_logits_fn(model, "distillation")(images)
    ) / 1e-5
    torch.testing.assert_close(gradient[:, 0, 5, 7], slope.detach()[range(3), classes], atol=1e-4, rtol=1e-3)


# --- the outer stream


def test_rollout_by_hand():
    first = torch.tensor([[[1.0, 0.0], [0.4, 0.6]], [[0.0, 1.0], [0.0, 1.0]]])  # head query key
    second = torch.tensor([[[0.2, 0.8], [1.0, 0.0]], [[0.2, 0.8], [1.0, 0.0]]])
    # means over heads: [[.5 .5] [.2 .8]] and [[.2 .8] [1 0]]; with half of I: [[.75 .25] [.1 .9]] and [[.6 .4] [.5 .5]]
    torch.testing.assert_close(interpret.rollout_step(first), torch.tensor([[0.75, 0.25], [0.1, 0.9]]))
    torch.testing.assert_close(interpret.rollout([first, second]), torch.tensor([[0.49, 0.51], [0.425, 0.575]]))
    torch.testing.assert_close(interpret.rollout_step(2 * first).sum(dim=-1), torch.ones(2))  # rows are normalized


def test_gradient_rollout_step_by_hand():
    attention = torch.tensor([[[0.5, 0.5], [0.2, 0.8]], [[0.1, 0.9], [1.0, 0.0]]])
    gradient = torch.tensor([[[2.0, -1.0], [0.0, 1.0]], [[10.0, 0.0], [-3.0, 5.0]]])
    step = interpret.gradient_rollout_step(attention, gradient)
    torch.testing.assert_close(step, torch.tensor([[1 + (1 + 1) / 2, 0.0], [0.0, 1 + 0.8 / 2]]))


def test_outer_rollout_pools_the_right_rows(student):
    images, config = random_images(student), student.config
    rolled = interpret.rollout(interpret.attention(student, images).outer)
    last = config.num_tokens - config.distillation_token
    read = rolled[:, 0] if config.pooling == "class" else rolled[:, :last].mean(dim=1)
    torch.testing.assert_close(interpret.outer_rollout(student, images), read)
    torch.testing.assert_close(read.sum(dim=1), torch.ones(3))
    if config.distillation_token:
        torch.testing.assert_close(interpret.outer_rollout(student, images, "distillation"), rolled[:, -1])


@pytest.mark.parametrize("pooling", ["class", "mean"])
@pytest.mark.parametrize("head", ["class", "distillation"])
def test_gradient_rollout_with_one_block_is_gradient_times_attention(pooling, head):
    model = make("distilled_vit_paper", pooling=pooling, depth=1)
    images, classes, layer = random_images(model), torch.tensor([2, 0, 3]), model.blocks[0]
    attention = interpret.attention(model, images).outer[0].requires_grad_()
    seen = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    model(images)
    handle.remove()
    tokens = seen[0]  # the layer once more, by hand, as a function of its attention
    values = layer.attn.qkv(layer.attention_norm(tokens)).chunk(3, dim=-1)[2].unflatten(-1, (8, -1))
    update = torch.einsum("bhqk,bkhw->bqhw", attention, values).flatten(-2)
    tokens = tokens + layer.attn.proj(update)
    both = model.heads.forward_all(tokens + layer.mlp(layer.mlp_norm(tokens)))
    z = both.class_logits if head == "class" else both.distillation_logits
    (gradient,) = torch.autograd.grad(z[range(3), classes].sum(), attention)
    by_hand = (attention * gradient).clamp(min=0).mean(dim=1)
    rows = (
        by_hand[:, -1] if head == "distillation" else by_hand[:, 0] if pooling == "class" else by_hand[:, :-1].mean(1)
    )
    got = interpret.outer_rollout(model, images, head, classes)
    torch.testing.assert_close(got, (rows / rows.sum(dim=1, keepdim=True)).detach(), atol=1e-5, rtol=1e-4)


# --- both streams


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("head", ["class", "distillation"])
def test_all_shares_sum_to_one(student, weighted, head):
    if head == "distillation" and not student.config.distillation_token:
        return
    images = random_images(student)
    classes = interpret.head_logits_fn(student, head)(images).argmax(dim=-1) if weighted else None
    pixels, sources = interpret.relevance(student, images, head, classes)
    assert pixels.shape == (3, 8, 12)
    assert sources.shape == (3, student.config.depth + 2)
    assert pixels.min() >= -1e-6
    assert sources.min() >= -1e-6
    torch.testing.assert_close(sources.sum(dim=1), torch.ones(3))
    torch.testing.assert_close(pixels.sum(dim=(1, 2)), 1 - sources[:, -1])
    assert pixels.sum(dim=(1, 2)).min() > 0.1
    learned = getattr(student.config, "patch_tokens", "image") == "learned"
    assert bool((sources[:, 0] == 0).all()) is learned  # the published model embeds no image in its patch tokens


@pytest.mark.parametrize(("name", "weighted"), [("vit_paper", False), ("distilled_vit_paper", True)])
def test_a_vits_relevance_is_its_rollout_spread_evenly(name, weighted):
    model = make(name)
    images = random_images(model)
    classes = torch.tensor([1, 2, 3]) if weighted else None
    patches = interpret.outer_rollout(model, images, classes=classes)[:, 1:7].reshape(3, 2, 3)
    spread = patches.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2) / 16
    torch.testing.assert_close(interpret.relevance(model, images, classes=classes).image, spread)


def reference_relevance(model, image, head):
    """The equations of `relevance` with loops over tokens, for one image."""
    config, maps = model.config, interpret.attention(model, image).outer
    inner = model.pixel_embedding(image)
    outer = model.patch_embedding(inner)
    N, M, T, L = config.num_patches, config.num_pixel_tokens, config.num_tokens, config.depth
    beta, share, rolled = torch.zeros(L + 1, N), torch.zeros(L + 1, N, M), torch.zeros(L + 1, N, M, M)

    def inject(way, projection, normed, before):
        for n in range(N):
            parts = []
            for m in range(M):
                alone = torch.zeros_like(normed)
                alone[0, n, m] = normed[0, n, m]
                parts.append(projection.linear(alone.flatten(2))[0, n] - projection.linear(0 * alone.flatten(2))[0, n])
                share[way, n, m] = parts[m].norm()
            share[way, n] /= share[way, n].sum()
            bias = projection.project(0 * normed)[0, n]
            u, z = projection.project(normed)[0, n] - bias, before[0, n] + bias
            beta[way, n] = u.norm() / (u.norm() + z.norm())

    for n in range(N):
        rolled[0, n] = torch.eye(M)
    if config.patch_tokens == "from_pixels":
        start = model.patch_embedding.projection
        inject(0, start, start.norm(inner), model.patch_embedding.pos_embed[None, 1 : 1 + N])
    for way, block in enumerate(model.blocks, 1):
        inner, attention = block.inner(inner, True)
        for n in range(N):
            rolled[way, n] = (attention[0, n].mean(dim=0) / 2 + torch.eye(M) / 2) @ rolled[way - 1, n]
        inject(way, block.projection, block.projection.norm(inner), outer[:, 1 : 1 + N])
        outer = model.forward_features(image).hidden_states[way - 1]
    last = T - config.distillation_token
    r = [1 / last if t < last else 0.0 for t in range(T)] if config.pooling == "mean" else [1.0] + [0.0] * (T - 1)
    r = r if head == "class" else [0.0] * (T - 1) + [1.0]
    relevance = torch.zeros(N, M)
    for way in range(L, -1, -1):
        mixed = maps[way - 1][0].mean(dim=0) / 2 + torch.eye(T) / 2 if way else torch.eye(T)
        q = [sum(float(r[t] * mixed[t, k]) for t in range(T)) for k in range(T)]
        for n in range(N):
            for m in range(M):
                relevance[n, m] += q[1 + n] * sum(
                    beta[way, n] * share[way, n, k] * rolled[way, n, k, m] for k in range(M)
                )
            q[1 + n] = q[1 + n] * float(1 - beta[way, n])
        r = q
    return relevance, sum(r)


@pytest.mark.parametrize(("name", "head"), [("titn_paper", "class"), ("titn_nano", "distillation"), ("tnt_s", "class")])
def test_relevance_equals_its_equations(name, head):
    settings = {**dict(STUDENTS)[name], "patch_size": 4, "image_size": (8, 8)}
    model = make(name, **settings).requires_grad_(False)
    image = random_images(model, 1)
    relevance, rest = reference_relevance(model, image, head)
    pixels, sources = interpret.relevance(model, image, head)
    by_pixel = pixels.reshape(2, 2, 2, 2, 2, 2).sum(dim=(2, 5)).permute(0, 2, 1, 3).reshape(4, 4)
    torch.testing.assert_close(by_pixel, relevance, atol=1e-5, rtol=1e-4)
    assert float(sources[0, -1]) == pytest.approx(rest, abs=1e-5)


def only(patch, pixel):
    """A TITN of one block whose class logits depend on one pixel of one patch, and on nothing else."""
    settings = {"image_size": (8, 8), "inner_width": 4, "inner_heads": 1, "outer_width": 8, "outer_heads": 1}
    model = create_model("titn_paper", **{**SMALL, "depth": 1, "pooling": "class", **settings}).eval()
    nn.init.zeros_(model.pixel_embedding.embed.bias)
    nn.init.eye_(model.pixel_embedding.embed.weight)
    block, outer = model.blocks[0], model.patch_embedding
    for layer, table, chosen in ((block.inner, model.pixel_embedding.pos_embed, pixel),
                                 (block.outer, outer.tokens, 1 + patch)):  # fmt: skip
        # One token is marked; its key matches the query that every token has: all tokens attend to it alone.
        table.data.zero_()[:, 1], table.data[:, 0] = 3, -3
        table.data[chosen, 1], table.data[chosen, 0] = -3, 3
        width = table.shape[1]
        layer.attn.qkv.weight.data[: 2 * width] = 0
        layer.attn.qkv.weight.data[width, 0] = 100
        layer.attn.qkv.bias.data.zero_()[0] = 100
        layer.mlp[2].weight.data.zero_()
    block.inner.attn.proj.weight.data.zero_()  # attention adds nothing to the pixels: the next line decides
    block.projection.linear.weight.data.reshape(8, 4, 4)[:, torch.arange(4) != pixel] = 0
    for table in (outer.pos_embed, outer.dist_embed):
        table.data.zero_()
    return model.requires_grad_(False)


@pytest.mark.parametrize(("patch", "pixel"), [(0, 0), (2, 1), (3, 2)])
def test_relevance_finds_the_only_pixel_that_matters(patch, pixel):
    model = only(patch, pixel)
    image = torch.rand(1, 1, 8, 8)
    row, column = 4 * (patch // 2) + 2 * (pixel // 2), 4 * (patch % 2) + 2 * (pixel % 2)
    where = torch.zeros(8, 8)
    where[row : row + 2, column : column + 2] = 1

    counts = interpret.input_gradient(model, image, torch.tensor([1]))[0, 0].abs() > 1e-12
    assert torch.equal(counts, where > 0)  # the model is what it should be
    pixels, sources = interpret.relevance(model, image)
    projection, normed = (
        model.blocks[0].projection,
        model.blocks[0].forward_inner(model.pixel_embedding(image), False)[1],
    )
    bias = projection.linear.bias
    update = (projection.project(normed) - bias)[0, patch].norm()
    share = float(update / (update + (model.patch_embedding.tokens[1 + patch] + bias).norm()))
    torch.testing.assert_close(pixels[0], where * share / 2 / 4)
    assert sources[0].tolist() == pytest.approx([0, share / 2, 1 - share / 2])
    weighted = [interpret.relevance(model, image, classes=torch.tensor([label])).image[0] for label in range(5)]
    assert any(one.sum() > 0 for one in weighted)
    for one in weighted:  # the only attention that matters may lower a class's logit
        assert one.sum() == 0 or torch.equal(one > 0, where > 0)


# --- faithfulness


def test_cells_and_their_order():
    maps = torch.tensor([[[1.0, 0, 0, 0, 5, 0], [0, 0, 2, 0, 0, 0], [0, 0, 0, 0, 0, 0], [2, 0, 9, 0, 0, 0]]])
    assert interpret.sum_cells(maps, 2).tolist() == [[1, 2, 5, 2, 9, 0]]
    assert interpret.order_cells(maps, 2).tolist() == [[4, 2, 1, 3, 0, 5]]  # equal ones in reading order


def test_perturbation_curves_of_a_linear_model_by_hand():
    weights = torch.tensor([[1.0, 1, 2, 2], [1, 1, 2, 2], [0, 0, -1, -1], [0, 0, -1, -1]])

    def logits(images):
        z = (images[:, 0] * weights).sum(dim=(1, 2))
        return torch.stack([0 * z, z], dim=1)

    def sigmoid(z):
        return 1 / (1 + math.exp(-z))

    images, blank, classes = torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), torch.tensor([1, 0])
    order = torch.tensor([[1, 2, 0, 3], [3, 2, 1, 0]])  # cells are worth 4, 8, 0, −4
    deletion = interpret.perturbation_curve(logits, images, blank, order, classes, steps=4)
    expected = [[sigmoid(z) for z in (8, 0, 0, -4, 0)], [1 - sigmoid(z) for z in (8, 12, 12, 4, 0)]]
    torch.testing.assert_close(deletion, torch.tensor(expected), atol=1e-6, rtol=0)
    insertion = interpret.perturbation_curve(logits, blank, images, order, classes, steps=4)
    expected = [[sigmoid(z) for z in (0, 8, 8, 12, 8)], [1 - sigmoid(z) for z in (0, -4, -4, 4, 8)]]
    torch.testing.assert_close(insertion, torch.tensor(expected), atol=1e-6, rtol=0)
    halves = interpret.perturbation_curve(logits, images, blank, order, classes, steps=2)
    torch.testing.assert_close(halves, deletion[:, ::2])
    by_hand = (deletion[:, 0] / 2 + deletion[:, 1] + deletion[:, 2] + deletion[:, 3] + deletion[:, 4] / 2) / 4
    torch.testing.assert_close(interpret.auc(deletion), by_hand)
    with pytest.raises(TITNError, match="5 cells don't tile images of 4×4: make the order from maps of that size"):
        interpret.perturbation_curve(logits, images, blank, torch.arange(5).expand(2, -1), classes)


def test_perturbation_keeps_rows_and_columns_apart_on_oblong_images():
    images, order = torch.ones(1, 1, 4, 6), torch.tensor([[2, 3, 0, 1, 4, 5]])
    seen = []

    def logits(images):
        seen.append(images[0, 0].clone())
        return torch.zeros(1, 2)

    interpret.perturbation_curve(logits, images, 0 * images, order, torch.tensor([0]), steps=6)
    assert seen[2].tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]


def test_perturbation_is_complete_whatever_the_number_of_steps():
    start, seen = torch.ones(1, 1, 6, 6), []

    def logits(images):
        seen.append(images.mean().item())
        return torch.zeros(1, 2)

    interpret.perturbation_curve(logits, start, 0 * start, torch.arange(9)[None], torch.tensor([0]), steps=4)
    assert seen == pytest.approx([1, 7 / 9, 5 / 9, 2 / 9, 0])  # of nine cells 0, 2, 4, 7 and 9 are gone


def test_blur_keeps_the_mean_color_and_no_detail():
    checks = ((torch.arange(16)[:, None] + torch.arange(16)) % 2).float().expand(1, 3, 16, 16)
    blurred = interpret.blur(checks)
    assert blurred.std() < 0.02
    torch.testing.assert_close(blurred.mean(), checks.mean(), atol=0.02, rtol=0)
    torch.testing.assert_close(interpret.blur(torch.ones(1, 1, 8, 8)), torch.ones(1, 1, 8, 8))
    point = torch.zeros(1, 1, 33, 33)
    point[..., 16, 16] = 1
    row = interpret.blur(point, width=4.0)[0, 0, 16]
    for away in (4, 8):  # one and two standard deviations
        assert (row[16 + away] / row[16]).item() == pytest.approx(math.exp(-(away**2) / 32), rel=1e-4)


def test_bootstrap_intervals():
    low, high = interpret.bootstrap_ci(torch.full((7,), 0.25))
    assert (low, high) == (0.25, 0.25)
    values = torch.randn(400) + 1
    low, high = interpret.bootstrap_ci(values)
    error = float(values.std() / 20)
    assert low == pytest.approx(float(values.mean()) - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(float(values.mean()) + 1.96 * error, abs=0.2 * error)
    assert interpret.bootstrap_ci(values) == (low, high)


def test_rank_correlation_is_spearmans():
    a, b = torch.randint(0, 5, (3, 20)).float(), torch.randn(3, 20)
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(interpret.rank_correlation(a, b), torch.tensor(expected).float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(interpret.rank_correlation(a, torch.exp(a)), torch.ones(3))
    assert interpret.rank_correlation(a, torch.ones_like(a)).tolist() == [0, 0, 0]


def test_randomizing_reaches_as_many_blocks_as_wanted(student):
    before, state = torch.random.get_rng_state(), {k: v.clone() for k, v in student.state_dict().items()}
    parts = ["heads.", "blocks.1.", "blocks.0."]
    for count in range(4):
        other = interpret.randomize_weights(student, count)
        assert not other.training
        for name, value in other.state_dict().items():
            if value.ndim > 1 and (name.startswith("heads.") or name.startswith("blocks.") or count == 3):
                changed = count == 3 or name.startswith(tuple(parts[: 1 + count]))
                assert torch.equal(value, state[name]) is not changed, (count, name)
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
    assert torch.equal(before, torch.random.get_rng_state())


def test_randomized_weights_are_not_the_initialization_of_a_run_with_this_seed():
    torch.manual_seed(3)
    model = create_model("titn_nano", depth=1).eval()
    other = interpret.randomize_weights(model, 2, seed=3)
    assert not torch.equal(model.heads.class_head[1].weight, other.heads.class_head[1].weight)


@pytest.mark.parametrize("weighted", [False, True])
def test_maps_depend_on_the_weights(student, weighted):
    images, classes = random_images(student), torch.tensor([1, 2, 3]) if weighted else None
    maps = [
        interpret.relevance(interpret.randomize_weights(student, count), images, classes=classes).image
        for count in range(4)
    ]
    original = interpret.relevance(student, images, classes=classes).image
    assert torch.equal(maps[0], original) is not weighted  # without a class the heads play no part
    for other in maps[1:]:
        assert (other - original).abs().max() > 1e-3 * original.max()


def test_deletion_tells_a_faithful_map_from_a_random_one():
    """On a trained model and validation images."""
    model, data = load_model("titn_nano.digits"), load_dataset("digits")
    images = normalize(data.validation.images[:100], data.mean, data.std)
    logits = interpret.head_logits_fn(model)
    black, classes = torch.full_like(images, float(images.min())), logits(images).argmax(dim=-1)
    maps = {
        "random": torch.rand(100, 16, 16),
        "relevance": interpret.relevance(model, images).image,
        "upside down": -interpret.relevance(model, images).image,
    }
    areas = {
        name: interpret.auc(
            interpret.perturbation_curve(logits, images, black, interpret.order_cells(one, 2), classes, steps=8)
        )
        for name, one in maps.items()
    }
    assert interpret.bootstrap_ci(areas["random"] - areas["relevance"])[0] > 0
    assert interpret.bootstrap_ci(areas["upside down"] - areas["relevance"])[0] > 0
