"""Data: splits that never move, files that are missing or damaged, image files."""

import hashlib
import pickle
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as tv
from torchvision.transforms.v2 import functional as TF

from titn_lib import TITNError
from titn_lib.data.datasets import DATASETS, channel_stats, load_dataset, resize, stratified_split, subset
from titn_lib.data.images import ImageDataset, load_image
from titn_lib.training.recipes import make_run


def fingerprints(part):
    return {image.numpy().tobytes() for image in part.images}


@pytest.fixture
def no_internet(monkeypatch):
    def refuse(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_digits_need_no_files_and_are_real(tmp_path, monkeypatch, no_internet):
    monkeypatch.setenv("TITN_DATA", str(tmp_path))
    data = load_dataset("digits")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1293, 144, 360]
    assert data.train.images.shape[1:] == (1, 16, 16)
    assert data.train.images.dtype == torch.uint8
    assert data.train.images.max() > 240
    assert data.classes == tuple("0123456789")


def test_a_image_that_pillow_has_opened_and_one_that_is_transparent(tmp_path):
    ink = Image.new("RGBA", (40, 40), (0, 0, 0, 0))  # black everywhere, and nowhere opaque …
    ink.paste((0, 0, 0, 255), (0, 0, 20, 40))  # … but on the left
    read = load_image(ink, 1, (4, 4))
    assert read[0, 0, [0, -1]].tolist() == [0, 255]
    ink.save(tmp_path / "ink.png")
    assert torch.equal(load_image(tmp_path / "ink.png", 1, (4, 4)), read)
    with Image.open(tmp_path / "ink.png") as opened:  # Pillow reads it when it is first needed
        assert all(torch.equal(load_image(opened, 1, (4, 4)), read) for _ in range(2))
        assert opened.getpixel((30, 0)) == (0, 0, 0, 0)


def test_means_and_deviations_are_those_of_all_images_at_once():
    images = ImageDataset(torch.randint(0, 256, (700, 2, 5, 4), dtype=torch.uint8), torch.zeros(700, dtype=torch.long))
    values = images.images.double() / 255
    mean, std = channel_stats(images)
    assert mean == pytest.approx(values.mean(dim=(0, 2, 3)).tolist(), abs=1e-4)
    assert std == pytest.approx(values.std(dim=(0, 2, 3)).tolist(), abs=1e-4)
    assert channel_stats(replace(images, images=torch.full_like(images.images, 7)))[1] == (0.001, 0.001)


def test_where_none_are_published_means_and_deviations_are_the_training_splits():
    data = load_dataset("digits")
    assert (data.mean, data.std) == channel_stats(data.train)
    assert (data.mean, data.std) != channel_stats(data.test)


def test_images_are_resized_without_aliasing():
    images = ImageDataset(torch.randint(0, 256, (3, 2, 32, 32), dtype=torch.uint8), torch.arange(3))
    assert torch.equal(resize(images, (8, 16)).images, TF.resize(images.images, [8, 16], antialias=True))


def test_a_subset_is_fair_or_refused():
    train = load_dataset("digits").train
    assert subset(train, 100, "digits").labels.bincount().min() >= 9
    assert len(subset(train, 0, "digits")) == len(train)
    assert [len(subset(train, count, "digits")) for count in (13, 64, 999)] == [13, 64, 999]
    for count in (5, 1290):
        with pytest.raises(TITNError, match="choose train_images and test_images between 10 and 1283"):
            subset(train, count, "digits")


def test_the_split_is_stratified_fixed_and_without_overlap():
    data, again = load_dataset("digits"), load_dataset("digits")
    parts = [data.train, data.validation, data.test]
    assert all(
        torch.equal(a.images, b.images) for a, b in zip(parts, [again.train, again.validation, again.test], strict=True)
    )
    for part in parts:
        shares = part.labels.bincount() / len(part)
        assert (shares - 0.1).abs().max() < 0.012
    indices = ImageDataset(torch.arange(100).reshape(100, 1, 1, 1).to(torch.uint8), torch.arange(100) % 10)
    kept, held_out = stratified_split(indices, 0.1, "x")
    assert sorted([*kept.images.flatten().tolist(), *held_out.images.flatten().tolist()]) == list(range(100))


@pytest.mark.parametrize(
    ("name", "sizes", "classes", "shape"),
    [
        ("mnist", [54_000, 6_000, 10_000], "0123456789", (1, 32, 32)),
        ("cifar10", [45_000, 5_000, 10_000], ["airplane", "automobile"], (3, 32, 32)),
        ("cifar100", [45_000, 5_000, 10_000], ["apple", "aquarium_fish"], (3, 32, 32)),
    ],
)
def test_real_data(name, sizes, classes, shape, real_data):
    data = load_dataset(name)
    assert [len(part) for part in (data.train, data.validation, data.test)] == sizes
    assert list(data.classes[: len(classes)]) == list(classes)
    assert data.train.images.shape[1:] == shape
    each = len(data.classes)
    if name != "mnist":
        assert data.validation.labels.bincount().tolist() == [5_000 // each] * each
        channels = data.train.images[:5000].float().div(255).mean(dim=(0, 2, 3))
        assert (channels - torch.tensor(data.mean)).abs().max() < 0.03
    assert not fingerprints(data.validation) & fingerprints(data.train) or name != "cifar10"


def test_the_sources_have_the_published_means_and_deviations():
    cifar = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    for name, published in (("cifar10", cifar), ("cifar100", cifar), ("mnist", ((0.1307,), (0.3081,)))):
        assert (DATASETS[name].mean, DATASETS[name].std) == published


def test_missing_files_say_what_to_do(tmp_path, monkeypatch, no_internet):
    monkeypatch.setenv("TITN_DATA", str(tmp_path))
    for name in set(DATASETS) - {"digits"}:
        with pytest.raises(TITNError, match=r"can't be downloaded .*TITN_DATA"):
            load_dataset(name)


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """CIFAR-10's files as torchvision expects them, with few images."""
    home = tmp_path / "cifar-10-batches-py"
    home.mkdir()
    rng = np.random.default_rng(0)

    def write(name, content):
        (home / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((home / name).read_bytes()).hexdigest()]

    def batch(count):
        return {"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(count)]}

    train = [write(name, batch(40)) for name, _ in tv.CIFAR10.train_list]
    test = [write(name, batch(20)) for name, _ in tv.CIFAR10.test_list]
    meta = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(tv.CIFAR10, "train_list", train)
    monkeypatch.setattr(tv.CIFAR10, "test_list", test)
    monkeypatch.setattr(tv.CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    monkeypatch.setenv("TITN_DATA", str(tmp_path))
    return home


def test_cifars_images_stand_upright(small_cifar):
    """A file of CIFAR's keeps an image channel by channel, row by row."""
    there, data = pickle.loads((small_cifar / "test_batch").read_bytes()), load_dataset("cifar10")
    assert torch.equal(data.test.images, torch.from_numpy(there["data"]).reshape(20, 3, 32, 32))
    assert data.test.labels.tolist() == there["labels"]
    assert data.classes == tuple("abcdefghij")


def test_a_truncated_cifar_file_is_named(small_cifar, no_internet):
    assert len(load_dataset("cifar10").test) == 20
    file = small_cifar / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TITNError, match="data_batch_3 is damaged or cut short: delete it"):
        load_dataset("cifar10")


def test_a_truncated_mnist_file_is_named(tmp_path, monkeypatch, no_internet):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    sizes = {"train-images-idx3-ubyte": 47_040_016, "train-labels-idx1-ubyte": 60_008,
             "t10k-images-idx3-ubyte": 7_840_016, "t10k-labels-idx1-ubyte": 10_008}  # fmt: skip
    monkeypatch.setenv("TITN_DATA", str(tmp_path))
    for short in sizes:
        for name, size in sizes.items():
            with open(raw / name, "wb") as file:
                images = size % 784 == 16
                count = (size - 16) // 784 if images else size - 8
                file.write(struct.pack(">4I", 2051, count, 28, 28) if images else struct.pack(">2I", 2049, count))
                file.truncate(size - (name == short))
        with pytest.raises(TITNError, match=f"{short} is damaged"):
            load_dataset("mnist")


def test_an_unknown_name():
    with pytest.raises(TITNError, match="did you mean 'cifar10'"):
        load_dataset("cifar-10")
    with pytest.raises(TITNError, match="there is no folder"):
        load_dataset("no/such/folder")


# --- image files


@pytest.fixture
def class_folders(tmp_path):
    rng = np.random.default_rng(0)
    for kind, color in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (tmp_path / kind).mkdir()
        for i in range(12):
            noise = rng.integers(0, 40, (20 + i, 30, 3))
            Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8)).save(tmp_path / kind / f"{i}.png")
    return tmp_path


def test_a_folder_of_images(class_folders):
    data = load_dataset(str(class_folders))
    assert data.classes == ("blue", "red")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [17, 2, 5]
    red = data.train.images[data.train.labels == 1].float()
    assert red[:, 0].mean() > red[:, 2].mean() + 100
    assert data.mean != (0.0, 0.0, 0.0)


def test_a_folder_with_its_own_split_keeps_it(tmp_path):
    for part, gray in (("train", 10), ("test", 200)):
        for kind in "ab":
            (tmp_path / part / kind).mkdir(parents=True)
            for i in range(20):
                Image.new("L", (8, 8), gray).save(tmp_path / part / kind / f"{i}.PNG")
        (tmp_path / part / ".hidden").mkdir()
    data = load_dataset(str(tmp_path))
    assert data.classes == ("a", "b")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [36, 4, 40]
    assert [part.images.unique().tolist() for part in (data.train, data.validation, data.test)] == [[10], [10], [200]]
    (tmp_path / "test" / "green").mkdir()
    with pytest.raises(TITNError, match="green holds no image"):
        load_dataset(str(tmp_path))


def test_an_empty_class_folder_and_a_corrupt_image_are_named(class_folders):
    (class_folders / "green").mkdir()
    with pytest.raises(TITNError, match=r"the class folder .*green holds no image"):
        load_dataset(str(class_folders))
    whole = (class_folders / "red" / "3.png").read_bytes()
    for content in (b"GIF89a nonsense", whole[: len(whole) // 2]):
        (class_folders / "green" / "x.png").write_bytes(content)
        with pytest.raises(TITNError, match=r"x\.png is not an image or is damaged"):
            load_dataset(str(class_folders))


def test_a_folder_that_is_too_small(class_folders):
    for kind in ("red", "blue"):
        for i in range(1, 12):
            (class_folders / kind / f"{i}.png").unlink()
    with pytest.raises(TITNError, match="too few images to split"):
        load_dataset(str(class_folders))
    with pytest.raises(TITNError, match="needs a subfolder of images for each class"):
        load_dataset(str(class_folders / "red"))


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
    Image.fromarray(np.full((8, 8), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    assert load_image(tmp_path / "deep.png", 1, (8, 8)).unique().tolist() == [127]


def test_a_image_is_turned_upright(tmp_path):
    image, exif = Image.new("L", (8, 8)), Image.Exif()
    image.paste(255, (0, 0, 8, 4))  # the upper half is white …
    exif[0x0112] = 6  # … and the camera was turned: it belongs on the right
    image.save(tmp_path / "turned.png", exif=exif)
    read = load_image(tmp_path / "turned.png", 1, (8, 8))[0]
    assert read[:, 4:].min() == 255
    assert read[:, :4].max() == 0


def test_one_number_is_both_sides_and_none_is_refused():
    assert load_dataset("digits", 24).image_size == (24, 24)
    gray = Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10))
    assert torch.equal(load_image(gray, 1, 5), load_image(gray, 1, (5, 5)))
    with pytest.raises(TITNError, match="image_size must be a height and a width"):
        load_image(gray, 1, (0, 5))
    assert make_run("cifar10", image_size=16).image_size == (16, 16)


def test_a_size_is_height_and_width():
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 15:] = 255  # the right half is white
    read = load_image(Image.fromarray(wide), 1, (10, 30))[0]
    assert read[:, 16:].min() == 255
    assert read[:, :14].max() == 0


def test_reading_one_image(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255  # the middle is white
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert load_image(tmp_path / "wide.png", 3, (10, 10)).float().mean() == 255
    assert load_image(tmp_path / "wide.png", 1, (8, 16)).shape == (1, 8, 16)
    with pytest.raises(TITNError, match="there is no image"):
        load_image(tmp_path / "none.png", 3, (8, 8))
    with pytest.raises(TITNError, match="1 or 3 channels, not 2"):
        load_image(tmp_path / "wide.png", 2, (8, 8))
