"""Every objective by name."""

from titn_lib.losses.budget import Budgeted
from titn_lib.losses.contrastive import Contrastive, HeadsOnly
from titn_lib.losses.objective import Objective
from titn_lib.losses.relabeling import Relabelling

OBJECTIVES: dict[str, type[Objective]] = {
    "classification": Objective,
    "budgeted": Budgeted,
    "contrastive": Contrastive,
    "heads": HeadsOnly,
    "relabelling": Relabelling,
}
