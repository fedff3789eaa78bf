"""Distillation losses between a student's patch tokens and a teacher's feature maps.

feature     match the feature maps themselves. The TITN abstract says "distillation within the feature extraction
            layer". Its published code has no such term, so the form is ours, after Li et al. 2022.
manifold    match the similarities between patches (Hao et al. 2022)
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib.errors import TITNError
from titn_lib.losses.distillation import LOGIT_LOSSES
from titn_lib.models.base import Classifier, TokenClassifier
from titn_lib.models.inference import eval_mode
from titn_lib.models.teachers import BUILDERS, Teacher


class FeatureDistillationLoss(nn.Module):
    """Base class of losses between a student's patch tokens and a teacher's feature maps.

    Three of the student's blocks (at one third, two thirds and all of its depth) are paired with the teacher's last
    three stages. Adaptive average pooling resizes each map to the grid of patches. A subclass defines `pair_loss`.
    """

    WEIGHTED = False  # whether the recipe's feature_weight multiplies the loss

    def __init__(self, student: TokenClassifier, teacher: Teacher):
        super().__init__()
        size = (teacher.config.in_channels, *teacher.config.image_size)
        with torch.no_grad(), eval_mode(teacher):
            example = next(teacher.parameters()).new_zeros(1, *size)
            channels = [feature_map.shape[1] for feature_map in teacher.forward_features(example)]
        depth, stages = student.config.depth, len(channels)
        self.pairs = [(max(0, round(depth * part / 3) - 1), stages - 4 + part) for part in (1, 2, 3)]
        self.channels = [channels[stage] for _, stage in self.pairs]
        self.grid, self.patches = student.config.grid, student.config.num_patches

    def match_features(
        self,
        hidden_states: list[Float[Tensor, "batch token width"]],
        maps: list[Float[Tensor, "batch _channel _height _width"]],
    ) -> list[tuple[Float[Tensor, "batch patch width"], Float[Tensor, "batch patch _channel"]]]:
        """For each pair, the student's patch tokens and the teacher's features at the same patches."""
        return [
            (
                hidden_states[block][:, 1 : 1 + self.patches],
                rearrange(F.adaptive_avg_pool2d(maps[stage], self.grid), "batch channel y x -> batch (y x) channel"),
            )
            for block, stage in self.pairs
        ]

    def pair_loss(
        self,
        index: int,
        student: Float[Tensor, "batch patch width"],
        teacher: Float[Tensor, "batch patch _channel"],
    ) -> Float[Tensor, ""]:
        """The loss of one pair. `index` (0, 1 or 2) is the pair's position."""
        raise NotImplementedError

    def forward(
        self,
        hidden_states: list[Float[Tensor, "batch token width"]],
        maps: list[Float[Tensor, "batch _channel _height _width"]],
    ) -> Float[Tensor, ""]:
        """The mean loss over the pairs.

        Args:
            hidden_states: the student's tokens after every block, the class token first.
            maps: the teacher's feature maps, one for each stage.
        """
        pairs = enumerate(self.match_features(hidden_states, maps))
        return torch.stack([self.pair_loss(index, *pair) for index, pair in pairs]).mean()


class FeatureLoss(FeatureDistillationLoss):
    """The mean squared error between projected patch tokens and the teacher's feature maps.

    A Linear projects each token to the channels of the map. Both are standardized over channels (LayerNorm without
    parameters), and their mean squared error is averaged over pairs. Standardizing and averaging are ours. Li et al.
    (2022, locality guidance) project in the same way, but sum the errors of three pairs without standardizing, with a
    weight of 2.5. Standardizing makes the loss independent of the teacher's scale. It starts near 2 for unrelated
    features and is 0 for a perfect match.
    """

    WEIGHTED = True

    def __init__(self, student: TokenClassifier, teacher: Teacher):
        super().__init__(student, teacher)
        self.projections = nn.ModuleList(nn.Linear(student.token_width, channels) for channels in self.channels)

    def pair_loss(
        self,
        index: int,
        student: Float[Tensor, "batch patch width"],
        teacher: Float[Tensor, "batch patch _channel"],
    ) -> Float[Tensor, ""]:
        projected = self.projections[index](student)
        channels = teacher.shape[-1:]
        return F.mse_loss(F.layer_norm(projected, channels), F.layer_norm(teacher, channels))


class ManifoldLoss(FeatureDistillationLoss):
    """The squared error between the student's and the teacher's matrices of cosine similarities (Hao et al. 2022).

    There are three matrices: between the patches of an image, between the images at one patch position, and between
    `SAMPLE` tokens drawn from the whole batch. Student and teacher may have different widths. Hao et al. distill from a
    transformer; pairing with the feature maps of a CNN is ours.
    """

    WITHIN, BETWEEN, SAMPLED = 4.0, 0.1, 0.2  # weights, as published
    SAMPLE = 192

    def pair_loss(
        self,
        index: int,
        student: Float[Tensor, "batch patch width"],
        teacher: Float[Tensor, "batch patch _channel"],
    ) -> Float[Tensor, ""]:
        chosen = torch.randperm(student.shape[0] * student.shape[1], device=student.device)[: self.SAMPLE]
        return (
            self.WITHIN * similarity_mse(student, teacher)
            + self.BETWEEN * similarity_mse(student.transpose(0, 1), teacher.transpose(0, 1))
            + self.SAMPLED * similarity_mse(student.flatten(0, 1)[chosen], teacher.flatten(0, 1)[chosen])
        )


def similarity_mse(student: Float[Tensor, "*group row width"], teacher: Float[Tensor, "*group row _width"]) -> Tensor:
    """The mean squared error between the cosine similarities of all pairs of rows."""
    student, teacher = (F.normalize(rows.float(), dim=-1) for rows in (student, teacher))
    return F.mse_loss(student @ student.mT, teacher @ teacher.mT)


FEATURE_LOSSES: dict[str, type[FeatureDistillationLoss]] = {"feature": FeatureLoss, "manifold": ManifoldLoss}


def no_feature_maps(loss: str) -> TITNError:
    """The error for a teacher that has only logits."""
    return TITNError(
        f"the loss {loss!r} needs a teacher with feature maps: use one of {', '.join(BUILDERS)}, or the loss 'hard' or "
        "'soft'"
    )


def no_patch_tokens(network: Classifier, loss: str) -> TITNError:
    """The error for a student that has only logits."""
    return TITNError(
        f"{network.config.name} has no patch tokens for the loss {loss!r}: choose a TITN, TNT or ViT, or another loss "
        f"({', '.join(LOGIT_LOSSES)})"
    )
