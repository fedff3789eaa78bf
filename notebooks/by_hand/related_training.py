"""What notebooks/14_related_training.ipynb writes by hand. Written by notebooks/collect.py."""

import torch


def by_hand(z, y, tau=0.1):
    losses = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if y[p] == y[i]]
        whole = sum(torch.exp(z[i] @ z[a] / tau) for a in others)
        if positives:
            losses.append(-sum(torch.log(torch.exp(z[i] @ z[p] / tau) / whole) for p in positives) / len(positives))
    return sum(losses) / len(losses)
