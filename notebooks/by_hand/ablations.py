"""What notebooks/08_ablations.ipynb writes by hand. Written by notebooks/collect.py."""

import torch


def pooled(groups):
    """Pooled standard deviation within groups, and its degrees of freedom."""
    freedom = sum(len(values) - 1 for values in groups)
    squares = sum(((values - values.mean()) ** 2).sum() for values in groups)
    return float((squares / freedom).sqrt()), freedom


def thresholds(counts, freedom, tables=20_000):
    """Under the null hypothesis, the 95 % quantile of |t|: of one row, and of a table's largest.
    counts: runs of each setting, the baseline first; freedom: of the pooled standard deviation."""
    counts = torch.tensor(counts)
    means = torch.randn(tables, len(counts)) / counts.sqrt()
    std = torch.randn(tables, freedom).square().mean(dim=1, keepdim=True).sqrt()
    t = (means[:, 1:] - means[:, :1]).abs() / (std * (1 / counts[1:] + 1 / counts[0]).sqrt())
    return tuple(round(float(size.quantile(0.95)), 1) for size in (t[:, 0], t.amax(dim=1)))


def significance(t, limits):
    single, corrected = limits
    return "corrected" if abs(t) > corrected else "single" if abs(t) > single else "no"
