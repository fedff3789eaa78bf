"""Data sets, augmentation and mixing: uint8 images in, uint8 images out. `normalize` makes floats of them."""

from titn_lib.data.arrays import make_splits
from titn_lib.data.datasets import DATASETS, DatasetInfo, DataSplits, data_dir, load_dataset
from titn_lib.data.images import ImageDataset, load_image, load_images
from titn_lib.data.mixing import MixedTargets, cutmix, mixup
from titn_lib.data.transforms import Preprocessing, augment, normalize

__all__ = [
    "DATASETS",
    "DataSplits",
    "DatasetInfo",
    "ImageDataset",
    "MixedTargets",
    "Preprocessing",
    "augment",
    "cutmix",
    "data_dir",
    "load_dataset",
    "load_image",
    "load_images",
    "make_splits",
    "mixup",
    "normalize",
]
