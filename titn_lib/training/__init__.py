"""Training: recipes, runs, the training loop and records. `train(make_run("cifar10"), "runs/mine")` does it all."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from titn_lib.training.config import Recipe, Run
from titn_lib.training.recipes import make_run, published_recipe, student_recipe, teacher_recipe, teacher_run

if TYPE_CHECKING:
    from titn_lib.training.evaluation import evaluate
    from titn_lib.training.optim import learning_rate, make_optimizer
    from titn_lib.training.records import RunResult, load_record
    from titn_lib.training.run import train, train_comparison

__all__ = [
    "Recipe",
    "Run",
    "RunResult",
    "evaluate",
    "learning_rate",
    "load_record",
    "make_optimizer",
    "make_run",
    "published_recipe",
    "student_recipe",
    "teacher_recipe",
    "teacher_run",
    "train",
    "train_comparison",
]
_LAZY = {
    "RunResult": "records",
    "evaluate": "evaluation",
    "learning_rate": "optim",
    "load_record": "records",
    "make_optimizer": "optim",
    "train": "run",
    "train_comparison": "run",
}


def __getattr__(name: str) -> Any:
    """What trains is imported when it is first asked for: Lightning Fabric takes seconds."""
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """All names, for completion."""
    return sorted({*globals(), *__all__})
