"""The kernels for a CPU against written-out attention and layers, values and gradients."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from torch.func import functional_call

from titn_lib import TITNError, create_model, kernels
from titn_lib.kernels import build, fused_layer
from titn_lib.models.layers import Attention, TransformerLayer
from titn_lib.models.titn import Block, TITNConfig
from titn_lib.training import optim

pytestmark = pytest.mark.skipif(not kernels.find_compiler(), reason="there is no C++ compiler")


def reset_cache():
    """Forget which kernels were loaded, and which couldn't be."""
    build.load.cache_clear()
    build.load_error.cache_clear()


class InnerStep(Block):
    """The part of a block that `kernels.layer` computes."""

    def forward(self, inner, return_attention=False):
        return self.forward_inner(inner, return_attention)


def inner_step(length, width, heads, ratio, norm="pixel", bias=True):
    step = InnerStep(TITNConfig(inner_width=width, inner_heads=heads, mlp_ratio=ratio, qkv_bias=bias))
    step.projection.norm = torch.nn.LayerNorm(width if norm == "pixel" else (length, width))
    return step


def gradients(module, tokens, weights, return_attention):
    """Outputs and gradients, of one seeded scalar, with respect to tokens and those weights that count."""
    tokens = tokens.clone().requires_grad_()
    weights = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    *outputs, attention = functional_call(module, weights, (tokens, return_attention))
    assert (attention is not None) == return_attention
    generator = torch.Generator().manual_seed(1)
    scalar = sum((output.double() * torch.randn(output.shape, generator=generator)).sum() for output in outputs)
    slopes = torch.autograd.grad(scalar, [tokens, *weights.values()], allow_unused=True)
    return *outputs, *(slope for slope in slopes if slope is not None)


@pytest.mark.parametrize("batch", [(1, 1), (1, 3), (16, 1), (2, 19)], ids=str)
@pytest.mark.parametrize("norm", ["pixel", "patch"])
@pytest.mark.parametrize(
    ("length", "width", "heads", "ratio"),
    [(16, 12, 4, 4), (4, 16, 2, 2), (7, 10, 5, 1.5), (1, 3, 1, 1), (17, 24, 4, 4)],
)
def test_inner_step_equals_the_written_out_one_in_float64(batch, norm, length, width, heads, ratio):
    step = inner_step(length, width, heads, ratio, norm)
    weights = {name: torch.randn_like(weight) * 0.4 for name, weight in step.state_dict().items()}
    tokens = torch.randn(*batch, length, width)
    assert kernels.can_use_fused_layer(
        tokens, heads, len(step.inner.mlp[0].weight), step.projection.norm.weight.numel()
    )
    fast = gradients(step, tokens, weights, return_attention=False)
    exact = gradients(step.double(), tokens.double(), {name: weight.double() for name, weight in weights.items()}, True)
    for ours, expected in zip(fast, exact, strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(ours.double() / scale, expected / scale, atol=3e-6, rtol=0)


def test_inner_step_rounds_its_normed_tokens_under_autocast():
    step, tokens = inner_step(16, 12, 4, 4), torch.randn(2, 3, 16, 12)
    with torch.autocast("cpu", torch.bfloat16):
        inner, normed, _ = step(tokens)
    exact, exact_normed, _ = step(tokens)
    assert (inner.dtype, normed.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(inner, exact, rtol=0, atol=0)
    torch.testing.assert_close(normed, exact_normed.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [(1,), (5,), (3, 11)], ids=str)
@pytest.mark.parametrize(("length", "width", "heads"), [(18, 192, 8), (16, 12, 4), (5, 17, 1), (31, 64, 2)])
def test_attention_equals_the_written_out_one(batch, length, width, heads, dtype):
    attention = Attention(width, heads).to(dtype)
    weights, tokens = attention.state_dict(), torch.randn(*batch, length, width).to(dtype)
    assert kernels.can_use_fused_attention(attention.qkv(tokens), heads, attention.scale)
    fast = gradients(attention, tokens, weights, return_attention=False)
    exact = gradients(
        attention.double(), tokens.double(), {name: weight.double() for name, weight in weights.items()}, True
    )
    for ours, expected in zip(fast, exact, strict=True):
        scale = expected.abs().max()
        close = 3e-6 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(ours.double() / scale, expected / scale, atol=close, rtol=0)


def test_large_and_equal_scores_stay_finite():
    attention = Attention(12, 4)
    tokens = torch.cat([torch.zeros(1, 16, 12), torch.full((1, 16, 12), 1e4), torch.randn(1, 16, 12) * 1e4])
    update, _ = attention(tokens)
    torch.testing.assert_close(update, attention(tokens, return_attention=True)[0], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("part", ["attn.qkv", "attn.proj", "mlp.0", "mlp.2"])
@pytest.mark.parametrize("factor", [float("nan"), 1e30], ids=str)
def test_nan_and_overflow_propagate(part, factor):
    """A broken network must not output finite logits."""
    if factor == 1e30 and torch.nn.functional.layer_norm(torch.tensor([factor, 0.0, 0.0]), (3,)).isnan().any():
        pytest.skip("LayerNorm of older PyTorch makes nan of what overflows, newer PyTorch and the kernel 0")
    step, tokens = inner_step(16, 12, 4, 4), torch.randn(1, 3, 16, 12)
    step.inner.get_submodule(part).weight.data[3] *= factor
    fast, exact = step(tokens)[0], step(tokens, return_attention=True)[0]
    assert torch.equal(fast.isfinite(), exact.isfinite())


def test_parameters_of_another_size_do_not_reach_the_kernel():
    step, tokens = inner_step(16, 12, 4, 4), torch.randn(1, 3, 16, 12)
    parameters = kernels.flatten_params([*step.inner.modules(), step.projection.norm])
    with pytest.raises(TITNError, match="parameters"):
        kernels.layer(tokens, parameters[1:], 4, 48, 12)


@pytest.mark.parametrize("name", ["titn_paper", "titn_nano", "titn_pico", "tnt_paper", "vit_paper"])
def test_asking_for_attention_changes_no_logit(name):
    """The fast path and the one that returns attention are the same function."""
    model = create_model(name).eval()
    images = torch.randn(5, 3, 32, 32)
    logits, _ = model(images, return_attention=True)
    torch.testing.assert_close(model(images), logits, atol=2e-5, rtol=1e-4)


def test_a_step_without_biases():
    step, tokens = inner_step(16, 24, 4, 4, bias=False), torch.randn(2, 3, 16, 24)
    for ours, expected in zip(step(tokens)[:2], step(tokens, return_attention=True)[:2], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def outputs(model, images):
    """The logits, and the gradients of the blocks' parameters."""
    logits = model(images).class_logits
    return logits, *torch.autograd.grad(logits.square().sum(), list(model.blocks.parameters()))


def test_compiled_blocks_give_the_same(compiler):
    model, images = create_model("titn_paper", depth=1), torch.randn(2, 3, 32, 32)
    eager = outputs(model, images)
    assert optim.compile_blocks(model, 10**6, images.device)
    for compiled, expected in zip(outputs(model, images), eager, strict=True):
        torch.testing.assert_close(compiled, expected, atol=1e-4, rtol=1e-4)
    assert compiler["stats"]["unique_graphs"] == 1


def test_every_network_of_a_process_is_compiled_and_once_for_all_its_blocks(compiler, monkeypatch):
    monkeypatch.setattr(optim, "inductor", lambda graph, inputs: graph.forward)  # quick
    torch._dynamo.config.recompile_limit = 2  # PyTorch's own limit is eight
    for heads in (1, 2, 3):
        model = create_model("titn_paper", depth=2, outer_width=8 * heads, outer_heads=heads)
        assert optim.compile_blocks(model, 10**6, torch.device("cpu"))
        model(torch.randn(2, 3, 32, 32))
    assert compiler["stats"]["unique_graphs"] == 3, compiler


@pytest.mark.parametrize("size", [(33, 12, 4, 48), (16, 40, 4, 48), (32, 32, 32, 128)], ids=str)
def test_large_layers_run_in_plain_pytorch(size):
    length, width, heads, hidden = size
    assert not kernels.can_use_fused_layer(torch.zeros(2, length, width), heads, hidden, width)
    assert not kernels.can_use_fused_layer(torch.zeros(2, 16, 12, dtype=torch.float64), 4, 48, 12)
    inner, normed, _ = inner_step(length, width, heads, hidden / width)(torch.randn(1, 1, length, width))
    assert inner.shape == normed.shape == (1, 1, length, width)


def test_without_a_compiler_all_works_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    reset_cache()
    build.warn_once.cache_clear()
    model, images = create_model("titn_paper", depth=2).eval(), torch.randn(2, 3, 32, 32)
    with caplog.at_level(logging.WARNING):
        slow = model(images)
        model(images)
    assert [record.message for record in caplog.records if "C++ kernels" in record.message] == [
        "inner stream and data augmentation run without the C++ kernels, a good deal slower: "
        "there is no C++ compiler (install g++ or clang++)"
    ]
    monkeypatch.undo()
    reset_cache()
    torch.testing.assert_close(model(images), slow, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("state", ["unwritable", "broken compiler"])
def test_a_cache_that_cannot_be_written_or_a_compiler_that_fails(monkeypatch, caplog, tmp_path, state):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if state == "unwritable":
        (tmp_path / "titn_lib").write_text("a file where the folder should be")
        monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path / "titn_lib"))
    else:
        monkeypatch.setenv("CXX", "false")
    reset_cache()
    build.warn_once.cache_clear()
    tried = []
    which = kernels.find_compiler
    monkeypatch.setattr(build, "find_compiler", lambda: tried.append(1) or which())
    with caplog.at_level(logging.WARNING):
        assert not build.available(3, 6, 2, 12)
        assert not build.available(3, 6, 2, 12)
    assert len(tried) == 1, "a failure is remembered"
    assert "slower" in caplog.text
    reset_cache()


def test_the_log_has_the_compilers_own_words(monkeypatch, caplog, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text(
        '#!/bin/sh\necho "in a.cpp:" >&2\necho "a.cpp:1:2: fatal error: omp.h: No such file" >&2\nexit 1\n'
    )
    broken.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(broken))
    reset_cache()
    build.warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert not build.available(3, 6, 2, 12)
    assert caplog.messages[-1].endswith("slower: a.cpp:1:2: fatal error: omp.h: No such file")
    reset_cache()


NO_HOME = """
import os, tempfile, torch, titn_lib
from titn_lib.kernels import build, fused_layer
model = titn_lib.create_model("titn_nano")
if os.getuid() == 0:
    os.setuid(54321)
else:  # only root can become somebody else
    build.Path.home = lambda: (_ for _ in ()).throw(RuntimeError("no home"))
os.environ.pop("HOME", None), os.environ.pop("XDG_CACHE_HOME", None)
shape, folder = model.train()(torch.randn(2, 3, 32, 32))[0].shape, build.cache_dir().parent
print(tuple(shape), folder == build.Path(tempfile.gettempdir()))
"""


def test_no_home_and_an_unknown_user(tmp_path):
    tmp_path.chmod(0o777)
    for folder in (tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NO_HOME],
        capture_output=True, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert (run.stdout, run.stderr) == ("(2, 10) True\n", "")


def test_kernels_are_not_loaded_from_another_users_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path))
    assert build.cache_dir().parent == tmp_path
    if hasattr(os, "getuid"):
        other = os.getuid() + 1
        monkeypatch.setattr(os, "getuid", lambda: other)
        (tmp_path / f"titn_lib-{os.getuid()}").mkdir()
        with pytest.raises(OSError, match="belongs to another user"):
            build.cache_dir()


def test_a_machine_where_torch_compile_cannot_build(compiler, tmp_path, monkeypatch, caplog):
    """A long run begins with g++ but without cl, or without Python's headers; it goes on with one line of log."""

    def no_compiler(*_, **__):
        raise RuntimeError("Compiler: cl is not found.")

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing is there from before
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", no_compiler)
    monkeypatch.setattr(optim, "FAILURES", [])
    model, images = create_model("titn_nano", depth=2), torch.randn(2, 3, 32, 32)
    eager = outputs(model, images)
    assert optim.compile_blocks(model, 10**6, images.device)
    assert not optim.compiling_failed()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for compiled, expected in zip(outputs(model, images), eager, strict=True):
                torch.testing.assert_close(compiled, expected, atol=1e-4, rtol=1e-4)
    assert optim.compiling_failed()
    (line,) = [record.message for record in caplog.records if record.name.startswith("titn_lib")]
    assert line.startswith("training goes on without torch.compile")
    assert line.endswith("Compiler: cl is not found.")


def test_a_triton_that_cannot_build(monkeypatch, caplog):
    """As on a machine with a GPU and no C compiler."""

    def no_compiler(*_):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(torch, "zeros", lambda *sizes, device: torch.empty(sizes))
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(fused_layer, "call_triton", no_compiler)
    fused_layer.triton_builds.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert not fused_layer.triton_available()
        assert not fused_layer.triton_available()
    fused_layer.triton_builds.cache_clear()
    assert caplog.messages == [
        "the GPU runs without the Triton kernels, slower: "
        "Failed to find C compiler. Please specify via CC environment variable."
    ]


def test_importing_the_library_imports_no_compiler_and_draws_no_random_numbers():
    code = "import sys, torch; torch.manual_seed(1); import titn_lib.models; drawn = torch.rand(1)"
    code += "; torch.manual_seed(1); assert torch.equal(torch.rand(1), drawn)"
    code += "; assert not {'torch._dynamo', 'torch._inductor', 'torchvision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("batch", "length"), [(2, 0), (0, 5)])
def test_nothing_in_nothing_out(batch, length):
    """An empty batch or sequence must not hang."""
    tokens = torch.randn(batch, length, 12)
    assert TransformerLayer(12, heads=3)(tokens)[0].shape == tokens.shape
