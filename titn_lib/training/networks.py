"""What a run's networks need before training: settings from the data, a checked teacher, initial weights."""

from typing import Any

import torch
from lightning_fabric import Fabric

from titn_lib.data.datasets import DataSplits
from titn_lib.errors import TITNError
from titn_lib.losses.distillation import freeze
from titn_lib.models.base import Classifier
from titn_lib.models.teachers import Teacher, fold_batch_norm
from titn_lib.torch_compat import set_recompile_limit
from titn_lib.training.optim import COMPILED_NETWORKS


def data_kwargs(data: DataSplits) -> dict[str, Any]:
    """The settings of a network that follow from the data set."""
    return {"num_classes": len(data.classes), "in_channels": data.in_channels, "image_size": data.image_size}


def prepare_teacher(teacher: Classifier, data: DataSplits, fabric: Fabric) -> Teacher:
    """A frozen copy of the teacher on the run's device, with its batch normalization folded into the convolutions.

    In a run with "bf16-mixed" precision, its weights are cast to bfloat16 here, and not by autocast in every step.

    Raises:
        TITNError: it is a student, or was trained for other images, classes or another normalization.
    """
    if not isinstance(teacher, Teacher):
        raise TITNError(f"{teacher.config.name} is a student, not a teacher: choose a teacher, or its weights")
    for name, value in data_kwargs(data).items():
        if getattr(teacher.config, name) != value:
            raise TITNError(
                f"the teacher was made for {name}={getattr(teacher.config, name)}, and {data.name} needs "
                f"{name}={value}: train a teacher on {data.name}"
            )
    its = teacher.preprocessing
    if its and (its.classes, its.mean, its.std) != (data.classes, data.mean, data.std):
        raise TITNError(
            f"the teacher was trained on {its.data}, with other classes or another normalization than {data.name}: "
            f"train a teacher on {data.name}"
        )
    ready = freeze(fold_batch_norm(teacher))
    if fabric.strategy.precision.precision == "bf16-mixed":
        ready = ready.to(torch.bfloat16)
    return ready.to(fabric.device)


def compile_teacher(teacher: Teacher, device: torch.device) -> None:
    """Compile a frozen teacher with torch.compile, on a GPU.

    There, bias and ReLU cost as much as the convolutions, and the compiler fuses them. On a CPU it would save less than
    it costs in most runs.
    """
    if device.type == "cuda":
        set_recompile_limit(COMPILED_NETWORKS)
        # Not stage.compile(): it would skip PyTorch's own modules, and a stage is an nn.Sequential.
        teacher.forward_features = torch.compile(teacher.forward_features, dynamic=False)  # type: ignore[method-assign]


def load_initial_weights(network: Classifier, initial: Classifier) -> None:
    """Copy the weights of `initial` into `network`. Parameters that only `network` has (gates, say) stay unchanged.

    Raises:
        TITNError: `initial` has parameters that `network` lacks, or of another shape.
    """
    own, given = network.state_dict(), initial.state_dict()
    wrong = [name for name, weight in given.items() if name not in own or own[name].shape != weight.shape]
    if wrong:
        raise TITNError(
            f"the initial weights, of {initial.config.name}, don't fit {network.config.name} ({wrong[0]} differs): "
            "start from the same model, for the same images and classes"
        )
    network.load_state_dict(given, strict=False)
