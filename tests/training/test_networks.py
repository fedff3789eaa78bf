"""Teachers, made ready for a run."""

import copy
from dataclasses import replace

import pytest
import torch

from titn_lib import TITNError, create_model, load_model
from titn_lib.data import load_dataset, normalize
from titn_lib.data.mixing import MixedTargets
from titn_lib.losses.distillation import freeze, teacher_forward
from titn_lib.losses.objective import Objective
from titn_lib.training import Recipe, make_optimizer, make_run, train
from titn_lib.training.config import Run
from titn_lib.training.distributed import start_fabric
from titn_lib.training.evaluation import add_metrics
from titn_lib.training.networks import (
    compile_on_gpu,
    compile_teacher,
    data_kwargs,
    freeze_start,
    layers_below_head,
    load_initial_weights,
    make_network,
    prepare_teacher,
)
from titn_lib.training.optim import set_learning_rate


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_prepared_teacher_is_a_frozen_copy(precision):
    own = load_model("vgg7_bn.digits").train()
    before = copy.deepcopy(own.state_dict())
    fabric = start_fabric(precision, "cpu")
    teacher = prepare_teacher(own, load_dataset("digits"), fabric)
    assert own.training
    assert all(p.requires_grad for p in own.parameters())
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters())
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    assert {p.dtype for p in teacher.parameters()} == {dtype}
    images = torch.randn(16, 1, 16, 16)
    with fabric.autocast():
        output = teacher_forward(teacher, images)
        wanted = teacher_forward(own.eval(), images)
    assert len(output.maps) == len(wanted.maps)
    bound = 1e-4 if dtype == torch.float32 else 2e-2
    assert (output.logits - wanted.logits).abs().max() < bound * wanted.logits.abs().max()


def test_weights_cast_once_are_those_that_autocast_casts():
    own, data, images = load_model("vgg7_bn.digits"), load_dataset("digits"), torch.randn(16, 1, 16, 16)
    rounded = prepare_teacher(own, data, start_fabric("bf16-mixed", "cpu"))
    whole = prepare_teacher(own, data, start_fabric("32-true", "cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher_forward(rounded, images).logits, teacher_forward(whole, images).logits)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("device", "convolutions"), [("cpu", []), ("cuda", [6])])
def test_the_teacher_is_compiled_on_a_gpu_only(device, convolutions, monkeypatch):
    """As one graph of six convolutions."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(sum("conv2d" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr("titn_lib.training.networks.compile_or_run_eagerly", backend)
    teacher = freeze(create_model("vgg7_bn"))
    compile_teacher(teacher, torch.device(device))
    teacher_forward(teacher, torch.randn(2, 3, 32, 32))
    assert graphs == convolutions


@pytest.mark.usefixtures("compiler")
def test_metrics_compiled_for_a_gpu_are_the_same(monkeypatch):
    """In one graph, in which λ is a tensor, as in a CUDA graph."""
    graphs = []
    monkeypatch.setattr(
        "titn_lib.training.networks.compile_or_run_eagerly", lambda graph, _: graphs.append(graph) or graph.forward
    )
    assert compile_on_gpu(add_metrics, torch.device("cpu")) is add_metrics
    logits, loss = torch.eye(4)[[0, 1, 2, 2]], torch.tensor(0.5)
    targets = MixedTargets(torch.tensor([0, 1, 1, 2]), torch.tensor([3, 3, 3, 3]), torch.tensor(0.75))
    sums = torch.tensor([1.0, 100.0])
    compile_on_gpu(add_metrics, torch.device("cuda"))(sums, loss, logits, targets)
    assert sums.tolist() == [1.5, 175]
    assert len(graphs) == 1


@pytest.mark.gpu
def test_a_compiled_teacher_on_a_gpu():
    fabric, data = start_fabric("bf16-mixed", "cuda"), load_dataset("digits")
    own = freeze(create_model("vgg7_bn", **data_kwargs(data)))
    images = torch.randn(64, *(own.config.in_channels, *own.config.image_size), device="cuda")
    teacher = prepare_teacher(own, data, fabric)
    compile_teacher(teacher, fabric.device)
    with fabric.autocast():
        output = teacher_forward(teacher, images)
        wanted = teacher_forward(fabric.to_device(own), images)
    assert len(output.maps) == len(wanted.maps)
    assert (output.logits - wanted.logits).abs().max() < 2e-2 * wanted.logits.abs().max()


# --- fine-tuning

SMALL = {"epochs": 1, "train_images": 128, "test_images": 64, "batch_size": 32, "loss": "cross_entropy"}


def test_a_run_starts_from_pretrained_weights_for_other_classes(tmp_path):
    """Fresh heads, the start's normalization and settings, interpolated positions; all else as in the start."""
    images = load_dataset("digits")
    digits = replace(images, classes=tuple("abcdefghij"), mean=(0.9,), std=(0.9,))
    run = make_run("digits", init_from="titn_nano.digits", image_size=24, lr=0.0, min_lr=0.0, **SMALL)
    train(run, tmp_path, data=digits, device="cpu", progress=False)
    start, tuned = load_model("titn_nano.digits", image_size=24), load_model(tmp_path / "model.safetensors")
    assert (tuned.preprocessing.mean, tuned.preprocessing.std) == (start.preprocessing.mean, start.preprocessing.std)
    assert tuned.preprocessing.classes == digits.classes
    before, after = start.state_dict(), tuned.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("heads.") and "_head.1." in name}
    torch.manual_seed(run.seed)
    assert torch.equal(create_model("titn_nano", in_channels=1, image_size=24).heads.class_head[1].weight,
                       after["heads.class_head.1.weight"])  # fmt: skip


def test_the_start_brings_its_settings_and_a_tenth_of_the_learning_rate():
    run, scratch = make_run("cifar10", init_from="titn_mini-local.cifar10"), make_run("cifar10", "titn_mini")
    assert (run.model, run.model_settings) == ("titn_mini", {"local_perception": True})
    assert run.recipe.lr == scratch.recipe.lr / 10
    assert make_run("cifar10", init_from="titn_mini.cifar10", lr=0.5).recipe.lr == 0.5
    with pytest.raises(TITNError, match="3 channels, and these have 1"):
        load_initial_weights(create_model("titn_mini", in_channels=1), load_model("titn_mini.cifar10"))


def test_whitening_is_fitted_to_training_images():
    data, recipe = load_dataset("digits"), Recipe()
    torch.manual_seed(0)
    network = make_network(Run("digits", "airbench", recipe), data, None)
    images = normalize(data.train.images, data.mean, data.std)
    outputs = torch.nn.functional.conv2d(images, network.stages[0][0].weight).transpose(0, 1).flatten(1)[:4]
    torch.testing.assert_close(outputs @ outputs.T / outputs.shape[1], torch.eye(4), atol=0.05, rtol=0)
    again = make_network(Run("digits", "airbench", recipe), data, network)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_a_frozen_start_trains_the_heads_only(tmp_path):
    run = make_run("digits", init_from="titn_nano.digits", layer_decay=0.0, **SMALL)
    record = train(run, tmp_path, device="cpu", progress=False)
    start, tuned = load_model("titn_nano.digits"), load_model(tmp_path / "model.safetensors")
    before, after = start.state_dict(), tuned.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("heads.")}
    assert record.parameters == sum(p.numel() for p in start.parameters())


def test_frozen_batch_normalization_keeps_its_statistics():
    network = load_model("titn_mini.cifar10")
    freeze_start(network)
    before = {name: value.clone() for name, value in network.named_buffers()}
    objective = Objective(network, "cross_entropy").train()
    objective.forward_heads(torch.randn(4, 3, 32, 32) + 9)
    assert network.heads.training
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())


def test_batch_normalization_with_a_fixed_scale_is_not_frozen():
    """Airbench's has no scale to learn, but shifts, and so its statistics follow the images."""
    network = create_model("airbench")
    Objective(network, "cross_entropy").train().forward_heads(torch.randn(4, 3, 32, 32) + 9)
    assert all(value.abs().sum() > 0 for name, value in network.named_buffers() if name.endswith("mean"))
    freeze_start(network)
    assert not Objective(network, "cross_entropy").train().network.stages[1][2].training


@pytest.mark.parametrize("model", ["mvt_nano", "titn_nano", "vgg7_bn"])
def test_only_the_classifiers_are_heads(model):
    """A block may have modules called `heads`."""
    layers = layers_below_head(create_model(model))
    starts = {name.split(".")[0] for name, layer in layers.items() if layer == 0}
    assert starts
    assert starts <= {"head", "heads"}


def test_layer_decay_multiplies_learning_rates():
    network = create_model("titn_nano", depth=3)
    layers = layers_below_head(network)
    assert (layers["heads.class_head.1.weight"], layers["blocks.2.inner.attn.qkv.weight"]) == (0, 1)
    assert (layers["blocks.0.inner.attn.qkv.weight"], layers["pixel_embedding.pos_embed"]) == (3, 4)
    for kind in ("sgd", "adamw"):
        optimizer = make_optimizer(network, Recipe(optimizer=kind, layer_decay=0.5), layers=layers)
        set_learning_rate(optimizer, 1.0)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert all(rates[id(p)] == 0.5 ** layers[name] for name, p in network.named_parameters())
        assert optimizer.param_groups[0]["lr"] == 1.0
    with pytest.raises(TITNError, match="give init_from"):
        make_run("digits", layer_decay=0.5)
    with pytest.raises(TITNError, match="between 0 and 1"):
        Recipe(layer_decay=1.5)
