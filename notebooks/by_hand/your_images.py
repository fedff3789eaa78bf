"""What notebooks/10_your_images.ipynb writes by hand. Written by notebooks/collect.py."""

import math

import torch
from torch.nn import functional as F

from titn_lib.data import normalize


def wilson(correct, n, z=1.96):
    p = correct / n
    center, reach = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return 100 * (center - reach) / (1 + z**2 / n), 100 * (center + reach) / (1 + z**2 / n)


def coverage(interval, p, n=104):
    """The share of all test sets of n images whose interval contains the truth."""
    return sum(
        math.comb(n, k) * p**k * (1 - p) ** (n - k)
        for k in range(n + 1)
        if interval(k, n)[0] <= 100 * p <= interval(k, n)[1]
    )


def mcnemar_test(a, b):
    """Images on which only a is correct, only b, and the p-value."""
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
    return only_a, only_b, min(1.0, 2 * tail)


def extract_features(model, part):
    """The inputs of the heads: "image 2 width"."""
    mean, std = model.preprocessing.mean, model.preprocessing.std
    batches = [normalize(images, mean, std) for images in part.images.split(100)]
    tokens = torch.cat([model.forward_features(batch).hidden_states[-1] for batch in batches])
    return torch.stack([tokens[:, :-1].mean(dim=1), tokens[:, -1]], dim=1)


def fit_heads(heads, features, labels, steps=200):
    optimizer = torch.optim.AdamW(heads.parameters(), lr=3e-3)
    heads.train()
    for _ in range(steps):
        class_logits, distillation_logits = heads(features)
        loss = (F.cross_entropy(class_logits, labels) + F.cross_entropy(distillation_logits, labels)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    heads.eval()


class WithPreprocessing(torch.nn.Module):
    """Bytes of the right size in, class probabilities out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        preprocessing = self.model.preprocessing
        return self.model(normalize(images, preprocessing.mean, preprocessing.std)).softmax(dim=-1)
