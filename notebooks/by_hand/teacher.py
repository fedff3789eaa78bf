"""What notebooks/05_teacher.ipynb writes by hand. Written by notebooks/collect.py."""


def calibration_bins(logits, labels, bins=10):
    """For each bin that is not empty: its share of the images, mean confidence, and accuracy."""
    confidence, predicted = logits.softmax(dim=-1).max(dim=-1)
    correct = (predicted == labels).float()
    bin_index = (confidence * bins).long().clamp(max=bins - 1)
    masks = [bin_index == b for b in range(bins) if (bin_index == b).any()]
    return [(m.float().mean().item(), confidence[m].mean().item(), correct[m].mean().item()) for m in masks]


def calibration_error(table):
    return sum(share * abs(accuracy - confidence) for share, confidence, accuracy in table)
