"""Shapes in the signatures are checked in every test: jaxtyping with beartype, before titn_lib is first imported."""

import os
from pathlib import Path

from jaxtyping import install_import_hook

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes, one a core: one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]
FILES = [file.relative_to(ROOT).with_suffix("") for file in (ROOT / "titn_lib").rglob("*.py")]
CHECKED = [".".join(file.parts) for file in FILES if file.name != "__init__" and not file.name.endswith("_triton")]
install_import_hook(CHECKED, "shape_check.check")  # Triton compiles functions from their source, without checks

import pytest  # noqa: E402
import torch  # noqa: E402

os.environ.setdefault("TQDM_DISABLE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no GPU"))


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
