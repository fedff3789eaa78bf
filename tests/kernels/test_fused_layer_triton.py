"""The Triton kernels: run by Triton's interpreter on a CPU, and compiled for GPUs that needn't be there."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from titn_lib import create_model
from titn_lib.errors import TITNError
from titn_lib.kernels import flatten_params
from titn_lib.models.layers import TransformerLayer

pytest.importorskip("triton", reason="Triton is for Linux")
import offline


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    from titn_lib.kernels import fused_layer_gpu

    return fused_layer_gpu


def make_layer(
    length: int, width: int, heads: int, ratio: float, whole: bool, seed: int
) -> tuple[nn.Module, nn.Module]:
    """A layer and the norm after it with weights far from their initial ones."""
    torch.manual_seed(seed)
    layer = TransformerLayer(width, heads, ratio)
    norm = nn.LayerNorm((length, width) if whole else width)
    for parameter in [*layer.parameters(), *norm.parameters()]:
        nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 0.5)
    return layer, norm


def relative_error(value: Tensor, reference: Tensor) -> float:
    return float((value.double() - reference).norm() / reference.norm())


def compare(kernels: ModuleType, sizes: tuple, sequences: int, dtype: torch.dtype, seed: int = 0) -> float:
    """The largest relative error of outputs and gradients, each parameter's by itself, against float64."""
    length, width, heads, ratio, _ = sizes
    layer, norm = make_layer(*sizes, seed)
    parts = [*layer.modules(), norm]
    parameters = [p for part in parts if "weight" in part._parameters for p in (part.weight, part.bias)]
    flat = flatten_params(parts).detach()
    layer.double(), norm.double()
    tokens = torch.randn(sequences, length, width, dtype=torch.double, requires_grad=True)
    output, _ = layer(tokens, return_attention=True)
    normed = norm(output)
    gradient, normed_gradient = torch.randn_like(output), torch.randn_like(normed)
    wanted = torch.autograd.grad([output, normed], [tokens, *parameters], [gradient, normed_gradient])
    x, options = tokens.detach().float(), (heads, int(width * ratio), norm.weight.numel())
    got_output, got_normed = kernels.layer(x, flat, dtype, *options)
    got, sums = kernels.layer_backward(x, flat, gradient.float(), normed_gradient.to(dtype), *options)
    assert got_normed.dtype == dtype
    pairs = [(got_output, output), (got_normed, normed), (got, wanted[0])]
    split = sums.sum(dim=0).split([p.numel() for p in parameters])
    pairs += [(a, b.flatten()) for a, b in zip(split, wanted[1:], strict=True)]
    return max(relative_error(a, b.detach()) for a, b in pairs)


# Pixel tokens, width, heads, MLP ratio, whether the last norm is over a whole sequence; number of sequences, which make
# three tiles for two programs.
SIZES = [
    ((16, 12, 4, 4, False), 3),  # titn_paper
    ((16, 12, 2, 4, True), 3),  # tnt_ti
    ((16, 24, 4, 4, True), 3),  # tnt_s
    ((4, 16, 2, 2, False), 9),  # titn_nano: four sequences in a tile, and a last tile that isn't full
    ((9, 12, 3, 2, True), 3),  # rows without a sequence
    ((5, 10, 5, 1.5, True), 8),
    ((32, 12, 4, 4, False), 3),
]


@offline.INTERPRETED
@pytest.mark.parametrize(("sizes", "sequences"), SIZES)
def test_float32_equals_the_layer(kernels, sizes, sequences):
    assert compare(kernels, sizes, sequences, torch.float32) < 2e-6


@offline.INTERPRETED
@pytest.mark.parametrize("seed", range(3))
def test_bfloat16_is_close_to_the_layer(kernels, seed):
    """Operands have 8 bits: a relative error of 2⁻⁹ each."""
    assert 1e-3 < compare(kernels, (16, 12, 4, 4, False), 3, torch.bfloat16, seed) < 6e-2


def compare_attention(
    kernels: ModuleType, length: int, heads: int, width: int, dtype: torch.dtype, device: str
) -> float:
    """The largest relative error of output and gradient against float64."""
    torch.manual_seed(0)
    qkv = torch.randn(2, length, 3 * heads * width, dtype=torch.double, requires_grad=True)
    query, key, value = rearrange(
        qkv, "batch token (three head width) -> three batch head token width", three=3, head=heads
    )
    mixed = ((query @ key.mT) / width**0.5).softmax(dim=-1) @ value
    mixed = rearrange(mixed, "batch head token width -> batch token (head width)")
    gradient = torch.randn_like(mixed)
    (wanted,) = torch.autograd.grad(mixed, qkv, gradient)
    given, given_gradient = (tensor.detach().to(device, dtype) for tensor in (qkv, gradient))
    got, got_gradient = kernels.attention(given, heads), kernels.attention_backward(given, given_gradient, heads)
    return max(relative_error(got.cpu(), mixed.detach()), relative_error(got_gradient.cpu(), wanted))


# Tokens, heads, width of a head
ATTENTIONS = [(18, 8, 24), (5, 2, 12), (66, 4, 32)]  # titn_paper, small, titn_nano


@offline.INTERPRETED
@pytest.mark.parametrize(("length", "heads", "width"), ATTENTIONS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_attention_layer_equals_softmax(kernels, length, heads, width, dtype, bound):
    assert compare_attention(kernels, length, heads, width, dtype, "cpu") < bound


@offline.INTERPRETED
def test_a_layer_refuses_parameters_of_another_size(kernels):
    with pytest.raises(TITNError, match="a layer of this size has 1908 parameters, not 1907"):
        kernels.layer(torch.randn(4, 16, 12), torch.zeros(1907), torch.float32, 4, 48, 12)


@offline.INTERPRETED
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_stays_nan(kernels):
    """And in its tile, which is one sequence of 16 tokens."""
    layer, norm = make_layer(16, 12, 4, 4, False, 0)
    tokens = torch.randn(4, 16, 12)
    tokens[2, 1, 3] = float("nan")
    output, _ = kernels.layer(tokens, flatten_params([*layer.modules(), norm]).detach(), torch.float32, 4, 48, 12)
    assert output.isnan().flatten(1).any(dim=1).tolist() == [False, False, True, False]


def resources(
    kernels: ModuleType, capability: int, dtype: torch.dtype, sizes: tuple, folder: Path
) -> "list[offline.Resources]":
    """What both kernels need, compiled for a GPU of this compute capability."""
    length, width, heads, ratio, whole = sizes
    given = torch.empty(64, length, width), heads, int(width * ratio), length * width if whole else width, dtype
    normed = "*bf16" if dtype == torch.bfloat16 else "*fp32"
    found = []
    for kernel in (kernels.layer_kernel, kernels.layer_backward_kernel):
        types = dict.fromkeys(kernel.arg_names, "*fp32") | {"sequences": "i32", "scale": "fp32"}
        types |= {name: normed for name in ("normed_ptr", "normed_gradient_ptr") if name in types}
        _, _, options = kernels.plan(*given, backward=kernel is kernels.layer_backward_kernel)
        found.append(offline.compile_for(capability, kernel, types, options, folder))
    return found


@offline.COMPILED
@pytest.mark.parametrize(("capability", "sizes"), [(80, SIZES[0][0]), (90, SIZES[0][0]), (90, SIZES[2][0])])
def test_compiles_for_a_gpu(capability, sizes, kernels, tmp_path):
    """The forward pass fits in registers. The backward pass keeps some in the stack, which is in the L1 cache."""
    forward, backward = resources(kernels, capability, torch.bfloat16, sizes, tmp_path)
    if sizes == SIZES[0][0]:
        assert forward.registers <= 192
        assert forward.stack == 0
        assert max(forward.shared, backward.shared) < 24_000
    assert forward.stack <= 100
    assert backward.stack <= 800


@pytest.mark.gpu
@pytest.mark.parametrize(("sizes", "sequences"), [SIZES[0], SIZES[1], SIZES[3]])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 8e-2)])
def test_gpu_equals_the_layer(kernels, sizes, sequences, dtype, bound):

    class OnGPU:
        @staticmethod
        def layer(*arguments):
            moved = [a.cuda() if isinstance(a, Tensor) else a for a in arguments]
            return [result.cpu() for result in kernels.layer(*moved)]

        @staticmethod
        def layer_backward(*arguments):
            moved = [a.cuda() if isinstance(a, Tensor) else a for a in arguments]
            return [result.cpu() for result in kernels.layer_backward(*moved)]

    assert compare(OnGPU, sizes, sequences, dtype) < bound  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize(("length", "heads", "width"), ATTENTIONS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_gpu_attention_equals_softmax(kernels, length, heads, width, dtype, bound):
    assert compare_attention(kernels, length, heads, width, dtype, "cuda") < bound


@pytest.mark.gpu
def test_gpu_uses_the_kernel_for_titn():
    network = create_model("titn_paper").cuda()
    with torch.profiler.profile() as profile:
        network(torch.randn(2, 3, 32, 32, device="cuda")).class_logits.sum().backward()
    assert {"titn::layer", "titn::layer_backward", "titn::attention", "titn::attention_backward"} <= {
        event.key for event in profile.key_averages()
    }
