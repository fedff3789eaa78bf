"""ONNX files give the same logits. Needs onnx, onnxscript and onnxruntime, which are not among the dependencies."""

import subprocess
import sys

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SCRIPT = """
import sys, onnxruntime, torch, titn_lib
name, dynamo = sys.argv[1], sys.argv[2] == "dynamo"
model = titn_lib.load_model(name)
images = torch.rand(5, model.config.in_channels, *model.config.image_size)
sizes = {"dynamic_axes": {"images": {0: "batch"}}}
if dynamo:
    sizes = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
torch.onnx.export(model, (images[:2],), "m.onnx", dynamo=dynamo, verbose=False, input_names=["images"], **sizes)
session = onnxruntime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
for count in (1, 5):
    (logits,) = session.run(None, {"images": images[:count].numpy()})
    print(torch.allclose(torch.from_numpy(logits), model(images[:count]), rtol=1e-4, atol=1e-5))
"""


@pytest.mark.parametrize(
    "arguments", ["titn_nano.digits torchscript", "titn_nano.digits dynamo", "titn_mini-local.cifar10 torchscript"]
)
def test_logits_of_an_onnx_file(arguments, tmp_path):
    """In a process of its own: tracing passes tensors where the tests' checks of types want numbers."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, *arguments.split()]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert run.stdout.splitlines()[-2:] == ["True", "True"], run.stderr
