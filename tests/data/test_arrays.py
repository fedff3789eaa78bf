"""Own images that are in memory: arrays, tensors, PyTorch data sets."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2.functional import normalize

from titn_lib import TITNError, load_model
from titn_lib.data.arrays import make_splits, to_images
from titn_lib.training.config import Recipe, Run
from titn_lib.training.run import train, train_comparison

LABELS = np.arange(60) % 3
IMAGES = np.broadcast_to((80 * LABELS).astype(np.uint8)[:, None, None, None], (60, 8, 8, 3)).copy()
TENSOR = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
RECIPE = Recipe(epochs=1, batch_size=16, precision="32-true")


class Pairs:
    """A data set with a length and items."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


@pytest.mark.parametrize(
    "given",
    [
        (IMAGES, LABELS),
        (IMAGES, LABELS.tolist()),
        (IMAGES.astype(np.int64), torch.from_numpy(LABELS)),
        (TENSOR, LABELS),
        (TENSOR.float() / 255, torch.from_numpy(LABELS).int()),
        TensorDataset(TENSOR, torch.from_numpy(LABELS)),
        TensorDataset(TENSOR.double() / 255, torch.from_numpy(LABELS)),
        Pairs([(Image.fromarray(image), int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]),
        Pairs(list(zip(IMAGES, LABELS, strict=True))),
    ],
)
def test_any_kind_gives_the_same_splits(given):
    data = make_splits("mine", given, image_size=8)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [43, 5, 12]
    assert data.classes == ("0", "1", "2")
    for part in (data.train, data.validation, data.test):
        assert part.images.dtype == torch.uint8
        assert part.images.shape[1:] == (3, 8, 8)
        assert torch.equal(part.images[:, 0, 0, 0].long(), 80 * part.labels)


def test_splits_classes_sizes_and_gray_images_of_ones_own():
    gray = (IMAGES[..., 0], LABELS)
    data = make_splits("mine", gray, validation=(IMAGES[:6, :, :, 0], LABELS[:6]), test=gray, classes=["a", "b", "c"])
    assert [len(part) for part in (data.train, data.validation, data.test)] == [60, 6, 60]
    assert (data.classes, data.image_size, data.in_channels) == (("a", "b", "c"), (8, 8), 1)
    assert make_splits("mine", gray, image_size=(4, 6)).train.images.shape[1:] == (1, 4, 6)


def test_an_image_folder_of_torchvision_keeps_its_class_names(tmp_path):
    for kind, gray in (("cat", 10), ("dog", 200)):
        (tmp_path / kind).mkdir()
        for i in range(15):
            Image.new("RGB", (20 + i, 30), (gray,) * 3).save(tmp_path / kind / f"{i}.png")
    data = make_splits("mine", ImageFolder(tmp_path))
    assert (data.classes, data.image_size) == (("cat", "dog"), (32, 32))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((normalize(TENSOR.float(), [99.0] * 3, [50.0] * 3), LABELS), "before normalization"),
        ((IMAGES, LABELS[:-1]), "has 60 images and 59 labels"),
        ((IMAGES, LABELS - 1), "labels from -1"),
        ((IMAGES, LABELS / 2), "a list of integers from 0"),
        ((IMAGES, np.eye(3)[LABELS].astype(int)), "a list of integers from 0"),
        ((IMAGES, ["cat"] * 60), "that are no numbers: give arrays, and classes="),
        ((IMAGES[0, 0], LABELS), "give images of one size"),
        (([IMAGES[0], IMAGES[1, :4]], [0, 1]), "that are no numbers"),
        ((IMAGES[:0], []), "give images of one size"),
        ((IMAGES, LABELS + LABELS // 2), "no training image of mine is of the class 2"),
        ((IMAGES, 0 * LABELS), "a name for each, 2 or more"),
        ((np.full((60, 8, 8), np.nan), LABELS), "values from nan to nan"),
        (IMAGES, "mine is a ndarray: give a pair"),
        ("folder", "mine is a str: give a pair"),
        (None, "mine is a NoneType: give a pair"),
        (Pairs([]), "or there are none"),
        (Pairs([(IMAGES[0], "cat")]), "item 0 of train of mine is not an"),
        (Pairs([5]), "item 0 of train of mine is not an"),
        (Pairs([(IMAGES[0], 0), (IMAGES[0, :4], 1)]), "differ in size or channels"),
    ],
)
def test_what_does_not_fit_gets_one_sentence(given, says):
    with pytest.raises(TITNError, match=says):
        make_splits("mine", given)


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_come_last_or_first(channels):
    """Two and four, too, such as red, green, blue and transparency."""
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 6, channels), dtype=np.uint8)
    first = to_images((images.transpose(0, 3, 1, 2), LABELS), None, "first")
    assert first.images.shape == (60, channels, 8, 6)
    assert torch.equal(to_images((images, LABELS), None, "last").images, first.images)


def test_names_that_do_not_fit():
    with pytest.raises(TITNError, match="3 classes and 2 names"):
        make_splits("mine", (IMAGES, LABELS), classes=["a", "b"])
    with pytest.raises(TITNError, match="two classes of the same name"):
        make_splits("mine", (IMAGES, LABELS), classes=["a", "a", "b"])
    with pytest.raises(TITNError, match="cifar10 is a data set of the library"):
        make_splits("cifar10", (IMAGES, LABELS))
    with pytest.raises(TITNError, match="different numbers of channels"):
        make_splits("mine", (IMAGES, LABELS), test=(IMAGES[..., 0], LABELS))


def test_arrays_are_trained_on_like_a_folder(tmp_path):
    data = make_splits("mine", (IMAGES, LABELS), classes=["a", "b", "c"])
    teacher = Run("mine", "vgg7_bn", RECIPE, image_size=(16, 16))
    run = Run(
        "mine", "titn_nano", RECIPE, loss="hard", teacher=teacher, image_size=(16, 16), model_settings={"depth": 1}
    )
    records = train_comparison(run, tmp_path, device="cpu", progress=False, data=data)
    assert records["distilled"].test["num_images"] == 12
    model = load_model(tmp_path / "distilled" / "model.safetensors")
    assert (model.preprocessing.classes, model.config.image_size) == (("a", "b", "c"), (16, 16))
    other = make_splits("mine", (IMAGES, LABELS[::-1].copy()), classes=["a", "b", "c"])
    with pytest.raises(TITNError, match="the images have changed"):
        train(run, tmp_path / "distilled", teacher_dir=tmp_path / "teacher", device="cpu", data=other)
