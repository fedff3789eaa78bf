"""Training: recipes, runs, the training loop and records. `train(make_run("cifar10"), "runs/mine")` does it all."""

from titn_lib.training.config import Recipe, Run
from titn_lib.training.evaluation import evaluate
from titn_lib.training.optim import learning_rate, make_optimizer
from titn_lib.training.recipes import make_run, published_recipe, student_recipe, teacher_recipe
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
    "train",
    "train_comparison",
]
