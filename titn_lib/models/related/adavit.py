"""AdaViT: compute only what the image needs (Meng et al. 2022, arXiv 2111.15668), in TITN's streams.

Before a block, linear gate networks decide for every image which parts of the block are computed. The class token
decides on each head and each sublayer (attention, MLP), each patch token on its own patch.

    s = σ((ℓ + g₁ − g₂) / τ)      ℓ a gate's logit, g₁ and g₂ Gumbel noise, τ = 5; in evaluation s = σ(ℓ)
    gate = 1 if s > ½ else 0      straight-through: the gradient is that of s; for a patch, s > `patch_threshold`
    x = x + sublayer's gate · patch's gate · f(x)      each head's output times its gate; closed patches are no keys

A closed patch keeps its token, and the next block may open it again. Training computes everything and multiplies by the
gates. So does a forward pass that returns attention, of closed heads and sublayers, too. Evaluation skips closed
patches and sublayers, and its output is the same.

Published, in paper and code: gate networks, gates, masks; no gates for heads and sublayers in the first block, whose
class token doesn't depend on the image yet; the loss of `BudgetObjective`; more than twice the efficiency for 0.8
percentage points of accuracy on ImageNet. In the code a patch's gate opens above 0.6, in `adavit_nano` above ½. Ours:
TITN's streams. A closed patch runs no inner layer, gets no pixel update and keeps its pixel tokens. The first block has
no gates at all, all gate networks take LN(token), and closed heads don't affect the MLP. Gates start open (logits of
2): in evaluation, a model with the weights of a trained TITN is that TITN. `interpret` treats all patches as open.
`adavit_nano` is `titn_nano` with gates: 0.74 M parameters, 55 M MACs.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib.errors import TITNError
from titn_lib.models import titn
from titn_lib.models.layers import adopt_children
from titn_lib.models.registry import register_model
from titn_lib.models.titn_presets import NANO
from titn_lib.torch_compat import is_tracing

TAU = 5.0  # the temperature
INITIAL_LOGIT = 2.0  # of every gate: open
Inner = Float[Tensor, "batch patch pixel inner_width"]
Outer = Float[Tensor, "batch token outer_width"]
Streams = tuple[Inner, Outer, Tensor | None, Tensor | None]  # with their attention


@dataclass(frozen=True)
class AdaViTConfig(titn.TITNConfig):
    """The settings of a TITN, and two more."""

    budget: float = 0.5  # γ, the fraction of open gates that the loss "budget" aims at
    patch_threshold: float = 0.5  # a patch's gate opens where s exceeds it

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 2:
            raise TITNError("the first block has no gates: choose a depth of 2 or more")
        for setting in ("local_perception", "mlp_convolution"):
            if getattr(self, setting):
                raise TITNError(
                    f"AdaViT skips closed patches, which a convolution over patches needs: set {setting}=False"
                )
        if not self.inner_layers:
            raise TITNError("AdaViT's gates skip inner layers: set inner_layers=True")
        if not 0 < self.patch_threshold < 1:
            raise TITNError(f"patch_threshold must be between 0 and 1, not {self.patch_threshold!r}")


class Gates(NamedTuple):
    """1 for open, 0 for closed; of one block, or of the second to the last block."""

    patches: Float[Tensor, "*block batch patch"]
    heads: Float[Tensor, "*block batch head"]
    sublayers: Float[Tensor, "*block batch 2"]  # attention, MLP


def gate(logits: Float[Tensor, "*any"], training: bool, threshold: float = 0.5) -> Float[Tensor, "*any"]:
    """float32 gates of these logits: Gumbel noise and straight-through gradients in training, else a threshold."""
    if not training:
        return (logits > math.log(threshold / (1 - threshold))).float()  # σ(ℓ) > threshold
    first, second = -torch.empty(2, *logits.shape, device=logits.device).exponential_().log()
    soft = ((logits.float() + first - second) / TAU).sigmoid()
    return (soft > threshold).float() + (soft - soft.detach())


class AdaptiveBlock(titn.Block):
    """A block of TITN with gates; it adopts the modules of TITN's block with their weights."""

    def __init__(self, block: nn.Module, config: AdaViTConfig):
        adopt_children(self, block)
        self.last_gates: Gates | None = None  # of the last forward pass
        self.tokens_after = int(config.distillation_token)  # number of outer tokens after the patches
        self.patch_threshold = config.patch_threshold
        sizes = {"patches": 1, "heads": config.outer_heads, "sublayers": 2}
        self.nets = nn.ModuleDict({kind: nn.Linear(config.outer_width, size) for kind, size in sizes.items()})
        for name, parameter in self.nets.named_parameters():
            nn.init.constant_(parameter, INITIAL_LOGIT if name.endswith("bias") else 0.0)

    def compute_gates(self, outer: Outer) -> Gates:
        tokens = self.outer.attention_norm(outer)
        patches = self.nets["patches"](tokens[:, 1 : tokens.shape[1] - self.tokens_after])[..., 0]
        logits = [patches, self.nets["heads"](tokens[:, 0]), self.nets["sublayers"](tokens[:, 0])]
        thresholds = [self.patch_threshold, 0.5, 0.5]
        return Gates(*(gate(x, self.training, t).to(outer.dtype) for x, t in zip(logits, thresholds, strict=True)))

    def forward(self, inner: Inner, outer: Outer, return_attention: bool = False) -> Streams:
        """As `titn.Block.forward`. In evaluation, images with the same open sublayers are computed together, with as
        many patches as the image with the most open ones."""
        gates = self.compute_gates(outer)
        if is_tracing():  # no data-dependent branches and no side effects under export and vmap
            return self.compute(inner, outer, gates, return_attention, all_sublayers=True)
        self.last_gates = gates
        if self.training or return_attention or outer.is_meta:
            return self.compute(inner, outer, gates, return_attention, all_sublayers=True)
        inner = inner.clone()
        outer = outer.clone()
        kept = F.pad(gates.patches, (1, self.tokens_after), value=1.0)
        order = kept.argsort(dim=1, descending=True, stable=True)
        for sublayers in gates.sublayers.unique(dim=0):
            group = (gates.sublayers == sublayers).all(dim=1).nonzero()  # "image 1"
            tokens = order[group[:, 0], : int(kept[group[:, 0]].sum(dim=1).max())].sort(dim=1).values
            patches = tokens[:, 1 : tokens.shape[1] - self.tokens_after] - 1
            open_gates = Gates(gates.patches[group, patches], gates.heads[group[:, 0]], gates.sublayers[group[:, 0]])
            new_inner, new_outer, *_ = self.compute(inner[group, patches], outer[group, tokens], open_gates)
            inner[group, patches] = new_inner
            outer[group, tokens] = new_outer
        return inner, outer, None, None

    def __getstate__(self) -> dict:
        return {**vars(self), "last_gates": None}  # gates hold an autograd graph, which can't be copied or saved

    def compute(
        self, inner: Inner, outer: Outer, gates: Gates, return_attention: bool = False, all_sublayers: bool = False
    ) -> Streams:
        """Compute the block and multiply by the gates. Sublayers that are closed for all images are skipped unless
        `all_sublayers` is set."""
        layer = self.outer
        attention = None
        patches = gates.patches[..., None]
        heads = gates.heads[..., None, None]
        kept = F.pad(patches, (0, 0, 1, self.tokens_after), value=1.0)  # class and distillation token are always open
        attn_gate, mlp_gate = (kept[:, None] * gates.sublayers[..., None, None]).unbind(dim=1)
        new_inner, normed, inner_attention = self.forward_inner(inner, return_attention)
        inner = patches[..., None] * new_inner + (1 - patches[..., None]) * inner
        outer = self.add_pixel_update(outer, patches * self.projection.project(normed))
        if all_sublayers or attn_gate.any():
            query, key, value = layer.attn.split(layer.attn.qkv(layer.attention_norm(outer)))
            itself = torch.eye(kept.shape[1]).to(kept)  # a closed patch attends to itself
            visible = kept * kept.transpose(-2, -1) + itself
            scores = (query @ key.transpose(-2, -1)).masked_fill(visible[:, None] == 0, -torch.inf)
            attention = scores.softmax(dim=-1)
            outer = outer + layer.drop_path(attn_gate * layer.attn.join(heads * (attention.to(value.dtype) @ value)))
        if all_sublayers or mlp_gate.any():
            outer = outer + layer.drop_path(mlp_gate * layer.mlp(layer.mlp_norm(outer)))
        return inner, outer, inner_attention, attention if return_attention else None


class AdaViT(titn.TITN):
    """A TITN with gates in all blocks but the first."""

    config: AdaViTConfig
    adaptive = True

    def __init__(self, config: AdaViTConfig):
        super().__init__(config)
        first, *others = self.blocks
        self.blocks = nn.ModuleList([first, *(AdaptiveBlock(block, config) for block in others)])

    @property
    def last_gates(self) -> Gates:
        """The gates of the last forward pass, for each of its images; TITNError before the first."""
        gates = [block.last_gates for block in self.blocks[1:]]
        if None in gates:
            raise TITNError("there are no gates before the first forward pass: call the model first")
        return Gates(*(torch.stack(kind) for kind in zip(*gates, strict=True)))

    def saved_macs(self, gates: Gates | None = None) -> Int64[Tensor, " batch"]:
        """How many of the `count_macs(model)` MACs the closed gates save for each image.

        Args:
            gates: by default those of the last forward pass.
        """
        gates = gates or self.last_gates
        config = self.config
        inner = config.inner_width
        outer = config.outer_width
        head_width = config.outer_head_width or outer // config.outer_heads
        inner_heads = config.inner_heads * (config.inner_head_width or inner // config.inner_heads)
        pixels = config.num_pixel_tokens
        pixel = inner_heads * (4 * inner + 2 * pixels) + inner * (2 * int(inner * config.mlp_ratio) + outer)

        def cost(gates: Gates) -> Tensor:
            patches = gates.patches.sum(dim=-1)
            attn_gate, mlp_gate = gates.sublayers.unbind(dim=-1)
            tokens = patches + config.num_tokens - config.num_patches
            mixed = gates.heads.sum(dim=-1) * head_width
            attention = mixed * (4 * outer + 2 * tokens)
            mlp = 2 * outer * int(outer * config.mlp_ratio)
            return patches * pixels * pixel + tokens * (attn_gate * attention + mlp_gate * mlp)

        gates = Gates(*(kind.long() for kind in gates))
        return (cost(Gates(*(torch.ones_like(kind) for kind in gates))) - cost(gates)).sum(dim=0)


PRESETS = {"adavit_nano": AdaViTConfig(**asdict(replace(NANO, name="adavit_nano")))}
register_model("adavit", AdaViT, AdaViTConfig, PRESETS)
