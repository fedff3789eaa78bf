"""Networks by name: students, related systems, teachers.

- titn.py: TITN and TNT, the architecture in code; titn_presets.py: their sizes.
- vit.py: ViT and distilled ViT, the baselines of the paper.
- teachers.py: convolutional teachers.
- related/: other systems from the literature, one file each.
- layers.py: attention, MLP, layer, heads. base.py: the base classes.
- external.py: networks from elsewhere, timm's and your own.
- registry.py: models by name. weights.py: files. inference.py: predictions.
- hub.py, timm_models.py: the same models on the Hugging Face Hub and in timm; optional, imported by name only.
"""

from titn_lib.models import titn_presets, vit  # noqa: F401  they register their models, in the order of list_models

from titn_lib.models import related, teachers  # noqa: F401  # isort: skip
from titn_lib.models.external import ExternalTeacher
from titn_lib.models.inference import predict
from titn_lib.models.registry import count_macs, count_parameters, create_model, list_models, register_model
from titn_lib.models.teachers import Teacher, TeacherConfig
from titn_lib.models.titn import TITN, TITNConfig
from titn_lib.models.vit import ViT, ViTConfig
from titn_lib.models.weights import list_pretrained, load_model, save_model

__all__ = [
    "TITN",
    "ExternalTeacher",
    "TITNConfig",
    "Teacher",
    "TeacherConfig",
    "ViT",
    "ViTConfig",
    "count_macs",
    "count_parameters",
    "create_model",
    "list_models",
    "list_pretrained",
    "load_model",
    "predict",
    "register_model",
    "save_model",
]
