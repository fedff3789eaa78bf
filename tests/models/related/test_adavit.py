"""AdaViT: with open gates against TITN, with some closed against a loop over images and patches, what closing saves
against a count of what was done, and that training closes gates."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from titn_lib import TITNError, count_macs, count_parameters, create_model, load_model, save_model
from titn_lib.data.datasets import load_dataset
from titn_lib.data.images import ImageDataset
from titn_lib.data.mixing import MixedTargets
from titn_lib.data.transforms import Preprocessing, normalize
from titn_lib.kernels import build
from titn_lib.losses.budget import BudgetObjective
from titn_lib.losses.objective import Objective
from titn_lib.models.related.adavit import gate
from titn_lib.training.config import Recipe, Run
from titn_lib.training.evaluation import evaluate
from titn_lib.training.networks import load_initial_weights
from titn_lib.training.records import WEIGHTS
from titn_lib.training.run import train

from . import contract
from .reference import gelu, layer_norm, linear, scramble, softmax_attention

OTHER = {"distillation_token": False, "qkv_bias": False, "projection_norm": "patch", "pooling": "class"}
BOTH = pytest.mark.parametrize("settings", [{}, OTHER], ids=["titn", "tnt"])


def test_size():
    titn, adavit = create_model("titn_nano"), create_model("adavit_nano")
    assert count_parameters(adavit) == count_parameters(titn) + 4 * 7 * 129 == 741_824
    assert count_macs(adavit) == count_macs(titn) + 4 * (64 + 6) * 128


def half_open(images, prepare=lambda model: model.eval(), **settings):
    """A network each of whose gates is open for about half of the images, and not all for the same half."""
    model = create_model("adavit_nano", image_size=tuple(images.shape[2:]), **settings)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.0 if ".nets." in name else 0.2)
    model = prepare(model)
    for block in model.blocks[1:]:
        seen = []
        handle = block.register_forward_pre_hook(lambda _, arguments, seen=seen: seen.append(arguments[1]))
        with torch.no_grad():
            model(images)
            handle.remove()
            tokens = block.outer.attention_norm(seen[0])
            for name, net in block.nets.items():
                logits = net(tokens[:, 1:65].flatten(0, 1) if name == "patches" else tokens[:, 0])
                net.bias -= logits.quantile(0.55, dim=0)
    return model


@BOTH
def test_with_open_gates_it_is_titn(settings):
    titn = create_model("titn_nano", depth=3, **settings).eval()
    for parameter in titn.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    adavit = create_model("adavit_nano", depth=3, **settings).eval()
    load_initial_weights(adavit, titn)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected, maps = titn(images, return_attention=True)
        logits, attention = adavit(images, return_attention=True)
        assert torch.equal(logits, expected)
        for ours, theirs in zip([*attention.inner, *attention.outer], [*maps.inner, *maps.outer], strict=True):
            assert torch.equal(ours, theirs)
        torch.testing.assert_close(adavit(images), titn(images), atol=1e-5, rtol=1e-5)
    assert all((kind == 1).all() for kind in adavit.last_gates)


def test_the_initial_weights_are_titns():
    torch.manual_seed(3)
    titn = create_model("titn_nano", depth=2).state_dict()
    torch.manual_seed(3)
    adavit = create_model("adavit_nano", depth=2).state_dict()
    assert all(torch.equal(adavit[name], value) for name, value in titn.items())


@BOTH
def test_equals_a_loop_over_images_and_patches(settings):
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    model = half_open(images, scramble, depth=3, **settings)
    with torch.no_grad():
        for return_attention in (False, True):
            logits = model(images, return_attention=True)[0] if return_attention else model(images)
            for index in range(len(images)):
                expected = reference(model, images[index : index + 1])
                torch.testing.assert_close(logits[index], expected, atol=1e-9, rtol=0)
    for kind in model.last_gates:
        assert 0.2 < kind.mean() < 0.8
        assert (kind.std(dim=1) > 0).float().mean() > 0.3  # other gates for other images


def reference(model, image):
    """One image, block by block: closed parts are left out."""
    weights, config = model.state_dict(), model.config
    inner = model.pixel_embedding(image)
    inner, outer, *_ = model.blocks[0](inner, model.patch_embedding(inner))
    inner, outer = list(inner[0]), list(outer[0])
    patches = range(1, 1 + config.num_patches)

    def is_open(net, token):
        logits = linear(weights, f"{block}.nets.{net}", layer_norm(weights, f"{block}.outer.attention_norm", token))
        return [1 / (1 + math.exp(-logit)) > 0.5 for logit in logits.tolist()]

    def layer(name, tokens, heads, attn_gate, mlp_gate):
        if attn_gate:
            normed = layer_norm(weights, f"{name}.attention_norm", tokens)
            qkv = normed @ weights[f"{name}.attn.qkv.weight"].T + weights.get(f"{name}.attn.qkv.bias", 0)
            query, key, value = qkv.unflatten(-1, (3, len(heads), -1)).unbind(dim=1)
            mixed = torch.zeros_like(query)
            for head in range(len(heads)):
                if heads[head]:
                    mixed[:, head] = softmax_attention(query[:, head], key[:, head], value[:, head])
            tokens = tokens + linear(weights, f"{name}.attn.proj", mixed.flatten(1))
        if mlp_gate:
            hidden = gelu(linear(weights, f"{name}.mlp.0", layer_norm(weights, f"{name}.mlp_norm", tokens)))
            tokens = tokens + linear(weights, f"{name}.mlp.2", hidden)
        return tokens

    for number in range(1, config.depth):
        block = f"blocks.{number}"
        heads, (attn_gate, mlp_gate) = is_open("heads", outer[0]), is_open("sublayers", outer[0])
        kept = [n for n in range(len(outer)) if n not in patches or is_open("patches", outer[n])[0]]
        for n in kept:
            if n in patches:
                inner[n - 1] = layer(f"{block}.inner", inner[n - 1], [True] * config.inner_heads, True, True)
                outer[n] = outer[n] + model.blocks[number].projection(inner[n - 1][None, None])[0, 0]
        tokens = layer(f"{block}.outer", torch.stack([outer[n] for n in kept]), heads, attn_gate, mlp_gate)
        for n, token in zip(kept, tokens, strict=True):
            outer[n] = token
    return model.heads(torch.stack(outer)[None])[0]


def test_closed_patches_are_no_keys():
    images = torch.randn(4, 3, 32, 32)
    model = half_open(images, depth=3)
    _, attention = model(images, return_attention=True)
    for block, maps in enumerate(attention.outer[1:]):
        kept = torch.nn.functional.pad(model.last_gates.patches[block], (1, 1), value=1.0)
        torch.testing.assert_close(maps.sum(dim=-1), torch.ones(4, 4, 66))
        for index in range(4):
            closed = (kept[index] == 0).nonzero()[:, 0]
            assert 10 < len(closed) < 54
            for token in closed:
                others = maps[index, :, torch.arange(66) != token, token]
                assert (others == 0).all()
                assert (maps[index, :, token, token] == 1).all()
            assert (maps[index][:, kept[index] == 1][:, :, kept[index] == 1] > 0).all()


@pytest.mark.parametrize("closed", ["none", "patches", "heads", "sublayers", "attention", "everything"])
@BOTH
def test_skipping_closed_parts_changes_no_logit(closed, settings):
    images = torch.randn(9, 3, 32, 32)
    model = half_open(images, **settings)
    for block in model.blocks[1:]:
        for name, net in block.nets.items():
            if closed in (name, "everything"):
                torch.nn.init.constant_(net.bias, -1e4)
        if closed == "attention":
            block.nets["sublayers"].bias.data[0] = -1e4
    with torch.no_grad():
        logits = model(images)
        gates = model.last_gates
        torch.testing.assert_close(logits, model(images, return_attention=True)[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(logits[4:5], model(images[4:5]), atol=1e-5, rtol=0)
        assert (model.last_gates.patches == gates.patches[:, 4:5]).all()
        with torch.autocast("cpu", torch.bfloat16):
            assert model(images).isfinite().all()
    assert all((kind.sum() == 0) == (closed in (name, "everything")) for name, kind in gates._asdict().items())


@pytest.mark.parametrize("settings", [{}, OTHER, {"inner_head_width": 5, "outer_head_width": 20}])
def test_saved_macs_are_not_computed(settings, monkeypatch):
    """PyTorch's own count of evaluation, image by image, with all heads open."""
    monkeypatch.setattr(build, "available", lambda *_: False)  # PyTorch doesn't see inside these
    images = torch.randn(8, 3, 32, 32)
    model = half_open(images, **settings)
    for block in model.blocks[1:]:
        torch.nn.init.constant_(block.nets["heads"].bias, 1e4)
    spent = []
    for index in range(len(images)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(images[index : index + 1])
        spent.append(counter.get_total_flops() // 2)
    with torch.no_grad():
        model(images)
    assert (count_macs(model) - model.saved_macs()).tolist() == spent
    assert max(spent) < 0.9 * count_macs(model)
    assert len(set(spent)) == len(spent)


def test_evaluate_reports_the_computed_macs():
    """Over several batches: the mean over all images."""
    images = torch.randint(0, 256, (510, 3, 32, 32), dtype=torch.uint8)
    preprocessing = Preprocessing("x", tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)
    model = half_open(normalize(images, preprocessing.mean, preprocessing.std), depth=2)
    measured = evaluate(model, ImageDataset(images, torch.zeros(510, dtype=torch.long)), preprocessing)
    with torch.no_grad():
        model(normalize(images, preprocessing.mean, preprocessing.std))
    spent = count_macs(model) - model.saved_macs().double().mean().item()
    assert measured["macs"] == pytest.approx(spent, rel=1e-4)
    assert 0.3 < spent / count_macs(model) < 0.95


def test_macs_saved_by_a_closed_head():
    """A head of width 32, on 66 tokens of width 128: queries, keys, values and output, scores and mixture."""
    model = create_model("adavit_nano", depth=2).eval()
    model.blocks[1].nets["heads"].bias.data[2] = -1
    with torch.no_grad():
        model(torch.randn(3, 3, 32, 32))
    assert model.saved_macs().tolist() == [66 * 128 * 32 * 4 + 66 * 66 * 32 * 2] * 3


def test_gates_open_with_probability_sigma_and_have_the_gradient_of_s():
    """ℓ + g₁ − g₂ > 0 with probability σ(ℓ), and g₁ − g₂ = log(u / (1 − u)) for a u between 0 and 1."""
    logits = torch.tensor([-3.0, -0.5, 0.0, 1.0, 4.0]).repeat(200_000, 1).requires_grad_()
    gates = gate(logits, training=True)
    assert set(gates.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(gates.mean(dim=0), logits[0].sigmoid(), atol=5e-3, rtol=0)
    (gradient,) = torch.autograd.grad(gates.sum(), logits)
    u = (torch.arange(100_000) + 0.5)[:, None] / 100_000
    soft = ((logits[0] + (u / (1 - u)).log()) / 5).sigmoid()
    torch.testing.assert_close(gradient.mean(dim=0), (soft * (1 - soft) / 5).mean(dim=0), atol=2e-4, rtol=0)
    assert gate(torch.tensor([-1.0, -1e-3, 0.0, 1e-3]), training=False).tolist() == [0, 0, 0, 1]


def loss_and_logits(objective, images, labels):
    return objective(images, MixedTargets(labels, labels))


def test_budget_by_hand():
    """Open: patches 1/2, heads 7/8, sublayers 1/4."""
    model = create_model("adavit_nano", depth=3, budget=0.4).eval()
    first, second = (block.nets for block in model.blocks[1:])
    first["patches"].bias.data[:] = -1
    second["heads"].bias.data[3] = -1
    first["sublayers"].bias.data[1] = -1
    second["sublayers"].bias.data[:] = -1
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    (loss, logits), (plain, same) = (
        loss_and_logits(goal(model), images, labels) for goal in (BudgetObjective, Objective)
    )
    assert torch.equal(logits, same)
    assert (loss - plain).item() == pytest.approx(2 * (0.1**2 + 0.475 + 0.15), abs=1e-5)


def test_the_budget_has_a_gradient_for_every_gate_network():
    model = create_model("adavit_nano", depth=3).train()
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    torch.manual_seed(1)
    loss, _ = loss_and_logits(BudgetObjective(model), images, labels)
    torch.manual_seed(1)
    plain, _ = loss_and_logits(Objective(model), images, labels)
    nets = [parameter for name, parameter in model.named_parameters() if ".nets." in name]
    gradients = torch.autograd.grad(loss - plain, nets)
    assert len(nets) == 12
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert all((gradient > 0).all() for gradient in gradients if gradient.ndim == 1)  # too many are open


QUICK = Recipe(epochs=3, batch_size=16, lr=2e-3, precision="32-true", train_images=256, test_images=64)
START = Run("digits", "titn_nano", QUICK, model_settings={"depth": 3})


def test_a_run_from_a_trained_titn_closes_gates(tmp_path):
    start = train(START, tmp_path / "start", device="cpu", progress=False)
    one_step = replace(QUICK, epochs=1, train_images=16, lr=0, min_lr=0)
    still = replace(START, model="adavit_nano", recipe=one_step, init_from=START)
    record = train(still, tmp_path / "still", init_from_dir=tmp_path / "start", device="cpu", progress=False)
    assert record.test == pytest.approx(start.test | {"macs": record.macs}, abs=1e-4)
    assert record.test["top1"] > 50

    run = replace(still, recipe=replace(QUICK, epochs=5), loss="budget")
    record = train(run, tmp_path / "run", init_from_dir=tmp_path / "start", device="cpu", progress=False)
    assert record.test["top1"] > 50
    fresh = create_model("adavit_nano", in_channels=1, image_size=(16, 16), depth=3)
    closing = load_model(tmp_path / "run" / WEIGHTS)
    data = load_dataset("digits")
    with torch.no_grad():
        for model in (fresh, closing):
            model.train()(normalize(data.test.images, data.mean, data.std))
    assert [kind.mean().item() for kind in fresh.last_gates] == pytest.approx([0.88] * 3, abs=0.02)  # σ(2)
    patches, heads, sublayers = (kind.mean().item() for kind in closing.last_gates)
    assert patches < 0.85  # slower: their term is the square
    assert [heads, sublayers] == pytest.approx([0.5] * 2, abs=0.1)


def test_patch_threshold():
    """σ(0.4) = 0.599 and σ(0.41) = 0.601; heads and sublayers keep ½."""
    logits = torch.tensor([-0.1, 0.1, 0.4, 0.41])
    assert gate(logits, training=False).tolist() == [0, 1, 1, 1]
    assert gate(logits, training=False, threshold=0.6).tolist() == [0, 0, 0, 1]
    model = create_model("adavit_nano", depth=2, patch_threshold=0.6)
    torch.nn.init.constant_(model.blocks[1].nets["patches"].bias, 0.4)
    model.eval()(torch.randn(2, 3, 32, 32))
    assert [kind.mean().item() for kind in model.last_gates] == [0, 1, 1]
    drawn = gate(torch.zeros(100_000), training=True, threshold=0.6).mean().item()  # σ(noise / τ) > 0.6
    assert drawn == pytest.approx(1 / (1 + (0.6 / 0.4) ** 5), abs=0.005)


def test_invalid_settings():
    with pytest.raises(TITNError, match="the first block has no gates: choose a depth of 2 or more"):
        create_model("adavit_nano", depth=1)
    for setting in ("local_perception", "mlp_convolution"):
        with pytest.raises(TITNError, match=f"a convolution over patches needs: set {setting}=False"):
            create_model("adavit_nano", **{setting: True})
    with pytest.raises(TITNError, match="gates skip inner layers: set inner_layers=True"):
        create_model("adavit_nano", inner_layers=False)
    with pytest.raises(TITNError, match="patch_threshold must be between 0 and 1, not 1"):
        create_model("adavit_nano", patch_threshold=1)
    with pytest.raises(TITNError, match="titn_nano has no gates to close: choose adavit_nano"):
        loss_and_logits(BudgetObjective(create_model("titn_nano")), torch.zeros(2, 3, 32, 32), torch.arange(2))


def test_compiled_blocks_give_the_same(compiler):
    """Up to PyTorch's code generator, which would take twenty seconds for this block."""
    model, images = create_model("adavit_nano", depth=2, image_size=(16, 16)).train(), torch.randn(2, 3, 16, 16)
    nets = model.blocks[1].nets.values()

    def outputs():
        logits = model(images).class_logits
        return logits, *torch.autograd.grad(logits.square().sum(), list(model.blocks[1].parameters()))

    for net in nets:
        torch.nn.init.constant_(net.bias, 40.0)  # open, whatever is drawn
    eager = outputs()
    model.blocks[1].compile(dynamic=False, backend="aot_eager_decomp_partition")
    for compiled, expected in zip(outputs(), eager, strict=True):
        torch.testing.assert_close(compiled, expected, atol=1e-4, rtol=1e-4)
    assert compiler["stats"]["unique_graphs"] == 1
    assert not compiler["graph_break"]
    for net in nets:
        torch.nn.init.constant_(net.bias, 0.0)
    drawn = [model(images) and model.last_gates.patches for _ in range(2)]
    assert 0 < drawn[0].mean() < 1
    assert (drawn[0] != drawn[1]).any()


def test_a_copy_has_no_gates_before_its_first_forward_pass():
    model = create_model("adavit_nano", depth=2)
    with pytest.raises(TITNError, match="there are no gates before the first forward pass"):
        _ = model.last_gates
    model.train()(torch.randn(2, 3, 32, 32))
    assert model.last_gates.patches.shape == (1, 2, 64)
    again = copy.deepcopy(model)
    with pytest.raises(TITNError, match="there are no gates before the first forward pass"):
        _ = again.last_gates
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(images), model.eval()(images))


@pytest.mark.parametrize("training", [False, True])
def test_bfloat16(training):
    model, images = create_model("adavit_nano", depth=2).train(training), torch.randn(2, 3, 32, 32)
    torch.manual_seed(0)
    expected = model(images)
    torch.manual_seed(0)
    logits = model.bfloat16()(images.bfloat16())
    for ours, exact in zip(logits, expected, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), exact, atol=0.05, rtol=0)


@pytest.mark.usefixtures("compiler")
def test_an_export_computes_everything_and_has_the_same_logits():
    model, images = create_model("adavit_nano", depth=2).eval(), torch.randn(3, 3, 32, 32)
    for net in model.blocks[1].nets.values():
        torch.nn.init.normal_(net.weight)
        torch.nn.init.zeros_(net.bias)  # about half of the gates are closed
    logits = model(images)
    assert 0 < model.last_gates.patches.mean() < 1
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), logits, atol=1e-5, rtol=1e-4)
    each = torch.func.vmap(lambda image: model(image[None])[0])(images)
    torch.testing.assert_close(each, logits, atol=1e-5, rtol=1e-4)


def test_position_embeddings_are_interpolated(tmp_path):
    save_model(create_model("adavit_nano", depth=2), tmp_path / "m.safetensors")
    larger = load_model(tmp_path / "m.safetensors", image_size=(48, 64))
    assert larger(torch.zeros(1, 3, 48, 64)).shape == (1, 10)
    assert larger.last_gates.patches.shape == (1, 1, 192)


def test_shapes_gradients_and_files(tmp_path):
    contract.check_shapes("adavit_nano", depth=2)
    contract.check_gradients("adavit_nano")
    contract.check_file("adavit_nano", tmp_path, depth=2)


def test_learns():
    contract.check_learns("adavit_nano", bound=1.0, depth=3)
