"""AdaViT's loss: a budget for the share of open gates."""

from titn_lib.data.mixing import MixedTargets
from titn_lib.data.transforms import Images
from titn_lib.errors import TITNError
from titn_lib.losses.distillation import TeacherOutput
from titn_lib.losses.objective import LossAndLogits, Objective
from titn_lib.models.related.adavit import AdaViT


class BudgetObjective(Objective):
    """`Objective`, and 2 · ((patches − γ)² + |heads − γ| + |sublayers − γ|) of the shares of open gates, as in the
    published code. (There the class token counts as a patch, and heads only where a sublayer is open.)"""

    def forward(
        self, images: Images, targets: MixedTargets, teacher_output: TeacherOutput | None = None
    ) -> LossAndLogits:
        """As `Objective.forward`; raises TITNError also for a network without gates."""
        if not isinstance(self.network, AdaViT):
            raise TITNError(f"{self.network.config.name} has no gates to close: choose adavit_nano for 'budget'")
        loss, logits = super().forward(images, targets, teacher_output)
        patches, heads, sublayers = (kind.mean() - self.network.config.budget for kind in self.network.last_gates)
        return loss + 2 * (patches.square() + heads.abs() + sublayers.abs()), logits
