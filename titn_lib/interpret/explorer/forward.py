"""The forward pass of a student with everything that the explorer shows of it, except relevance.

It is a module of its own so that it can be exported: `live` puts it into the page.
"""

import contextlib
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from titn_lib import interpret
from titn_lib.errors import TITNError
from titn_lib.models.base import TokenClassifier
from titn_lib.models.layers import Attention
from titn_lib.models.titn import TITN

MAX_BYTES_ALL_HEADS = 700_000  # per image and model; above, the explorer shows the mean over heads
MAX_BYTES = 3_000_000  # per image and model
MAX_WIDTH = 192  # of tokens whose arithmetic is shown: 220 kB of weights


def last_attention(model: TokenClassifier) -> dict[str, Attention]:
    """The attention of the last block by stream, "inner" and "outer", whose arithmetic is shown."""
    last = model.blocks[-1]  # type: ignore[index]
    layers = {"inner": last.inner, "outer": last.outer} if isinstance(model, TITN) else {"outer": last}
    found = {stream: getattr(layer, "attn", None) for stream, layer in layers.items()}
    return {
        stream: attn for stream, attn in found.items() if type(attn) is Attention and attn.qkv.in_features <= MAX_WIDTH
    }


class ExplorerForward(nn.Module):
    """A student that returns tensors by name, each beginning with "image":

        logits        block head class: of each head, applied to the tokens after every block (see `lens` in `data`)
        outer         block head query key: attention of the outer stream
        rolled_outer  block 1 query key: its rollout from the first block through each block
        inner, rolled_inner    the same with "patch" after "block", for a student with an inner stream
        outer_tokens  token width: the input of the last block's outer attention, if its heads are shown
        inner_tokens  the same with "patch pixel" in place of "token"

    Where all heads would take more than MAX_BYTES_ALL_HEADS, attention is the mean over heads, "head" 1.
    """

    def __init__(self, model: TokenClassifier):
        super().__init__()
        self.model = model
        self.heads = 1 + model.config.distillation_token

    def forward(self, images: Float[Tensor, "image channel height width"]) -> dict[str, Tensor]:
        """
        Raises:
            TITNError: the attention of one image takes more than MAX_BYTES.
        """
        tokens = dict[str, Tensor]()
        with contextlib.ExitStack() as hooks:
            for stream, attn in last_attention(self.model).items():
                keep = partial(lambda name, _, inputs: tokens.update({name: inputs[0]}), f"{stream}_tokens")
                hooks.enter_context(attn.register_forward_pre_hook(keep))
            encoding = self.model.forward_features(images, return_attention=True)
        logits = [
            torch.stack(self.model.heads.forward_all(hidden)[: self.heads], dim=1) for hidden in encoding.hidden_states
        ]
        attention = {name: maps for name, maps in encoding.attention._asdict().items() if maps}
        streams = {name: torch.stack(maps, dim=1) for name, maps in attention.items()}
        rolled = {  # with an axis for a single head
            f"rolled_{name}": torch.stack(interpret.rollouts(maps), dim=1).unsqueeze(-3)
            for name, maps in attention.items()
        }
        if size_in_bytes(streams | rolled) > MAX_BYTES_ALL_HEADS:
            streams = {name: maps.mean(dim=-3, keepdim=True) for name, maps in streams.items()}
            tokens.clear()  # the arithmetic is that of single heads
        if (size := size_in_bytes(streams | rolled)) > MAX_BYTES:
            config = self.model.config
            raise TITNError(
                f"the attention of {config.name} on one image of {'×'.join(map(str, config.image_size))} takes "
                f"{size / 1e6:.0f} MB, more than the explorer carries ({MAX_BYTES / 1e6:.0f} MB): use a model with "
                "larger patches, or load it for smaller images with load_model(path, image_size=…)"
            )
        return {"logits": torch.stack(logits, dim=1), **streams, **rolled, **tokens}


def size_in_bytes(maps: dict[str, Tensor]) -> int:
    """Of the packed maps of one image: one byte for each value."""
    return sum(values[0].numel() for values in maps.values())
