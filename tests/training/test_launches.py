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
from titn_lib.losses.objective import Objective

print(json.dumps(launches.count_launches(depth=1, teacher=False)))
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
    """Five products forward and ten backward, each stream's kernel, and what is left of all else."""
    counts = json.loads(printed[0])
    assert counts["forward: products and convolutions"] == 5 + 3  # embedding and two heads
    assert counts["backward: products and convolutions"] == 10 + 5  # the embedding's input needs no gradient
    assert [counts[f"forward: titn::{name}"] for name in ("layer", "attention")] == [1, 1]
    assert [counts[f"backward: titn::{name}_backward"] for name in ("layer", "attention")] == [2, 1]
    assert counts["_fused_sgd_"] == 1
    assert sum(counts.values()) <= 75


def test_a_step_that_waits_is_noticed(printed):
    assert "_local_scalar" in printed[1]  # what PyTorch calls `item()`


def test_the_record_is_of_the_published_depth():
    record = json.loads((ROOT / "benchmarks" / "launches.json").read_text())
    assert record["launches"] == sum(record["parts"].values()) <= 460
    assert record["parts"]["forward: titn::layer"] == 12
