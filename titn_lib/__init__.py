"""Learn, run and extend transformer-in-transformer networks with knowledge distillation.

    model = titn_lib.create_model("titn_paper", num_classes=100)
    logits, attention = model.eval()(images, return_attention=True)

The folders, in the order in which they build on each other: data and kernels; models; losses; training; experiments.
interpret explains a trained model, plots draws figures, course holds what the notebooks share.
"""

from typing import TYPE_CHECKING, Any

from titn_lib.data.datasets import load_dataset
from titn_lib.data.images import load_image
from titn_lib.errors import TITNError, TrainingInterrupted
from titn_lib.losses.distillation import distillation_loss
from titn_lib.models.inference import predict
from titn_lib.models.registry import count_macs, count_parameters, create_model, list_models
from titn_lib.models.titn import TITN, TITNConfig
from titn_lib.models.weights import list_pretrained, load_model, save_model

if TYPE_CHECKING:
    from titn_lib.training import Recipe, make_run, train, train_comparison

__all__ = [
    "TITN",
    "Recipe",
    "TITNConfig",
    "TITNError",
    "TrainingInterrupted",
    "count_macs",
    "count_parameters",
    "create_model",
    "distillation_loss",
    "list_models",
    "list_pretrained",
    "load_dataset",
    "load_image",
    "load_model",
    "make_run",
    "predict",
    "save_model",
    "train",
    "train_comparison",
]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Training is imported when it is first asked for: using a model must not need Lightning Fabric."""
    if name in ("Recipe", "make_run", "train", "train_comparison"):
        from titn_lib import training

        return getattr(training, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """All names, for completion."""
    return sorted({*globals(), *__all__})
