"""Modified layers, hooks, tracing and second derivatives don't reach the C++ kernels."""

import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.utils import prune

from titn_lib import TITNError, create_model


def resize_mlp(hidden):
    """As structured pruning would."""

    def change(inner):
        inner.mlp[0], inner.mlp[2] = torch.nn.Linear(16, hidden), torch.nn.Linear(hidden, 16)

    return change


def halve_heads(inner):
    inner.attn.qkv, inner.attn.proj = torch.nn.Linear(16, 24), torch.nn.Linear(8, 16)


class LoRA(torch.nn.Module):
    """A Linear, and two narrow ones in parallel."""

    def __init__(self, base):
        super().__init__()
        self.base, self.down = base, torch.nn.Linear(base.in_features, 2)
        self.up = torch.nn.Linear(2, base.out_features)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def normalized_and_doubled(linear):
    torch.nn.utils.parametrizations.weight_norm(linear).parametrizations.weight.original0.data.mul_(2)
    return linear


def replace_module(name, make):
    def change(layer):
        parent, _, child = name.rpartition(".")
        setattr(layer.get_submodule(parent), child, make(layer.get_submodule(name)))

    return change


@pytest.mark.parametrize(
    "change",
    [
        replace_module("attn.qkv", LoRA),
        replace_module("attn.qkv", normalized_and_doubled),
        replace_module("mlp.1", lambda _: torch.nn.ReLU()),
        replace_module("mlp.1", lambda _: torch.nn.GELU(approximate="tanh")),
        replace_module("attention_norm", lambda _: torch.nn.Identity()),
        replace_module("mlp_norm", lambda norm: torch.nn.LayerNorm(norm.normalized_shape, eps=1.0)),
        replace_module("mlp_norm", lambda norm: torch.nn.RMSNorm(norm.normalized_shape)),
        resize_mlp(24),
        resize_mlp(40),
        halve_heads,
        lambda inner: vars(inner.attn).update(scale=5.0),
        lambda inner: vars(inner.mlp).update(forward=torch.zeros_like),
        lambda inner: inner.mlp_norm.register_parameter("weight", None),
        lambda layer: prune.random_unstructured(layer.attn.qkv, "weight", 0.5),
        lambda layer: layer.attn.register_forward_hook(lambda _, __, out: (2 * out[0], out[1])),
        lambda layer: layer.mlp.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],)),
    ],
)
def test_a_modified_inner_layer_runs_its_own_modules(change):
    """The fused kernel computes the unmodified layer only."""
    model = create_model("titn_nano", depth=2).eval()
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.mul_(4)  # so that a change shows
    images = torch.randn(2, 3, 32, 32)
    before = model(images)
    change(model.blocks[0].inner)
    expected, _ = model(images, return_attention=True)
    assert (before - expected).abs().max() > 1e-4
    torch.testing.assert_close(model(images), expected, atol=2e-5, rtol=1e-5)


def test_a_hook_on_all_modules_sees_the_inner_layer():
    model, seen = create_model("titn_nano", depth=1).eval(), []
    with torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module)):
        model(torch.randn(1, 3, 32, 32))
    assert model.blocks[0].inner.attn.qkv in seen


@pytest.mark.parametrize("part", ["weights", "a bias"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_weights_of_another_dtype_than_the_tokens_fail_as_in_pytorch(dtype, part):
    model = create_model("titn_nano", depth=1, qkv_bias=True).eval()
    inner = model.blocks[0].inner
    if part == "weights":
        inner.to(dtype)
    else:
        inner.attn.qkv.bias.data = inner.attn.qkv.bias.data.to(dtype)
    with pytest.raises(RuntimeError, match="dtype"):
        model(torch.randn(1, 3, 32, 32))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch.func's own
def test_forward_mode_and_vmap_run_in_plain_pytorch():
    """The kernels have no rules for forward-mode and per-image derivatives."""
    model = create_model("titn_nano", depth=2).eval()
    images, direction = torch.randn(2, 2, 3, 32, 32)

    def slow(images):
        return model(images, return_attention=True)[0]

    expected = torch.func.jvp(slow, (images,), (direction,))
    torch.testing.assert_close(torch.func.jvp(model, (images,), (direction,)), expected, atol=1e-5, rtol=1e-4)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(images, direction))).tangent
    torch.testing.assert_close(tangent, expected[1], atol=1e-5, rtol=1e-4)
    each = torch.func.vmap(torch.func.grad(lambda image: model(image[None]).sum()))(images)
    leaf = images.clone().requires_grad_()
    torch.testing.assert_close(each, torch.autograd.grad(model(leaf).sum(), leaf)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("unchecked")  # tracing gives tensors for sizes, which the checks don't like
@pytest.mark.filterwarnings("ignore")
def test_torchscript_needs_no_kernels_where_it_is_loaded(tmp_path):
    model, images = create_model("titn_nano", depth=1).eval(), torch.randn(2, 3, 32, 32)
    torch.jit.save(torch.jit.trace(model, images), tmp_path / "m.ts")
    torch.save((images, model(images)), tmp_path / "x.pt")
    load = "import sys, torch; x, y = torch.load(sys.argv[1] + '/x.pt')"  # without this library
    load += "; torch.testing.assert_close(torch.jit.load(sys.argv[1] + '/m.ts')(x), y, atol=1e-5, rtol=1e-4)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", load, tmp_path], check=True)


def test_an_exported_model_takes_any_number_of_images():
    model = create_model("titn_nano", depth=1).eval()
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        exported = torch.export.export(model, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
        for few in (images, images[:1]):
            torch.testing.assert_close(exported(few), model(few), atol=1e-5, rtol=1e-4)


def test_a_second_derivative_is_refused_and_not_wrong():
    model = create_model("titn_nano", depth=1).eval()
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    with pytest.raises(TITNError, match="no second derivative: pass return_attention=True"):
        torch.autograd.grad(model(images).sum(), images, create_graph=True)
    (slope,) = torch.autograd.grad(model(images, return_attention=True)[0].sum(), images, create_graph=True)
    assert torch.autograd.grad(slope.square().sum(), images)[0].abs().max() > 0
