"""Learn, run and extend transformer-in-transformer networks with knowledge distillation.

    model = titn_lib.create_model("titn_paper", num_classes=100)
    logits, attention = model.eval()(images, return_attention=True)

The rest of the library reads in this order: transformer, titn, vit, teachers, models, distillation, datasets, augment,
recipes, records, training, figures.
"""

from titn_lib.errors import TITNError
from titn_lib.models.registry import count_macs, count_parameters, create_model, list_models
from titn_lib.models.weights import list_weights, load_model, save_model

__all__ = [
    "TITNError",
    "count_macs",
    "count_parameters",
    "create_model",
    "list_models",
    "list_weights",
    "load_model",
    "save_model",
]
__version__ = "0.1.0"
