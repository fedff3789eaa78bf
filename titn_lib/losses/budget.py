"""AdaViT's loss: a budget for the share of open gates."""

from titn_lib.data.mixing import MixedTargets
from titn_lib.data.transforms import Images
from titn_lib.errors import TITNError
from titn_lib.losses.distillation import TeacherOutput
from titn_lib.losses.objective import LossAndLogits, Objective
from titn_lib.models.related.adavit import AdaViT


class BudgetObjective(Objective):
    """Adds 2 · ((patches − γ)² + |heads − γ| + |sublayers − γ|) to the loss of `Objective` (arXiv 2111.15668).

    Each term compares γ (`AdaViTConfig.budget`) with the share of gates that are open. The weights are those of the
    published code. There, the class token also counts as a patch, and heads count only where a sublayer is open.
    """

    CAPTURABLE = True

    def forward(
        self, images: Images, targets: MixedTargets, teacher_output: TeacherOutput | None = None
    ) -> LossAndLogits:
        """Returns the loss and the network's logits, as `Objective.forward`.

        Raises:
            TITNError: the network has no gates.
        """
        if not isinstance(self.network, AdaViT):
            raise TITNError(f"{self.network.config.name} has no gates to close: choose adavit_nano for 'budget'")
        loss, logits = super().forward(images, targets, teacher_output)
        patches, heads, sublayers = (gates.mean() - self.network.config.budget for gates in self.network.last_gates)
        return loss + 2 * (patches.square() + heads.abs() + sublayers.abs()), logits
