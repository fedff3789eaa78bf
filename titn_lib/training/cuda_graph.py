"""The training step as one CUDA graph, and evaluation as another.

A step launches hundreds to thousands of kernels, and launching them from Python takes longer than running them. A CUDA
graph records them once. Each later step launches the whole recording, a replay.

A replay runs the recorded kernels on the recorded addresses. So everything that differs between steps is a tensor that
is overwritten before the replay: images, labels, λ and the learning rate. Random numbers differ by themselves, because
a replay starts from the seed that `torch.manual_seed` set last.
"""

import gc
import logging
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor

from titn_lib.data.image_ops import UInt8Images
from titn_lib.data.mixing import MixedTargets
from titn_lib.data.transforms import Images, Preprocessing
from titn_lib.losses.objective import Objective
from titn_lib.models.base import Classifier
from titn_lib.models.inference import predict
from titn_lib.torch_compat import copy_all
from titn_lib.training.optim import set_learning_rate

WARM_UP_STEPS = 3  # they compile, choose algorithms and create the optimizer's state, none of which a graph can record
NOT_CAPTURED = "%s runs without a CUDA graph: %s"
EVALUATION_BATCH = 2_000  # images
log = logging.getLogger(__name__)

Step = Callable[[Images, MixedTargets, float | Tensor], None]  # one training step, with this learning rate


class StepInputs(NamedTuple):
    """The arguments of a training step, in tensors whose addresses stay the same."""

    images: Images
    targets: MixedTargets
    lr: Float[Tensor, ""]

    @classmethod
    def like(cls, images: Images, targets: MixedTargets) -> "StepInputs":
        """Tensors of the same shapes on the same device. λ has double precision, as a Python number."""
        lam = torch.ones((), dtype=torch.float64, device=images.device)
        targets = MixedTargets(targets.a.clone(), targets.b.clone(), lam)
        return cls(images.clone(), targets, torch.zeros((), device=images.device))

    def fill(self, images: Images, targets: MixedTargets, lr: float) -> None:
        """Overwrite them with the values of the next step."""
        self.images.copy_(images)
        copy_all([self.targets.a, self.targets.b], [targets.a, targets.b])
        self.targets.lam.fill_(targets.lam)  # type: ignore[union-attr]
        self.lr.fill_(lr)


def why_not(objective: Objective, fabric: Fabric) -> str:
    """The reason why a training step can't be a CUDA graph, or ""."""
    if fabric.device.type != "cuda":
        return "there is no GPU"
    if fabric.world_size > 1:
        return "several processes share each batch"
    if fabric.strategy.precision.precision == "16-mixed":
        return "gradient scaling for float16 decides on the host whether to update the weights"
    if torch.cuda.get_device_capability(fabric.device) < (7, 0):
        return "the GPU is too old (compute capability below 7.0)"
    if not objective.capturable():
        return f"{type(objective).__name__} isn't CAPTURABLE"
    return ""


def graphed_step(objective: Objective, optimizer: torch.optim.Optimizer, fabric: Fabric) -> "GraphedStep | None":
    """A `GraphedStep` for a run, or None where a CUDA graph isn't possible; then the log says why."""
    if reason := why_not(objective, fabric):
        log.info(NOT_CAPTURED, "the training step", reason)
        return None
    return GraphedStep(optimizer, fabric.device)


class GraphedStep:
    """Runs training steps: the first `WARM_UP_STEPS` directly, all others as replays of a CUDA graph.

    If the graph can't be captured, all steps run directly, and the log says why.

    Args:
        optimizer: the one that the steps use. After each step, its `param_groups` show the learning rate as a number.
        device: the GPU.

    Attributes:
        graph: the captured graph, or None.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device):
        self.optimizer = optimizer
        self.stream = torch.cuda.Stream(device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: StepInputs | None = None  # also of direct steps: compiled code is for λ as a tensor
        self.direct_steps: float = WARM_UP_STEPS  # still to run before the capture

    def run(self, step: Step, images: Images, targets: MixedTargets, lr: float) -> None:
        """Run one step.

        Args:
            step: always the same function. What it reads and writes beside its arguments must stay at one address.
        """
        if self.inputs is None:
            self.inputs = StepInputs.like(images, targets)
        self.inputs.fill(images, targets, lr)
        if self.graph is None and not self.direct_steps:
            self.capture(step, self.inputs)
        if self.graph is None:
            self.direct_steps -= 1
            self.run_directly(step, self.inputs.images, self.inputs.targets, lr)
            return
        self.graph.replay()
        set_learning_rate(self.optimizer, lr)

    def run_directly(self, step: Step, images: Images, targets: MixedTargets, lr: float) -> None:
        """Run a step on the stream of the capture, as PyTorch's notes on CUDA graphs ask for.

        The last step before the capture also looks for operations that wait for the GPU, which no graph can record.
        """
        watched, before = not self.direct_steps, torch.cuda.get_sync_debug_mode()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), warnings.catch_warnings(record=watched) as caught:
            try:
                if watched:
                    warnings.simplefilter("always")
                    torch.cuda.set_sync_debug_mode("warn")
                step(images, targets, lr)
            finally:
                if watched:
                    torch.cuda.set_sync_debug_mode(before)
        torch.cuda.current_stream().wait_stream(self.stream)
        if any("synchronizing CUDA operation" in str(warning.message) for warning in caught or ()):
            self.give_up("it waits for the GPU")

    def capture(self, step: Step, inputs: StepInputs) -> None:
        """Record the step. Nothing is computed."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        gc.collect()  # now, because nothing on the GPU can be freed during the capture
        adam = [group for group in self.optimizer.param_groups if "capturable" in group]
        try:
            for group in adam:
                group["capturable"] = True
            with torch.cuda.graph(graph, stream=self.stream):
                step(*inputs)
            self.graph = graph
        except RuntimeError as problem:
            torch.cuda.set_stream(stream)
            self.optimizer.zero_grad()  # the gradients' memory belonged to the graph
            cause = problem.__context__ or problem  # that the capture failed is less helpful than why
            self.give_up(str(cause).partition("\n")[0])
        finally:
            for group in adam:
                group["capturable"] = False

    def give_up(self, reason: str) -> None:
        """Run all further steps directly."""
        self.direct_steps = float("inf")
        log.warning(NOT_CAPTURED, "the training step", reason)


class GraphedPredict:
    """`predict` for one network, as replays of a CUDA graph for batches of one shape; the last batch is filled up.

    The graph reads the network's weights at their addresses, so it follows their training. Where there is no GPU, or
    the graph can't be captured, it is `predict` itself, and the log says why.
    """

    def __init__(self, network: Classifier, preprocessing: Preprocessing, device: torch.device):
        self.network, self.preprocessing = network, preprocessing
        self.graph: torch.cuda.CUDAGraph | None = None
        self.possible = device.type == "cuda" and not network.adaptive
        self.device = device

    def __call__(self, images: UInt8Images) -> Float[Tensor, "image classes"]:
        if self.possible and self.graph is None:
            self.capture(images)
        if self.graph is None:
            return predict(self.network, images, self.preprocessing)
        parts = []
        for part in images.split(len(self.images)):
            self.images[: len(part)].copy_(part)
            self.graph.replay()
            parts.append(self.logits[: len(part)].clone())
        return torch.cat(parts)

    def capture(self, images: UInt8Images) -> None:
        """Run once directly, and then record.

        Autocast keeps the weights that it has cast until it ends. A recording that used them would never see new ones.
        """
        self.images = images[:EVALUATION_BATCH].clone()
        graph, stream, current = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.device), torch.cuda.current_stream()
        gc.collect()
        try:
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                predict(self.network, self.images, self.preprocessing, len(self.images))
            current.wait_stream(stream)
            torch.clear_autocast_cache()
            with torch.cuda.graph(graph, stream=stream):
                self.logits = predict(self.network, self.images, self.preprocessing, len(self.images))
            self.graph = graph
        except RuntimeError as problem:
            torch.cuda.set_stream(current)
            self.possible = False
            log.warning(NOT_CAPTURED, "evaluation", str(problem.__context__ or problem).partition("\n")[0])
        finally:
            torch.clear_autocast_cache()
