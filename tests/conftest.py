"""Shapes in the signatures are checked in every test: jaxtyping with beartype, before titn_lib is first imported."""

import importlib.util
import os
import sys
from pathlib import Path

from jaxtyping import install_import_hook

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes, one a core: one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if importlib.util.find_spec("triton"):  # it compiles functions from their source, without the checks
    name = "titn_lib.kernels.fused_layer_triton"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / f"{name.replace('.', '/')}.py")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
install_import_hook("titn_lib", "shape_check.check")

import pytest  # noqa: E402
import torch  # noqa: E402

os.environ.setdefault("TQDM_DISABLE", "1")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def real_data() -> Path:
    """The folder with the real MNIST and CIFAR, where they are."""
    from titn_lib.data.datasets import data_dir

    if not (data_dir() / "cifar-10-batches-py").exists():
        pytest.skip("the real CIFAR and MNIST files are not here (TITN_DATA)")
    return data_dir()
