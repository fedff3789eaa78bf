"""The number of kernels in a training step on a GPU, counted without one (`benchmarks/launches.py`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is for Linux")
ROOT = Path(__file__).parents[2]
CODE = """
import json
import launches
import torch
from titn_lib.losses.objective import Objective

print(json.dumps(launches.count_launches(depth=2, teacher=False)))
print(json.dumps([torch._dynamo.utils.counters["stats"]["unique_graphs"], torch._dynamo.utils.counters["graph_break"]]))
launches.compile_blocks = lambda *_, **__: None  # compiled or not, a step must not wait
forward = Objective.forward
Objective.forward = lambda *given: (lambda out: out[0].item() and out)(forward(*given))
try:
    launches.count_launches(depth=1, teacher=False)
except Exception as problem:
    print(str(problem).splitlines()[0])
"""


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """In a process of its own, because torch.compile would trace the checks of shapes, too."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    result = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_a_block_takes_few_launches(printed):
    """Of two blocks: three products forward and eight backward, the kernels, and what is left of all else.

    91 would be with one for each layer's parameters in place of one for both, 94 without kernels combined at any
    distance.
    """
    counts = json.loads(printed[0])
    assert counts["forward: products and convolutions"] == 2 * 3 + 3  # embedding and two heads
    assert counts["backward: products and convolutions"] == 2 * 8 + 5  # the embedding's input needs no gradient
    for name in ("layer", "attention", "mlp"):
        assert counts[f"forward: titn::{name}"] == counts[f"backward: titn::{name}_backward"] == 2
    assert sum(counts.values()) <= 89


def test_little_is_launched_outside_compiled_code(printed):
    """The images' dtype and the optimizer; before that the batch and its copy."""
    counts = json.loads(printed[0])
    assert {name for name in counts if ":" not in name} == {"_to_copy", "_fused_sgd_"}
    batch = {name.removeprefix("augmentation: "): n for name, n in counts.items() if name.startswith("augmentation: ")}
    assert batch.pop("copy_") + batch.pop("_foreach_copy_") + batch.pop("fill_") == 4  # to the CUDA graph's inputs
    assert batch.pop("_to_copy") == 1  # from the host
    assert batch == {"index": 3, "crop_flip_kernel": 1, "operation_kernel": 2, "mix_normalize_kernel": 1}


def test_each_part_is_one_graph(printed):
    """The objective and the metrics, with no graph break."""
    assert json.loads(printed[1]) == [2, {}]


def test_a_step_that_waits_is_noticed(printed):
    assert "_local_scalar" in printed[2]  # what PyTorch calls `item()`


def test_the_record_is_of_the_published_depth():
    record = json.loads((ROOT / "benchmarks" / "launches.json").read_text())
    assert record["launches"] == sum(record["parts"].values()) < 350
    assert record["parts"]["forward: titn::layer"] == 12
