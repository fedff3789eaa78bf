"""What a run's networks need before training: settings from the data, a checked teacher, initial weights."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from titn_lib.data.datasets import DataSplits
from titn_lib.data.transforms import normalize
from titn_lib.errors import TITNError
from titn_lib.losses.distillation import freeze
from titn_lib.models.base import Classifier
from titn_lib.models.external import ExternalTeacher, Renormalize, TimmClassifier, frozen_copy
from titn_lib.models.registry import create_model, head_weights
from titn_lib.models.teachers import Teacher, Whitening, fold_batch_norm
from titn_lib.models.weights import fit_positions
from titn_lib.torch_compat import set_recompile_limit
from titn_lib.training.config import Run
from titn_lib.training.optim import COMPILED_NETWORKS, compile_or_run_eagerly

WHITENING_IMAGES = 5_000


def data_kwargs(data: DataSplits) -> dict[str, Any]:
    """The settings of a network that follow from the data set."""
    return {"num_classes": len(data.classes), "in_channels": data.in_channels, "image_size": data.image_size}


def check_batch(run: Run, data: DataSplits, processes: int) -> None:
    """Raises TITNError if a batch is larger than the training split, or can't be shared by so many processes."""
    batch, images = run.recipe.batch_size, min(run.recipe.train_images or len(data.train), len(data.train))
    if batch > images:
        raise TITNError(
            f"{run.model} can't train with a batch of {batch} on the {images} training images of {data.name}: choose a "
            "smaller batch_size (--batch-size)"
        )
    if batch % processes:
        raise TITNError(
            f"a batch of {batch} can't be shared by {processes} processes: choose a batch_size that {processes} divides"
        )


def make_network(run: Run, data: DataSplits, initial: Classifier | None) -> Classifier:
    """The network of a run before its first step. Random weights come from torch's global generator.

    Raises:
        TITNError: the initial weights don't fit.
    """
    network = create_model(run.model, **{**data_kwargs(data), **run.model_settings})
    for layer in network.modules():
        if isinstance(layer, Whitening):
            layer.fit(normalize(data.train.images[:WHITENING_IMAGES], data.mean, data.std))
    if initial is not None:
        load_initial_weights(network, initial, data.classes)
    if not run.recipe.layer_decay:
        freeze_start(network)
    return network


def prepare_teacher(teacher: nn.Module, data: DataSplits, fabric: Fabric) -> nn.Module:
    """A frozen copy of the teacher on the run's device, for images that are normalized like `data`.

    Where the teacher's own normalization is another one, the images are normalized anew. Batch normalization of a
    `Teacher` is folded into its convolutions, and in a run with "bf16-mixed" precision its weights are cast to bfloat16
    here, and not by autocast in every step. Other networks stay as they are.

    Args:
        teacher: one of `models.teachers`, a timm model, or any module that returns logits.

    Raises:
        TITNError: it is a student, or was made for other images or classes.
    """
    if isinstance(teacher, Classifier):
        check_teacher(teacher, data)
    renormalize = renormalization(teacher, data)
    if not isinstance(teacher, Teacher):
        external = teacher if isinstance(teacher, ExternalTeacher) else ExternalTeacher(teacher)
        ready = frozen_copy(nn.Sequential(renormalize, external)).to(fabric.device)
        check_logits(ready, data)
        return ready
    folded = freeze(fold_batch_norm(teacher))
    if not isinstance(renormalize, nn.Identity):
        folded.stages[0] = nn.Sequential(renormalize, folded.stages[0]).eval()
    if fabric.strategy.precision.precision == "bf16-mixed":
        folded = folded.to(torch.bfloat16)
    return folded.to(fabric.device)


def check_teacher(teacher: Classifier, data: DataSplits) -> None:
    """Raises TITNError for a student, or a teacher that was made for other images or classes than the data set's."""
    if not isinstance(teacher, Teacher | TimmClassifier):
        raise TITNError(f"{teacher.config.name} is a student, not a teacher: choose a teacher, or its weights")
    for name, value in data_kwargs(data).items():
        if getattr(teacher.config, name) != value:
            raise TITNError(
                f"the teacher was made for {name}={getattr(teacher.config, name)}, and {data.name} needs "
                f"{name}={value}: train a teacher on {data.name}"
            )
    if teacher.preprocessing and teacher.preprocessing.classes != data.classes:
        raise TITNError(
            f"the teacher was trained on {teacher.preprocessing.data}, with other classes than {data.name}: train a "
            f"teacher on {data.name} (it may start from these weights: titn train-teacher --init-from)"
        )


def renormalization(teacher: nn.Module, data: DataSplits) -> nn.Module:
    """From the data set's normalization to the teacher's own; the identity where they are the same."""
    its = teacher if isinstance(teacher, ExternalTeacher) else ExternalTeacher(teacher)
    own, needed = (data.mean, data.std), (tuple(its.mean or data.mean), tuple(its.std or data.std))
    for values in needed:
        if len(values) != data.in_channels:
            raise TITNError(
                f"the teacher's normalization has {len(values)} channels, and the images of {data.name} have "
                f"{data.in_channels}: give one mean and one std for each channel"
            )
    return nn.Identity() if needed == own else Renormalize(own, needed)


@torch.no_grad()
def check_logits(teacher: nn.Module, data: DataSplits) -> None:
    """Try a teacher that is not this library's on two images.

    Raises:
        TITNError: it can't take them, or returns no logits of the data set's classes.
    """
    size = "×".join(map(str, (data.in_channels, *data.image_size)))
    first = next(teacher.parameters(), torch.zeros(1))
    try:
        logits = teacher(torch.zeros(2, data.in_channels, *data.image_size, device=first.device))
    except TITNError:
        raise
    except Exception as problem:  # the network's own
        reason = str(problem).strip().split("\n")[0]
        raise TITNError(
            f"the teacher can't take images of {size} ({reason}): choose another image_size, or wrap the teacher in a "
            "module that resizes them"
        ) from problem
    if logits.shape != (2, len(data.classes)):
        raise TITNError(
            f"the teacher's logits for two images have the shape {tuple(logits.shape)}, and {data.name} has "
            f"{len(data.classes)} classes: use a teacher that was trained on {data.name}"
        )


def compile_on_gpu(function: Callable, device: torch.device) -> Callable:
    """The function, compiled with torch.compile if the device is a GPU.

    There, each small operation costs as much as a large one, and the compiler fuses them. On a CPU it would save less
    than it costs in most runs.
    """
    if device.type != "cuda":
        return function
    set_recompile_limit(COMPILED_NETWORKS)
    return torch.compile(function, dynamic=False, backend=compile_or_run_eagerly)


def compile_teacher(teacher: nn.Module, device: torch.device) -> None:
    """Compile a frozen teacher on a GPU, where bias and ReLU cost as much as the convolutions."""
    if isinstance(teacher, Teacher):
        # Not stage.compile(): it would skip PyTorch's own modules, and a stage is an nn.Sequential.
        teacher.forward_features = compile_on_gpu(teacher.forward_features, device)  # type: ignore[method-assign]


def use_normalization(data: DataSplits, initial: Classifier | None) -> DataSplits:
    """The data set with the normalization that the initial weights were trained with."""
    known = initial.preprocessing if initial is not None else None
    if not known or len(known.mean) != data.in_channels:
        return data
    return replace(data, mean=known.mean, std=known.std)


def load_initial_weights(network: Classifier, initial: Classifier, classes: tuple[str, ...] = ()) -> None:
    """Copy the weights of `initial` into `network`. Parameters that only `network` has (gates, say) stay unchanged.

    Where `initial` was trained for other classes, the last layer of each head stays unchanged, too. Where it was
    trained for another image size, position embeddings are interpolated.

    Args:
        classes: the class names of the run.

    Raises:
        TITNError: `initial` has parameters that `network` lacks, or of another shape.
    """
    ours, theirs = network.config, initial.config
    given = initial.state_dict()
    known = initial.preprocessing.classes if initial.preprocessing else None
    if ours.num_classes != theirs.num_classes or (classes and known and known != classes):
        fresh = head_weights(type(initial), theirs)
        given = {name: weight for name, weight in given.items() if name not in fresh}
    if ours.in_channels != theirs.in_channels:
        raise TITNError(
            f"the initial weights, of {theirs.name}, are for images with {theirs.in_channels} channels, and these have "
            f"{ours.in_channels}: start from other weights"
        )
    own = network.state_dict()
    if type(initial) is type(network):
        given = fit_positions(given, network, theirs)
    wrong = [name for name, weight in given.items() if name not in own or own[name].shape != weight.shape]
    if wrong:
        raise TITNError(
            f"the initial weights, of {theirs.name}, don't fit {ours.name} ({wrong[0]} differs): start from the same "
            "model with the same settings"
        )
    network.load_state_dict(given, strict=False)


Layers = dict[str, int]  # by a parameter's name, how many layers lie between it and the logits
HEAD = re.compile(r"(network\.)?(heads?|fc|classifier)\.")  # at the start: a block may have "heads" of its own


def layers_below_head(network: nn.Module) -> Layers:
    """For each parameter, 0 in the heads, 1 in the last block (or stage), and so on; most in the embeddings.

    A network without blocks or stages, such as timm's, has one layer below its head.
    """
    names = [name for name, _ in network.named_parameters()]
    found = {name: re.match(r"(?:blocks|stages)\.(\d+)\.", name) for name in names}
    count = max((int(match[1]) + 1 for match in found.values() if match), default=0)
    depth = {name: count - int(match[1]) if match else count + 1 for name, match in found.items()}
    return {name: 0 if HEAD.match(name) else depth[name] for name in names}


def freeze_start(network: Classifier) -> None:
    """Turn off the gradients of all parameters below the heads."""
    layers = layers_below_head(network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(layers[name] == 0)
