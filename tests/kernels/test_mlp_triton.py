"""The fused MLP of a GPU: run by Triton's interpreter on a CPU, and compiled for GPUs that needn't be there."""

import pytest
import torch
from torch import Tensor, nn

from titn_lib import create_model
from titn_lib.errors import TITNError
from titn_lib.models.layers import MLP, TransformerLayer

pytest.importorskip("triton", reason="Triton is for Linux")
import offline

from titn_lib.kernels import fused_layer_gpu
from titn_lib.kernels.mlp_triton import mlp_backward_kernel, mlp_kernel

# Tokens, width, hidden: as in titn_paper, with a second program that isn't full; one part and chunk; narrow parts
SIZES = [((66,), 192, 128), ((3, 5), 32, 32), ((2, 40), 48, 96)]

BFLOAT16 = {"update_ptr", "up", "down", "result_ptr", "gradient_ptr", "normed_ptr", "hidden_ptr", "d_hidden_ptr"}
ONES = [torch.ones(size) for size in (32, 32, (64, 32), 64, (32, 64), 32)]  # from scale to down_bias


def relative_error(value: Tensor, reference: Tensor) -> float:
    return float((value.double() - reference.double()).norm() / reference.double().norm())


def compare(tokens: tuple[int, ...], width: int, hidden: int, dtype: torch.dtype, device: str = "cpu") -> float:
    """The largest relative error of the result and of each gradient against float64."""
    torch.manual_seed(0)
    norm, linears = nn.LayerNorm(width), MLP(width, hidden / width)
    for parameter in [*norm.parameters(), *linears.parameters()]:
        nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 0.5)
    weights = [norm.weight, norm.bias, linears[0].weight, linears[0].bias, linears[2].weight, linears[2].bias]
    x, update = torch.randn(*tokens, width) + 1, torch.randn(*tokens, width)
    given = [t.detach().to(device).requires_grad_() for t in (x, update, *weights)]
    cast = [t.to(dtype) if i in (1, 4, 6) else t for i, t in enumerate(given)]
    got = torch.ops.titn.mlp(*cast)
    assert [t.dtype for t in got] == [torch.float32, dtype]
    gradients = torch.randn(*tokens, width), torch.randn(*tokens, width)
    got_gradients = torch.autograd.grad(got, given, [gradients[0].to(device), gradients[1].to(device, dtype)])
    norm.double(), linears.double()
    x, update = x.double().requires_grad_(), update.double().requires_grad_()
    wanted = x + update, linears(norm(x + update))
    wanted_gradients = torch.autograd.grad(wanted, [x, update, *weights], [t.double() for t in gradients])
    pairs = zip([*got, *got_gradients], [*wanted, *wanted_gradients], strict=True)
    return max(relative_error(a.detach().cpu(), b.detach()) for a, b in pairs)


@pytest.fixture
def on_cpu():
    """The operators, for tensors on a CPU: Triton's interpreter computes them."""
    with torch.library._scoped_library("titn", "IMPL") as library:
        for name in ("mlp", "mlp_backward"):
            library.impl(name, getattr(fused_layer_gpu, name), "CPU")
        yield


@offline.INTERPRETED
@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(("tokens", "width", "hidden"), SIZES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_equals_norm_and_mlp(tokens, width, hidden, dtype, bound):
    assert compare(tokens, width, hidden, dtype) < bound


@offline.INTERPRETED
@pytest.mark.usefixtures("on_cpu")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_stays_in_its_token():
    tokens = torch.randn(4, 32)
    tokens[2, 1] = float("nan")
    assert torch.ops.titn.mlp(tokens, tokens, *ONES)[1].isnan().any(dim=1).tolist() == [False, False, True, False]


@offline.INTERPRETED
@pytest.mark.usefixtures("on_cpu")
def test_a_layer_computes_the_same_with_it(monkeypatch):
    """Under autocast; the parameters' gradients are float32."""
    torch.manual_seed(0)
    layer, tokens = TransformerLayer(32, 2), torch.randn(2, 33, 32)

    def compute() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            output, _ = layer(tokens)
        return [output, *torch.autograd.grad(output.square().sum(), list(layer.parameters()))]

    wanted = compute()
    monkeypatch.setattr("titn_lib.kernels.dispatch.can_use_fused_mlp", lambda _: True)
    monkeypatch.setattr(type(layer.mlp), "forward", None)
    for got, plain in zip(compute(), wanted, strict=True):
        assert got.dtype == torch.float32
        assert relative_error(got.detach(), plain.detach()) < 3e-2


@offline.INTERPRETED
@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: vars(layer.mlp[1]).update(approximate="tanh"),
        lambda layer: vars(layer.mlp_norm).update(eps=1.0),
        lambda layer: setattr(layer, "mlp_norm", nn.LayerNorm(32, bias=False)),
        lambda layer: setattr(layer, "mlp", MLP(32, 0.75)),  # 24 hidden features don't make whole chunks
        lambda layer: setattr(layer, "mlp", nn.Sequential(*layer.mlp)),
        lambda layer: setattr(layer.mlp, "1", nn.ReLU()),
        lambda layer: layer.mlp[0].register_forward_hook(lambda *_: None),
        lambda layer: layer.mlp[0].bfloat16(),
    ],
)
def test_a_modified_mlp_runs_its_own_modules(monkeypatch, change):
    monkeypatch.setattr("titn_lib.kernels.dispatch.can_use_fused_mlp", lambda _: True)
    monkeypatch.setattr("titn_lib.kernels.dispatch.mlp", None)
    layer = TransformerLayer(32, 2)
    change(layer)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(2, 3, 32))


@offline.INTERPRETED
@pytest.mark.usefixtures("on_cpu")
def test_no_second_derivative():
    tokens = torch.randn(4, 32, requires_grad=True)
    with pytest.raises(TITNError, match="no second derivative"):
        torch.autograd.grad(torch.ops.titn.mlp(tokens, tokens, *ONES)[1].sum(), tokens, create_graph=True)


@offline.COMPILED
@pytest.mark.parametrize("width", [128, 192])
def test_fits_in_the_registers_of_a_gpu(width, tmp_path):
    """Nothing goes to the stack, and two programs of the forward pass fit on a processor of 65,536 registers."""
    plan = fused_layer_gpu.plan_mlp(torch.empty(4 * width, width, dtype=torch.bfloat16))
    found = []
    for kernel in (mlp_kernel, mlp_backward_kernel):
        types = {name: "*bf16" if name in BFLOAT16 else "*fp32" for name in kernel.arg_names} | {"tokens": "i32"}
        found.append(offline.compile_for(90, kernel, types, plan, tmp_path))
    assert [resources.stack for resources in found] == [0, 0]
    assert found[0].registers <= 128
    assert max(resources.shared for resources in found) < 64_000
    assert all("wgmma.mma_async" in resources.ptx for resources in found)


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "width", "hidden"), SIZES)
def test_gpu_equals_norm_and_mlp(tokens, width, hidden):
    assert compare(tokens, width, hidden, torch.bfloat16, "cuda") < 2e-2


@pytest.mark.gpu
def test_gpu_uses_the_kernel_for_titn():
    network = create_model("titn_paper").cuda()
    with torch.profiler.profile() as profile, torch.autocast("cuda", torch.bfloat16):
        network(torch.randn(2, 3, 32, 32, device="cuda")).class_logits.sum().backward()
    assert {"titn::mlp", "titn::mlp_backward"} <= {event.key for event in profile.key_averages()}
