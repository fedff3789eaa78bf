"""Image files: single ones, and folders with a subfolder for each class."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from titn_lib.errors import TITNError
from titn_lib.validation import to_2tuple


@dataclass(frozen=True)
class ImageDataset:
    """Images and their labels, in memory.

    Attributes:
        images: uint8, 0–255.
        labels: the index of each image's class.
    """

    images: UInt8[Tensor, "image channel height width"]
    labels: Int64[Tensor, " image"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, which: Tensor | np.ndarray | slice) -> "ImageDataset":
        return ImageDataset(self.images[which], self.labels[which])

    def to(self, device: torch.device) -> "ImageDataset":
        return ImageDataset(self.images.to(device), self.labels.to(device))


def load_image_folder(folder: Path, size: tuple[int, int]) -> tuple[ImageDataset, ImageDataset | None, tuple[str, ...]]:
    """Load images from a subfolder for each class; subfolders train/ and test/, if there are both, are the split.

    Returns:
        The images outside the test set, the test set (None if the folder has none), and the class names.

    Raises:
        TITNError: fewer than two classes, an empty class, an image that can't be read, or different classes in train/
            and test/.
    """
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train, classes = load_class_folders(folder / "train", size)
        test, test_classes = load_class_folders(folder / "test", size)
        if classes != test_classes:
            raise TITNError(
                f"{folder}/train and {folder}/test have different class folders "
                f"({', '.join(sorted(set(classes) ^ set(test_classes)))}): give both the same"
            )
        return train, test, classes
    images, classes = load_class_folders(folder, size)
    return images, None, classes


def load_class_folders(folder: Path, size: tuple[int, int]) -> tuple[ImageDataset, tuple[str, ...]]:
    """Load images from a subfolder for each class, resized to `size`; classes are in alphabetical order."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    classes = tuple(sorted(sub.name for sub in folder.iterdir() if sub.is_dir() and sub.name[0] != "."))
    if len(classes) < 2:
        raise TITNError(f"{folder} needs a subfolder of images for each class, two or more, and has {len(classes)}")
    images, labels = [], []
    for label, name in enumerate(classes):
        files = [file for file in sorted((folder / name).rglob("*")) if file.suffix.lower() in IMG_EXTENSIONS]
        if not files:
            raise TITNError(f"the class folder {folder / name} holds no image: add some, or remove the folder")
        images += [load_image(file, 3, size) for file in files]
        labels += [label] * len(files)
    return ImageDataset(torch.stack(images), torch.tensor(labels)), classes


def load_image(
    path: str | Path | Image.Image, in_channels: int, image_size: tuple[int, int] | int
) -> UInt8[Tensor, "channel height width"]:
    """Load an image file as uint8: turned upright as its EXIF data say, transparency on white, resized, center-cropped.

    Args:
        path: the file's path, or an image opened with Pillow.
        in_channels: 1 for grayscale, 3 for color.
        image_size: height and width, or one number for both.

    Raises:
        TITNError: the file is missing, damaged or not an image; `in_channels` is neither 1 nor 3; or a bad image_size.
    """
    height, width = to_2tuple(image_size)
    modes = {1: "L", 3: "RGB"}
    if in_channels not in modes:
        raise TITNError(f"image files have 1 or 3 channels, not {in_channels}: pass tensors to such a model")
    try:
        with nullcontext(path) if isinstance(path, Image.Image) else Image.open(path) as opened:
            upright: Image.Image = ImageOps.exif_transpose(opened)
            if upright.has_transparency_data:
                rgba = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            if upright.mode[0] in "IF":  # 16 bits a channel: Pillow would clip values above 255
                upright = Image.fromarray(np.uint8(np.asarray(upright).clip(0, 65535) / 257))
            upright = upright.convert(modes[in_channels])
            resized = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR)
    except FileNotFoundError as problem:
        raise TITNError(f"there is no image {path}: check the path") from problem
    except PermissionError as problem:
        raise TITNError(f"no permission to read {path}: change its permissions") from problem
    except Exception as problem:  # Pillow raises many types for damaged files
        raise TITNError(f"{path} is not an image or is damaged: remove it or save it again") from problem
    return torch.from_numpy(np.array(resized).reshape(height, width, in_channels)).permute(2, 0, 1).contiguous()
