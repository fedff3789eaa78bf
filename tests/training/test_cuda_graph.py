"""The training step as a CUDA graph: what can be checked without a GPU, and at the end what can't."""

import importlib
import logging
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from titn_lib import create_model, load_model
from titn_lib.data.datasets import load_dataset
from titn_lib.data.mixing import MixedTargets
from titn_lib.data.transforms import Preprocessing
from titn_lib.errors import TrainingInterrupted
from titn_lib.kernels import dispatch
from titn_lib.losses.distillation import mixed_cross_entropy
from titn_lib.losses.objective import Objective
from titn_lib.losses.registry import OBJECTIVES, make_objective
from titn_lib.models.inference import predict
from titn_lib.training import cuda_graph, trainer
from titn_lib.training.config import Recipe, Run
from titn_lib.training.cuda_graph import WARM_UP_STEPS, GraphedPredict, GraphedStep, StepInputs, graphed_step, why_not
from titn_lib.training.distributed import start_fabric
from titn_lib.training.optim import compile_blocks, compiling_failed
from titn_lib.training.records import WEIGHTS
from titn_lib.training.run import train
from titn_lib.training.trainer import Trainer

RATE = 2**-8  # the same number in float32, which the graph's learning rate has
QUICK = Recipe(epochs=2, batch_size=8, lr=RATE, min_lr=RATE, precision="32-true", train_images=32, test_images=10)
STUDENT = Run("digits", "titn_nano", QUICK, model_settings={"depth": 2, "drop_path": 0.1, "pixel_embedding": "stem"})
ALL_AT_ONCE = {"cutmix": 1.0, "mixup": 1.0, "clip_norm": 0.5, "ema_decay": 0.9, "label_smoothing": 0.1}
TEACHER_LOSSES = ["hard", "soft", "dkd", "hard+feature", "soft+manifold"]
CASES = [
    ("cross_entropy", {}),
    ("cross_entropy", {"optimizer": "sgd", "cutmix": 1.0}),
    ("cross_entropy", {"optimizer": "adamw", "mixup": 0.8}),
    ("contrastive", {"augmentation": "shift"}),
    ("linear_probe", {}),
    *[(loss, {"optimizer": "sgd", **ALL_AT_ONCE}) for loss in TEACHER_LOSSES],
    ("dkd", {"optimizer": "adamw", **ALL_AT_ONCE}),
]


def run_with(loss, changes):
    teacher = "vgg7_bn.digits" if loss in TEACHER_LOSSES else None
    return replace(STUDENT, loss=loss, teacher=teacher, recipe=replace(QUICK, **changes))


class Repeated(GraphedStep):
    """In place of recorded kernels, the replay computes the step anew, from the graph's inputs."""

    def __init__(self, optimizer):
        self.optimizer, self.graph, self.direct_steps, self.inputs = optimizer, None, WARM_UP_STEPS, None

    def run_directly(self, step, *arguments):
        step(*arguments)

    def capture(self, step, inputs):
        self.graph = SimpleNamespace(replay=lambda: step(*inputs))


def stop_after(steps: int, monkeypatch) -> list[int]:
    """The first session stops after so many steps. Returns a list that grows by one with every step of all sessions."""
    step, count = Trainer.train_step, []

    def step_and_count(self, order):
        step(self, order)
        count.append(1)

    monkeypatch.setattr(trainer, "sync_stop", lambda *_: "the test" if len(count) == steps else "")
    monkeypatch.setattr(Trainer, "train_step", step_and_count)
    return count


@pytest.mark.parametrize(("loss", "changes"), CASES)
def test_inputs_at_fixed_addresses_give_the_same_weights(tmp_path, monkeypatch, loss, changes):
    """Bit for bit, also after a break; λ and the learning rate are tensors."""
    run = run_with(loss, changes)
    plain = train(run, tmp_path / "plain", device="cpu", progress=False)
    made = []
    monkeypatch.setattr(trainer, "graphed_step", lambda _, optimizer, __: made.append(Repeated(optimizer)) or made[-1])
    count = stop_after(3, monkeypatch)
    with pytest.raises(TrainingInterrupted):
        train(run, tmp_path / "graphed", device="cpu", progress=False)
    graphed = train(run, tmp_path / "graphed", device="cpu", progress=False)
    assert (len(count), len(made)) == (8, 2)
    assert [plain.hardware["cuda_graph"], graphed.hardware["cuda_graph"]] == [False, True]
    assert graphed.history == plain.history
    one, other = (load_file(tmp_path / name / WEIGHTS) for name in ("plain", "graphed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_lambda_may_be_a_tensor(lam):
    logits = torch.randn(6, 5)
    a, b = torch.randint(5, (2, 6))
    number = MixedTargets(a, b, lam)
    tensor = MixedTargets(a, b, torch.tensor(lam, dtype=torch.float64))
    assert torch.equal(tensor.dominant, number.dominant)
    loss = mixed_cross_entropy(logits, tensor, 0.1)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, mixed_cross_entropy(logits, number, 0.1))


# --- no step waits for the GPU


class CountOperations(TorchDispatchMode):
    """Counts operations on "meta" tensors, and skips the optimizers' fused updates, which have no "meta" version."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        result = None if name.startswith("_fused") else func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operations.append(name)
        return result


def operations_of_a_step(tmp_path, monkeypatch, loss, changes):
    """The operations of a step without values: all its tensors are on the device "meta".

    Where a step reads a value, or copies a tensor to the CPU, PyTorch raises an error, as a CUDA graph would.
    """
    optimizers = importlib.import_module("torch.optim.optimizer")
    monkeypatch.setattr(optimizers, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    monkeypatch.setattr(dispatch, "can_use_fused_layer", lambda *_: False)  # as on a GPU
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it doesn't know "meta"
    run = run_with(loss, changes)
    data, teacher = load_dataset("digits"), load_model(run.teacher) if run.teacher else None
    made = Trainer(run, tmp_path, data, teacher, start_fabric("32-true", "cpu"))
    images, targets = made.batch(torch.arange(256), trainer.np.random.default_rng(0))
    made.objective.to("meta").train()
    made.optimizer = trainer.make_optimizer(made.objective, run.recipe)
    if made.teacher is not None:
        made.teacher.to("meta")
    if made.ema is not None:
        made.ema.module.to("meta")
        made.ema.n_averaged += 1  # it stays on the CPU
    made.sums = made.sums.to("meta")
    inputs = StepInputs.like(images.to("meta"), MixedTargets(targets.a.to("meta"), targets.b.to("meta")))
    with CountOperations() as counted:
        made.step(*inputs)
        counted.operations.clear()  # the first step creates the optimizer's state
        made.step(*inputs)
    assert all(p.grad is None for p in made.objective.parameters())
    return counted.operations


@pytest.mark.parametrize(("loss", "changes"), CASES)
def test_no_step_waits_for_the_gpu(tmp_path, monkeypatch, loss, changes):
    operations = operations_of_a_step(tmp_path, monkeypatch, loss, changes)
    print(f"{loss}, {changes}: {len(operations)} operations")
    assert 150 < len(operations) < 2000
    assert sum(name.startswith("_fused") for name in operations) == (1 if changes.get("optimizer") == "sgd" else 2)


def test_a_step_that_waits_is_noticed(tmp_path, monkeypatch):
    forward = Objective.forward
    for wait in (lambda loss: loss.item(), lambda loss: loss.cpu(), lambda loss: loss.nonzero(), bool):
        monkeypatch.setattr(
            Objective, "forward", lambda *given, wait=wait: (lambda out: wait(out[0]) and out)(forward(*given))
        )
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            operations_of_a_step(tmp_path, monkeypatch, "cross_entropy", {})


# --- without a graph


class OfMyOwn(Objective):
    """Doesn't say that it is capturable."""


def fabric_with(device="cuda", world_size=1, precision="bf16-mixed"):
    strategy = SimpleNamespace(precision=SimpleNamespace(precision=precision))
    attributes = {"device": torch.device(device, 0), "world_size": world_size, "strategy": strategy}
    return object.__new__(type("Simulated", (Fabric,), attributes))


@pytest.mark.parametrize(
    ("changes", "objective", "says"),
    [
        ({"device": "cpu"}, Objective, "there is no GPU"),
        ({"world_size": 2}, Objective, "several processes share each batch"),
        ({"precision": "16-mixed"}, Objective, "gradient scaling for float16"),
        ({}, OBJECTIVES["relabeling"], "Relabeling isn't CAPTURABLE"),
        ({}, OfMyOwn, "OfMyOwn isn't CAPTURABLE"),
        ({}, Objective, "too old"),
        ({}, OBJECTIVES["contrastive"], ""),
    ],
)
def test_why_there_is_no_graph(monkeypatch, caplog, changes, objective, says):
    capability = (6, 1) if says == "too old" else (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    objective, fabric = object.__new__(objective), fabric_with(**changes)
    if not says:
        assert why_not(objective, fabric) == ""
        return
    with caplog.at_level(logging.INFO):
        assert graphed_step(objective, torch.optim.SGD([torch.zeros(1)]), fabric) is None
    (line,) = caplog.messages
    assert line.startswith("the training step runs without a CUDA graph: ")
    assert says in line


@pytest.fixture
def simulated(monkeypatch):
    """`torch.cuda` without a GPU: what GraphedStep asks of it is noted."""
    calls, mode = [], []

    @contextmanager
    def on_stream(stream):
        calls.append("stream")
        yield

    @contextmanager
    def capture(graph, stream):
        calls.append("capture")
        yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "Stream": lambda device: stream,
        "stream": on_stream,
        "current_stream": lambda: stream,
        "set_stream": lambda stream: calls.append("stream restored"),
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": mode.append,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: calls.append("replay")),
        "graph": capture,
    }.items():
        monkeypatch.setattr(cuda_graph.torch.cuda, name, value)
    return calls, mode


def make_steps(step, number):
    """Run GraphedStep with an AdamW optimizer, and images of value 0, 1, …"""
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    graphed, labels = GraphedStep(optimizer, torch.device("cpu")), torch.zeros(2, dtype=torch.long)
    for index in range(number):
        images = torch.full((2, 1, 1, 1), float(index))
        graphed.run(lambda *given: step(optimizer, *given), images, MixedTargets(labels, labels, index / 10), index / 4)
        assert [group["lr"] for group in optimizer.param_groups] in ([index / 4], [1e-3])
        assert not optimizer.param_groups[0]["capturable"]
    return graphed


def test_a_graph_is_captured_after_a_few_steps(simulated):
    calls, mode = simulated

    def step(optimizer, images, targets, lr):
        calls.append(("capturable", optimizer.param_groups[0]["capturable"]))
        assert isinstance(targets.lam, torch.Tensor)  # in direct steps, too: torch.compile would compile every number

    graphed = make_steps(step, WARM_UP_STEPS + 2)
    direct = ["stream", ("capturable", False)]
    assert calls == [*direct * WARM_UP_STEPS, "capture", ("capturable", True), "replay", "replay"]
    assert mode == ["warn", 0]
    inputs = graphed.inputs
    assert (inputs.images.unique().item(), inputs.targets.lam.item(), inputs.lr.item()) == (4.0, 0.4, 1.0)


def test_after_a_replay_each_group_shows_its_own_learning_rate(simulated):
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr_scale": scale} for scale in (1.0, 0.5)]
    optimizer, labels = torch.optim.SGD(groups), torch.zeros(2, dtype=torch.long)
    graphed = GraphedStep(optimizer, torch.device("cpu"))
    for _ in range(WARM_UP_STEPS + 1):
        graphed.run(lambda *_: None, torch.zeros(2, 1, 1, 1), MixedTargets(labels, labels), 0.2)
    assert graphed.graph is not None
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.1]


def test_a_step_that_waits_is_not_captured(simulated, caplog):
    calls, _ = simulated

    def step(*_):
        cuda_graph.warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    with pytest.warns(UserWarning, match="synchronizing"):
        graphed = make_steps(step, 6)
    assert graphed.graph is None
    assert calls == ["stream"] * 6
    assert caplog.messages == ["the training step runs without a CUDA graph: it waits for the GPU"]


def test_a_capture_that_fails_leaves_plain_steps(simulated, caplog):
    calls, _ = simulated

    def step(optimizer, images, targets, lr):
        if optimizer.param_groups[0]["capturable"]:
            optimizer.param_groups[0]["params"][0].grad = torch.ones(1)
            raise RuntimeError("operation not permitted\nmany lines of help")
        assert optimizer.param_groups[0]["params"][0].grad is None
        calls.append(images.unique().item())

    assert make_steps(step, 5).graph is None
    assert [call for call in calls if isinstance(call, float)] == [0, 1, 2, 3, 4]
    assert calls.count("capture") == calls.count("stream restored") == 1
    assert caplog.messages == ["the training step runs without a CUDA graph: operation not permitted"]


# --- evaluation


def make_predict(network, device="cuda"):
    about = Preprocessing("digits", tuple("0123456789"), (0.5,), (0.25,))
    return GraphedPredict(network, about, torch.device(device)), partial(predict, network, preprocessing=about)


class CountCasts(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.casts = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.casts += func.overloadpacket.__name__ == "_to_copy"
        return func(*args, **(kwargs or {}))


def test_evaluation_is_captured_once_and_follows_the_weights(simulated, monkeypatch):
    """Seven images in batches of four; the replay computes anew what was captured, into the same tensor."""
    calls, _ = simulated
    network, counted = create_model("vgg7_bn", in_channels=1, image_size=8), CountCasts()
    graphed, plain = make_predict(network)
    images = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8)
    monkeypatch.setattr(cuda_graph, "EVALUATION_BATCH", 4)
    replay = lambda: graphed.logits.copy_(plain(graphed.images))  # noqa: E731
    monkeypatch.setattr(cuda_graph.torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=replay))

    @contextmanager
    def capture(graph, stream):
        calls.append("capture")
        with counted:
            yield

    monkeypatch.setattr(cuda_graph.torch.cuda, "graph", capture)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            got = graphed(images)
            expected = torch.cat([plain(images[:4]), plain(torch.cat([images[4:], images[3:4]]))[:3]])
        assert torch.equal(got, expected)
        next(network.requires_grad_(False).parameters()).mul_(2)
    assert calls == ["stream", "capture"]
    assert counted.casts > sum(p.ndim > 1 for p in network.parameters())  # the weights', too: they are cast anew


def test_evaluation_that_cannot_be_captured_runs_directly(simulated, monkeypatch, caplog):
    calls, _ = simulated
    network = create_model("vgg7_bn", in_channels=1, image_size=8)
    images = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8)

    @contextmanager
    def capture(graph, stream):
        raise RuntimeError("operation not permitted\nmany lines of help")
        yield

    monkeypatch.setattr(cuda_graph.torch.cuda, "graph", capture)
    graphed, plain = make_predict(network)
    assert all(torch.equal(graphed(images), plain(images)) for _ in range(2))
    assert caplog.messages == ["evaluation runs without a CUDA graph: operation not permitted"]
    assert calls == ["stream", "stream restored"]
    on_cpu, _ = make_predict(network, "cpu")
    assert torch.equal(on_cpu(images), plain(images))
    assert on_cpu.graph is None


# --- with a GPU


@pytest.mark.gpu
@pytest.mark.parametrize(("loss", "changes"), CASES)
def test_a_graph_trains_as_the_plain_steps_do(tmp_path, monkeypatch, loss, changes):
    """From the second session of a run that was stopped in the middle, too."""
    run = run_with(loss, {**changes, "batch_size": 32, "train_images": 256, "test_images": 32})
    graphed = train(run, tmp_path / "graphed", device="cuda", progress=False)
    stop_after(6, monkeypatch)
    with pytest.raises(TrainingInterrupted):
        train(run, tmp_path / "resumed", device="cuda", progress=False)
    resumed = train(run, tmp_path / "resumed", device="cuda", progress=False)
    monkeypatch.setattr(trainer, "graphed_step", lambda *_: None)
    plain = train(run, tmp_path / "plain", device="cuda", progress=False)
    assert [record.hardware["cuda_graph"] for record in (graphed, resumed, plain)] == [True, True, False]
    for record in (graphed, resumed):
        for point, expected in zip(record.history, plain.history, strict=True):
            assert point["lr"] == expected["lr"]
            assert point["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-2)
            assert point["validation_loss"] == pytest.approx(expected["validation_loss"], rel=5e-2)
    if changes.get("optimizer") == "sgd":  # AdamW turns rounding errors of vanishing gradients into whole steps
        weights = load_file(tmp_path / "plain" / WEIGHTS)
        for name in ("graphed", "resumed"):
            for key, value in load_file(tmp_path / name / WEIGHTS).items():
                torch.testing.assert_close(value, weights[key], atol=1e-3, rtol=1e-2, msg=f"{name}: {key}")


@pytest.mark.gpu
def test_a_compiled_objective_has_the_same_gradients():
    """In one piece, with small kernels combined, as in a long run."""
    torch.manual_seed(0)
    objective = make_objective(create_model("titn_paper", depth=2), "cross_entropy").cuda()
    images, labels = torch.randn(256, 3, 32, 32, device="cuda"), torch.randint(10, (256,), device="cuda")
    targets = MixedTargets(labels, labels.flip(0), torch.tensor(0.3, dtype=torch.float64, device="cuda"))
    gradients = []
    for compiled in (False, True):
        if compiled:
            assert compile_blocks(objective.network, 10**8, torch.device("cuda"), whole=objective)
        with torch.autocast("cuda", torch.bfloat16):
            loss, _ = objective(images, targets)
        gradients.append(torch.autograd.grad(loss, list(objective.parameters())))
    assert not compiling_failed()
    for plain, other in zip(*gradients, strict=True):
        assert (other - plain).norm() <= 5e-2 * plain.norm() + 1e-6


@pytest.mark.gpu
def test_a_graphed_evaluation_follows_the_weights():
    network = create_model("titn_nano", in_channels=1, image_size=8, num_classes=10).cuda()
    graphed, plain = make_predict(network)
    images = torch.randint(0, 256, (3_100, 1, 8, 8), dtype=torch.uint8, device="cuda")
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            torch.testing.assert_close(graphed(images), plain(images), atol=2e-2, rtol=2e-2)
        assert graphed.graph is not None
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.1)
