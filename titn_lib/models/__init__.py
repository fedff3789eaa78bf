"""Networks: students, teachers and related systems, by name."""

from titn_lib.models.inference import predict
from titn_lib.models.registry import count_macs, count_parameters, create_model, list_models
from titn_lib.models.weights import list_pretrained, load_model, save_model

__all__ = [
    "count_macs",
    "count_parameters",
    "create_model",
    "list_models",
    "list_pretrained",
    "load_model",
    "predict",
    "save_model",
]
