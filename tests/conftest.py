"""Shapes in the signatures are checked in every test: jaxtyping with beartype, before titn_lib is first imported."""

import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("TQDM_DISABLE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes, one a core: one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]

# The files that take longest, the longest first. If they came last, one process would wait for the other.
FIRST = [
    "15_related_cost.ipynb", "13_related_convolutions.ipynb", "00_start_here.ipynb", "14_related_training.ipynb",
    "12_related_attention.ipynb", "06_a_run_goes_wrong.ipynb", "10_your_images.ipynb", "09_attention.ipynb",
    "16_claims.ipynb", "test_training.py", "test_explorer_browser.py", "test_adavit.py", "test_interpreter.py",
    "test_notebooks_can_fail.py", "test_cuda_graph.py", "test_launches.py", "test_own_folder.py", "05_teacher.ipynb",
    "test_ex06_a_run_goes_wrong.py", "test_kernels.py",
]  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Have the shapes checked in all modules. The process that only hands out the tests needs none of this."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return

    gc.disable()  # until all is imported (below), which is then frozen to the end
    config.add_cleanup(gc.unfreeze)

    # Before the hook, which lets Python compile anew whatever is first imported below a checked module: ten seconds.
    import torch

    if "TRITON_INTERPRET" not in os.environ:  # the kernels need nothing else
        import ipywidgets  # noqa: F401
        import lightning_fabric  # noqa: F401
        import seaborn  # noqa: F401
        import sklearn.datasets  # noqa: F401
        import timm  # noqa: F401
        import torch._dynamo  # noqa: F401
    from jaxtyping import install_import_hook

    files = [file.relative_to(ROOT).with_suffix("") for file in (ROOT / "titn_lib").rglob("*.py")]
    checked = [".".join(file.parts) for file in files if file.name != "__init__" and not file.name.endswith("_triton")]
    install_import_hook(checked, "shape_check.check")  # Triton compiles functions from their source, without checks


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no GPU"))
    gc.freeze()  # what is there now stays, and needn't be looked at again
    gc.enable()


@pytest.fixture(autouse=True)
def seeded() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the checks of shapes and types, which would raise their own errors before the library does."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def compiler(unchecked: None) -> Iterator[dict]:
    """What torch.compile counts from now on. It can't see through the checks, so they are off."""
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with warnings.catch_warnings(action="ignore"):
        yield torch._dynamo.utils.counters
    torch._dynamo.reset()


@pytest.fixture
def real_data() -> Path:
    """The folder with the real MNIST and CIFAR, where they are."""
    from titn_lib.data.datasets import data_dir

    if not (data_dir() / "cifar-10-batches-py").exists():
        pytest.skip("the real CIFAR and MNIST files are not here (TITN_DATA)")
    return data_dir()
