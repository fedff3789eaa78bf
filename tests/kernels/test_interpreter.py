"""The Triton kernels give the right values in Triton's interpreter, which needs no GPU."""

from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is for Linux")
import offline

FILES = ["test_fused_layer_triton.py", "test_augment_triton.py", "test_mlp_triton.py"]


@offline.COMPILED
def test_in_interpreter():
    """All files in one process: its start takes as long as a third of the tests."""
    passed = offline.run_interpreted(*(str(Path(__file__).with_name(file)) for file in FILES))
    assert "44 passed" in passed
