"""Settings for `pytest --nbval`.

On a busy machine a cell's last output may take longer than the five seconds that nbval waits, so the timeout is raised.
Tests run in one process per core, so each kernel gets one thread.

A kernel listens on TCP ports that were free when jupyter_client looked. Until the kernel has started, a second later,
another process can take one, and the kernel dies. So kernels listen on socket files in a folder of their own.
"""

import os
import tempfile
from functools import partial

import nbval.kernel
from jupyter_client.manager import KernelManager

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config):
    if os.name == "posix":  # Windows has no such files
        folder = tempfile.TemporaryDirectory(prefix="kernel-")
        config.add_cleanup(folder.cleanup)
        nbval.kernel.KernelManager = partial(KernelManager, transport="ipc", ip=os.path.join(folder.name, "kernel"))


def pytest_collection_modifyitems(items):
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = 120
