"""The transformer's pieces, written once and used by every model: attention, MLP, layer, positions, heads.

Shapes use one vocabulary throughout the library:

    batch   images              patch   patches of an image     pixel   pixel tokens of a patch
    token   tokens of a stream    width   numbers per token        head    attention heads
    query, key                    the token that looks, the token looked at
"""

from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from titn_lib import kernels
from titn_lib.errors import TITNError


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, eq. 1): softmax(Q Kᵀ / √head_width) V.

    Short sequences go through `kernels.attention` where the machine can. PyTorch's own fused attention is made for
    longer ones: here, written-out products are faster.

    Args:
        head_width: of each head's queries, keys and values; None for width / heads. With another one, queries, keys
            and values are wider or narrower than the tokens.
    """

    def __init__(self, width: int, heads: int, bias: bool = True, head_width: int | None = None):
        super().__init__()
        if head_width is None:
            if width % heads:
                raise TITNError(
                    f"a width of {width} can't be shared by {heads} heads: choose a number that divides {width}"
                )
            head_width = width // heads
        self.heads = heads
        self.scale = head_width**-0.5
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=bias)  # queries, keys, values
        self.proj = nn.Linear(heads * head_width, width)

    def forward(
        self, tokens: Float[Tensor, "*batch token width"], return_attention: bool = False
    ) -> tuple[Float[Tensor, "*batch token width"], Float[Tensor, "*batch head token token"] | None]:
        """Returns the update of every token and, if asked for, the attention (rows are queries and sum to 1)."""
        qkv = self.qkv(tokens)
        if not return_attention and kernels.can_use_fused_attention(qkv, self.heads, self.scale):
            return self.proj(kernels.attention(qkv, self.heads)), None
        query, key, value = self.split(qkv)
        attention = (query @ key.mT).softmax(dim=-1)
        return self.join(attention.to(value.dtype) @ value), attention if return_attention else None

    def split(self, qkv: Float[Tensor, "*batch token three_widths"]) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values, each "*batch head token head_width"."""
        query, key, value = rearrange(
            qkv, "... token (three head width) -> three ... head token width", three=3, head=self.heads
        )
        return query * self.scale, key, value

    def join(self, mixed: Float[Tensor, "*batch head token head_width"]) -> Float[Tensor, "*batch token width"]:
        """All heads' mixtures of values → the update of every token."""
        return self.proj(rearrange(mixed, "... head token width -> ... token (head width)"))


class MLP(nn.Sequential):
    """Two linear maps around a GELU, token by token; the hidden layer is `ratio` times as wide."""

    def __init__(self, width: int, ratio: float = 4):
        hidden = int(width * ratio)
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class DropPath(nn.Module):
    """In training, leaves out a step of the network for some of the images, and strengthens it for the others, so
    that its mean stays (Huang et al. 2016).

    Args:
        chance: of an image to be left out.
    """

    keep: Tensor

    def __init__(self, chance: float):
        super().__init__()
        self.register_buffer("keep", torch.tensor(1 - chance), persistent=False)  # a tensor: compiled once for all

    def forward(self, update: Float[Tensor, "batch *any"]) -> Float[Tensor, "batch *any"]:
        if not self.training:
            return update
        kept = torch.rand(len(update), *[1] * (update.ndim - 1), device=update.device) < self.keep
        return update * (kept / self.keep)


class TransformerLayer(nn.Module):
    """A pre-norm transformer layer: x += Attention(LN(x)); x += MLP(LN(x)).

    Args:
        drop: the chance of each step to be left out in training (`DropPath`).
        head_width: as in `Attention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4,
        bias: bool = True,
        drop: float = 0.0,
        head_width: int | None = None,
    ):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attn = Attention(width, heads, bias, head_width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio)
        self.drop = DropPath(drop) if drop else nn.Identity()

    def forward(
        self, tokens: Float[Tensor, "*batch token width"], return_attention: bool = False
    ) -> tuple[Float[Tensor, "*batch token width"], Float[Tensor, "*batch head token token"] | None]:
        """Returns the tokens and, if asked for, the attention."""
        update, attention = self.attn(self.attention_norm(tokens), return_attention)
        tokens = tokens + self.drop(update)
        return tokens + self.drop(self.mlp(self.mlp_norm(tokens))), attention


class TokenLogits(NamedTuple):
    """What a model with a distillation token returns in training: the logits of its two heads."""

    class_logits: Float[Tensor, "batch classes"]
    distillation_logits: Float[Tensor, "batch classes"]


class Heads(nn.Module):
    """From the outer tokens to logits: LayerNorm → Linear on the class side, the same again on the distillation token.

    Args:
        pooling: what the class head reads: the "class" token, or the "mean" of class and patch tokens (TITN).
        distillation: whether the last token is a distillation token with a head of its own.
        pre_pool_norm: one more LayerNorm, of every token, before all that (the published ViT students).
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        pooling: Literal["class", "mean"],
        distillation: bool,
        pre_pool_norm: bool = False,
    ):
        super().__init__()
        self.pooling = pooling
        self.pre_pool_norm = nn.LayerNorm(width) if pre_pool_norm else nn.Identity()
        self.class_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes))
        self.distillation_head = (
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes)) if distillation else None
        )

    def forward(self, tokens: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch classes"] | TokenLogits:
        """Both heads' logits in training, their mean in evaluation (Touvron et al. 2021, section 3)."""
        both = self.forward_all(tokens)
        if self.distillation_head is None:
            return both.class_logits
        return both if self.training else (both.class_logits + both.distillation_logits) / 2

    def forward_all(self, tokens: Float[Tensor, "batch token width"]) -> TokenLogits:
        """Each head's logits, whatever the mode; the class head's twice where it is the only one."""
        tokens = self.pre_pool_norm(tokens)
        first = self.class_head(self.pool(tokens))
        return TokenLogits(first, first if self.distillation_head is None else self.distillation_head(tokens[:, -1]))

    def pool(self, tokens: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch width"]:
        """What the class head reads: of tokens that have passed `pre_pool_norm`, the class token or the mean."""
        last = -1 if self.distillation_head is not None else None
        return tokens[:, 0] if self.pooling == "class" else tokens[:, :last].mean(dim=1)


def adopt_children(module: nn.Module, parts: nn.Module) -> None:
    """Begin a module with the parts of another, under their own names, in the place of its class's `__init__`: no part
    is made only to be thrown away, and no random number drawn."""
    nn.Module.__init__(module)
    for name, part in parts.named_children():
        module.add_module(name, part)
