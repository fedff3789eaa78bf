"""Teachers, made ready for a run."""

import copy
import subprocess
import sys

import pytest
import torch

from titn_lib import create_model, load_model
from titn_lib.data import load_dataset
from titn_lib.losses.distillation import freeze, teacher_forward
from titn_lib.training.distributed import start_fabric
from titn_lib.training.networks import compile_teacher, data_kwargs, prepare_teacher


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


COMPILED = """
import torch
from functools import partial
from titn_lib import create_model
from titn_lib.losses import freeze
from titn_lib.losses.distillation import teacher_forward
from titn_lib.training.networks import compile_teacher

def backend(graph, inputs):
    print("graph", sum("conv2d" in str(node.target) for node in graph.graph.nodes))
    return graph.forward

torch.compile = partial(torch.compile, backend=backend)
teacher, images = freeze(create_model("vgg7_bn")), torch.randn(2, 3, 32, 32)
for device in ("cpu", "cuda"):
    print(device)
    compile_teacher(teacher, torch.device(device))
    teacher_forward(teacher, images)
"""


def test_the_teacher_is_compiled_on_a_gpu_only():
    """As one graph of six convolutions. In another process: torch.compile can't see through the checks of shapes."""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILED], capture_output=True, text=True)
    assert result.stdout.split() == ["cpu", "cuda", "graph", "6"], result.stderr


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
