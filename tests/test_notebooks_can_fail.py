"""A notebook that can't fail checks nothing: it must fail with a fault planted in the library, and never by chance."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nbval.kernel
import pytest

TOP = Path(__file__).parent.parent
FAULTS = {
    "no scale in the attention": (
        "models/layers.py", "return query * self.scale, key", "return query, key", "02_inner_attention",
        "Cell outputs differ",
    ),
    "a softmax over the wrong axis": (
        "models/layers.py", "transpose(-2, -1)).softmax(dim=-1)", "transpose(-2, -1)).softmax(dim=-2)",
        "02_inner_attention", "Cell outputs differ",
    ),
    "a teacher in training mode": (
        "losses/distillation.py", "return teacher.eval()", "return teacher.train()", "07_distillation",
        "the teacher is in training mode",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_makes_a_notebook_fail(fault, tmp_path):
    """In the cell that shows it; the cells before pass."""
    file, right, wrong, notebook, says = FAULTS[fault]
    shutil.copytree(TOP / "titn_lib", tmp_path / "titn_lib")
    source = tmp_path / "titn_lib" / file
    text = source.read_text()
    assert text.count(right) == 1
    source.write_text(text.replace(right, wrong))
    for name in ("pyproject.toml", "experiments", "results"):
        (tmp_path / name).symlink_to(TOP / name)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-q", "-x", "-p", "no:cacheprovider",
         f"notebooks/{notebook}.ipynb"],
        cwd=TOP, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout[-2000:]
    assert re.search(r"\b1 failed, \d+ passed\b", done.stdout), done.stdout[-2000:]
    assert says in done.stdout, done.stdout[-2000:]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no socket files")
def test_a_kernel_listens_on_no_port(monkeypatch, request):
    """Another process could take the port before the kernel has started: a notebook would fail now and then."""
    monkeypatch.setattr(nbval.kernel, "KernelManager", None)
    runpy.run_path(str(TOP / "notebooks" / "conftest.py"))["pytest_configure"](request.config)
    manager, client = nbval.kernel.start_new_kernel(kernel_name=nbval.kernel.CURRENT_ENV_KERNEL_NAME)
    sockets = [file for file in Path(manager.ip).parent.iterdir() if file.is_socket()]
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    assert len(sockets) == 5  # shell, iopub, stdin, control, heartbeat
