"""Loss and accuracy of a network on a split."""

from contextlib import AbstractContextManager, nullcontext

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib.data.images import ImageDataset
from titn_lib.data.transforms import Preprocessing
from titn_lib.models.base import Classifier
from titn_lib.models.inference import predict
from titn_lib.models.registry import count_macs
from titn_lib.training.distributed import all_reduce_sum


def evaluate(
    network: nn.Module,
    part: ImageDataset,
    preprocessing: Preprocessing,
    fabric: Fabric | None = None,
    exact: bool = False,
) -> dict[str, float]:
    """Loss, top-1 and top-5 accuracy in percent on a split, and its number of images. For an adaptive network
    (`Classifier.adaptive`), also the mean MACs per image.

    Args:
        fabric: share the work with the other processes, in its precision.
        exact: in float32 whatever Fabric's precision, so that the figure can be measured again anywhere.
    """
    rank, processes = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    mine, saved = part[rank::processes], list[Tensor]()
    saved_macs: AbstractContextManager = nullcontext()
    if isinstance(network, Classifier) and network.adaptive:
        saved_macs = network.register_forward_hook(lambda model, *_: saved.append(model.saved_macs().sum()))
    convolutions = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=not exact)
    eager = torch.compiler.set_stance("force_eager")  # batches of another size: not worth compiling again
    with saved_macs, convolutions, eager, fabric.autocast() if fabric and not exact else nullcontext():
        logits = predict(network, mine.images, preprocessing)
    labels = mine.labels.to(logits.device)
    ranked = logits.topk(min(5, logits.shape[1]), dim=-1).indices == labels[:, None]
    counts = [ranked[:, 0].sum(), ranked.sum(), sum(saved, labels.new_zeros(()))]
    sums = torch.stack([F.cross_entropy(logits, labels, reduction="sum"), *counts])
    if fabric:
        sums = all_reduce_sum(fabric, sums)
    loss, top1, top5, left_out = (sums / len(part)).tolist()
    measured = {"loss": loss, "top1": 100 * top1, "top5": 100 * top5, "num_images": len(part)}
    if isinstance(network, Classifier) and network.adaptive:
        measured["macs"] = round(count_macs(network) - left_out)
    return measured
