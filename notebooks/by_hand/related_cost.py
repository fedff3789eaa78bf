"""What notebooks/15_related_cost.ipynb writes by hand. Written by notebooks/collect.py."""

import torch


def my_gate(logits, tau=5.0):
    first, second = -torch.empty(2, *logits.shape).exponential_().log()  # Gumbel noise: -ln v is exponential
    soft = ((logits + first - second) / tau).sigmoid()
    hard = (soft > 0.5).float()
    return hard + (soft - soft.detach())
