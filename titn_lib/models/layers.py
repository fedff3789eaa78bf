"""The building blocks of the transformers: attention, MLP, layer, convolutional stem, classification heads.

Shapes use one vocabulary throughout the library:

    batch   images              patch   patches of an image       pixel   pixel tokens of a patch
    token   tokens of a stream  width   features of a token       head    attention heads
    query, key                  the token that attends, the token attended to
"""

from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib import kernels
from titn_lib.errors import TITNError


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, eq. 1): softmax(Q Kᵀ / √head_width) V.

    Short sequences use `kernels.attention`. Otherwise, two matrix products and a softmax are written out: for these
    sizes they are faster than PyTorch's fused attention, which is made for longer sequences.

    Args:
        head_width: width of each head's queries, keys and values; None for width / heads. With another value, all heads
            together are wider or narrower than the tokens.
    """

    def __init__(self, width: int, heads: int, bias: bool = True, head_width: int | None = None):
        super().__init__()
        if head_width is None:
            if width % heads:
                raise TITNError(
                    f"a width of {width} can't be divided among {heads} heads: choose a number that divides {width}"
                )
            head_width = width // heads
        self.heads = heads
        self.scale = head_width**-0.5
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=bias)  # queries, keys, values
        self.proj = nn.Linear(heads * head_width, width)

    def forward(
        self, tokens: Float[Tensor, "*batch token width"], return_attention: bool = False
    ) -> tuple[Float[Tensor, "*batch token width"], Float[Tensor, "*batch head token token"] | None]:
        """Returns the update of every token and, if requested, the attention (each row is a query and sums to 1)."""
        qkv = self.qkv(tokens)
        if not return_attention and kernels.can_use_fused_attention(qkv, self.heads, self.scale):
            return self.proj(kernels.attention(qkv, self.heads)), None
        query, key, value = self.split(qkv)
        attention = (query @ key.transpose(-2, -1)).softmax(dim=-1)
        return self.join(attention.to(value.dtype) @ value), attention if return_attention else None

    def split(self, qkv: Float[Tensor, "*batch token three_widths"]) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values, each "*batch head token head_width"."""
        query, key, value = rearrange(
            qkv, "... token (three head width) -> three ... head token width", three=3, head=self.heads
        )
        return query * self.scale, key, value

    def join(self, mixed: Float[Tensor, "*batch head token head_width"]) -> Float[Tensor, "*batch token width"]:
        """Concatenate the heads and project them to the tokens' width."""
        return self.proj(rearrange(mixed, "... head token width -> ... token (head width)"))


class MLP(nn.Sequential):
    """Linear → GELU → Linear for each token; the hidden layer is `ratio` times as wide.

    Args:
        grid: rows and columns of patches for `LocalPerception` after GELU, as in CMT's inverted residual feed-forward
            network (Guo et al. 2021); None for none.
    """

    def __init__(self, width: int, ratio: float = 4, grid: tuple[int, int] | None = None):
        hidden = int(width * ratio)
        local = [LocalPerception(hidden, grid)] if grid else []
        super().__init__(nn.Linear(width, hidden), nn.GELU(), *local, nn.Linear(hidden, width))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, drop a residual branch for random images of a batch.

    The kept ones are scaled by 1 / (1 − p), so that the expected update stays the same.

    Args:
        p: probability that the branch is dropped for an image.
    """

    keep: Tensor

    def __init__(self, p: float):
        super().__init__()
        self.register_buffer("keep", torch.tensor(1 - p), persistent=False)  # a tensor: compiled once for all values

    def forward(self, update: Float[Tensor, "batch *any"]) -> Float[Tensor, "batch *any"]:
        if not self.training:
            return update
        kept = torch.rand(len(update), *[1] * (update.ndim - 1), device=update.device) < self.keep
        return update * (kept / self.keep)


class TransformerLayer(nn.Module):
    """A pre-norm transformer layer: x += Attention(LN(x)); x += MLP(LN(x)).

    Args:
        drop_path: probability that each residual branch is dropped in training (`DropPath`).
        head_width: as in `Attention`.
        mlp_grid: as in `MLP`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4,
        bias: bool = True,
        drop_path: float = 0.0,
        head_width: int | None = None,
        mlp_grid: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attn = Attention(width, heads, bias, head_width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio, mlp_grid)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self, tokens: Float[Tensor, "*batch token width"], return_attention: bool = False
    ) -> tuple[Float[Tensor, "*batch token width"], Float[Tensor, "*batch head token token"] | None]:
        """Returns the tokens and, if requested, the attention."""
        update, attention = self.attn(self.attention_norm(tokens), return_attention)
        update = self.drop_path(update)
        fused = kernels.fused_mlp_or_none(self.mlp_norm, self.mlp, tokens, update)  # one call, where there is a kernel
        if fused is None:
            tokens = tokens + update
            update = self.mlp(self.mlp_norm(tokens))
        else:
            tokens, update = fused
        return tokens + self.drop_path(update), attention


with torch.device("meta"):  # no memory, and no draws from the global generator
    kernels.register_standard_layer(TransformerLayer(width=1, heads=1))


def conv_stem(in_channels: int, width: int, stride: int) -> nn.Sequential:
    """A convolutional stem (Xiao et al. 2021): three 3×3 convolutions, each with batch normalization and GELU, and one
    1×1 convolution. The first has the stride, and a larger kernel for a stride above 2."""
    hidden = 4 * width
    layers: list[nn.Module] = []
    for channels, step in ((in_channels, stride), (hidden, 1), (hidden, 1)):
        kernel_size = max(3, 2 * step - 1)  # larger strides must not skip pixels
        convolution = nn.Conv2d(channels, hidden, kernel_size, step, padding=kernel_size // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(hidden), nn.GELU()]
    layers.append(nn.Conv2d(hidden, width, kernel_size=1))
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


class LocalPerception(nn.Module):
    """x + DW3×3(x) on the grid of patch tokens, DW a depthwise convolution: CMT's step before attention (Guo et al.
    2021, eq. 1). Attention maps don't show it. Class and distillation tokens stay as they are.

    Args:
        grid: rows and columns of patches.
    """

    def __init__(self, width: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.convolution = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)

    def forward(self, tokens: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        rows, columns = self.grid
        end = 1 + rows * columns
        patches = rearrange(tokens[:, 1:end], "batch (row column) width -> batch width row column", row=rows)
        update = rearrange(self.convolution(patches), "batch width row column -> batch (row column) width")
        return tokens + F.pad(update, (0, 0, 1, tokens.shape[1] - end))


class TokenLogits(NamedTuple):
    """Output of a model with a distillation token in training: the logits of its two heads."""

    class_logits: Float[Tensor, "batch classes"]
    distillation_logits: Float[Tensor, "batch classes"]


class Heads(nn.Module):
    """The classification heads, each LayerNorm → Linear: one for the pooled tokens, one for the distillation token.

    Args:
        pooling: input of the class head: the "class" token, or the "mean" of class and patch tokens (TITN).
        distillation: whether the last token is a distillation token with a head of its own.
        pre_pool_norm: one more LayerNorm, of every token, before the heads (the published ViT students).
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
        logits = self.forward_all(tokens)
        if self.distillation_head is None:
            return logits.class_logits
        return logits if self.training else (logits.class_logits + logits.distillation_logits) / 2

    def forward_all(self, tokens: Float[Tensor, "batch token width"]) -> TokenLogits:
        """Each head's logits in either mode. Without a distillation head, both are the class head's."""
        tokens = self.pre_pool_norm(tokens)
        class_logits = self.class_head(self.pool(tokens))
        if self.distillation_head is None:
            return TokenLogits(class_logits, class_logits)
        return TokenLogits(class_logits, self.distillation_head(tokens[:, -1]))

    def pool(self, tokens: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch width"]:
        """The class head's input, from tokens after `pre_pool_norm`: the class token, or the mean."""
        last = -1 if self.distillation_head is not None else None
        return tokens[:, 0] if self.pooling == "class" else tokens[:, :last].mean(dim=1)


def adopt_children(module: nn.Module, source: nn.Module) -> None:
    """Initialize a module with the submodules of another one, under the same names, in place of its class's `__init__`.

    So no submodule is created only to be replaced, and no random number is drawn.
    """
    nn.Module.__init__(module)
    for name, child in source.named_children():
        module.add_module(name, child)
