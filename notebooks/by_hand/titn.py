"""What notebooks/04_titn.ipynb writes by hand. Written by notebooks/collect.py."""

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from titn_lib.models.layers import TransformerLayer


class Block(nn.Module):
    def __init__(self, M=16, c=12, d=192):
        super().__init__()
        self.inner = TransformerLayer(c, heads=4)
        self.norm = nn.LayerNorm(c)
        self.linear = nn.Linear(M * c, d)
        self.outer = TransformerLayer(d, heads=8)

    def forward(self, y, z):
        y, _ = self.inner(y)  # batch 16 16 12   attention within each patch
        update = self.linear(self.norm(y).flatten(2))  # batch 16 192     from the pixel tokens
        z = z + F.pad(update, (0, 0, 1, 1))  # batch 18 192     to the patch tokens
        z, _ = self.outer(z)  # batch 18 192     attention between patches
        return y, z


class HandMadeTITN(nn.Module):
    def __init__(self, K=10, N=16, M=16, c=12, d=192, L=12):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(M, c))  # of the pixel tokens in a patch; empty until we copy weights
        self.embed = nn.Linear(3 * 2 * 2, c)  # three colors, 2×2 pixels
        self.tables = nn.ParameterList(torch.empty(N + 2, d) for _ in range(3))
        self.blocks = nn.ModuleList(Block(M, c, d) for _ in range(L))
        self.class_head = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, K))
        self.distillation_head = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, K))

    def forward(self, images):
        pattern = "batch color (row y p) (column x q) -> batch (row column) (y x) (color p q)"
        y = self.embed(rearrange(images, pattern, row=4, column=4, p=2, q=2)) + self.pos_embed
        z = sum(self.tables).expand(len(images), -1, -1)  # the same for every image
        for block in self.blocks:
            y, z = block(y, z)
        class_logits = self.class_head(z[:, :-1].mean(dim=1))
        distillation_logits = self.distillation_head(z[:, -1])
        if self.training:
            return class_logits, distillation_logits
        return (class_logits + distillation_logits) / 2


def copy_weights(mine, theirs):
    with torch.no_grad():
        for to, source in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert to.shape == source.shape
            to.copy_(source)
