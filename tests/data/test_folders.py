"""Own images: folders in every layout, with all that systems and programs leave in them; tables; damaged files."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from titn_lib import TITNError, load_dataset, load_image
from titn_lib.data import folders, images, reading
from titn_lib.data.folders import SPLITS, list_images
from titn_lib.data.reading import load_class_folders, read_images
from titn_lib.training.config import resolve_dataset

FORMATS = {".png": "PNG", ".PNG": "PNG", ".gif": "GIF", ".jfif": "JPEG", ".JPG": "JPEG", ".webp": "WEBP",
           ".bmp": "BMP", ".tif": "TIFF", ".ppm": "PPM", ".ico": "ICO", ".jp2": "JPEG2000"}  # fmt: skip
HIDDEN = ["._{}.png", ".ipynb_checkpoints/{}-checkpoint.png", "__MACOSX/._{}.png", ".DS_Store", "Thumbs.db",
          "desktop.ini", "@eaDir/{}.jpg", ".hidden.jpg", "$RECYCLE.BIN/{}.png"]  # fmt: skip
OTHER = ["notes.txt", "{}.heic", "{}.png.part", "film.mpg", "no_ending", "{}.pdf", "{}.xmp"]
DAMAGE = {b"": "is empty", b"<html>404": "is a web page", b"GIF89a nonsense": "is not an image or is damaged",
          b"\0\0\0\x18ftypheic": "HEIC"}  # fmt: skip


def image_bytes(value, suffix=".png", size=(16, 16), mode="L"):
    content = io.BytesIO()
    Image.new(mode, size, value).save(content, FORMATS[suffix])
    return content.getvalue()


CONTENT = {(value, suffix): image_bytes(value, suffix) for value in (20, 120, 220) for suffix in FORMATS}


def write(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def fill(folder, count=15, suffix=".png", value=0):
    for i in range(count):
        write(folder / f"{i:03}{suffix}", image_bytes(value, suffix))


@pytest.fixture
def two_classes(tmp_path):
    for i, name in enumerate(("round", "square")):
        fill(tmp_path / "pets" / name, value=100 * i)
    return tmp_path / "pets"


def random_folder(rng, top):
    """A folder in a random layout, with all kinds of strange files, and what must be found in it.

    Returns:
        The files of each split with their labels, what is skipped, and the files that are damaged.
    """
    splits = [None]
    if rng.random() < 0.6:
        spelling = {split: [name for name in SPLITS if SPLITS[name] == split] for split in SPLITS.values()}
        chosen = ["train", *rng.permutation(["validation", "test"])[: rng.integers(0, 3)]]
        splits = [
            str(getattr(rng.choice(spelling[split]), rng.choice(["upper", "lower", "title"]))()) for split in chosen
        ]
    classes = sorted(
        rng.choice(["cat", "dog", "Élan", "猫", "x y", "a<b>", "tests", "train_1"], 3, replace=False).tolist()
    )
    found, skipped, damaged = {}, set(), set()
    for split in splits:
        part = top / split if split else top
        for label, name in enumerate(classes):
            for i in range(rng.integers(4, 8)):
                suffix = str(rng.choice(list(FORMATS)))
                file = part / name / rng.choice(["", "", "deeper", "train"]) / f"{i}{suffix}"
                content = CONTENT[20 + 100 * label, suffix]
                if i and rng.random() < 0.03:
                    content = list(DAMAGE)[rng.integers(len(DAMAGE))]
                    damaged.add(file)
                write(file, content)
                found.setdefault(SPLITS[split.lower()] if split else "all", []).append((file, label))
            for pattern in rng.choice(HIDDEN, 3, replace=False):
                write(part / rng.choice(["", name]) / pattern.format("000"))
            for pattern in rng.choice(OTHER, 1):
                skipped.add(write(part / name / pattern.format("000")))
    return found, skipped, damaged


def test_a_hundred_folders(tmp_path, caplog):
    """Exactly the images are read, each in its class and split; what is left out or damaged is named once."""
    layouts, refused = set(), 0
    for seed in range(100):
        top = tmp_path / str(seed)
        found, skipped, damaged = random_folder(np.random.default_rng(seed), top)
        listed = list_images(top)
        assert {split: sorted(files) for split, files in listed.files.items()} == {
            split: sorted(files) for split, files in found.items()
        }
        assert set(listed.skipped) == skipped
        layouts.add(tuple(listed.files))
        if damaged:
            refused += 1
            with pytest.raises(TITNError, match="skip_damaged=True") as problem:
                read_images(listed, (8, 8), progress=False)
            assert all(str(file) in str(problem.value) for file in damaged)
        caplog.clear()
        parts = read_images(listed, (8, 8), in_channels=1 + 2 * (seed % 2), skip_damaged=True, progress=False)
        assert [record.message.count("not read as images") for record in caplog.records[:1]] == [1]
        assert len(caplog.records) == 1 + bool(damaged)
        for split, part in parts.items():
            expected = [20 + 100 * label for file, label in listed.files[split] if file not in damaged]
            assert (part.images.float().mean(dim=(1, 2, 3)) - torch.tensor(expected)).abs().max() < 3
            assert part.labels.tolist() == [label for file, label in listed.files[split] if file not in damaged]
    assert len(layouts) == 5  # all; train; and train with either of the others, or both
    assert refused > 20


def test_hidden_copies_and_system_files_are_neither_read_nor_counted(two_classes, caplog):
    before = list_images(two_classes)
    for pattern in HIDDEN:
        write(two_classes / "round" / pattern.format("000"), image_bytes(9))
        write(two_classes / pattern.format("000"), image_bytes(9))
    assert list_images(two_classes) == before
    load_dataset(str(two_classes))
    assert not caplog.records


def test_what_was_skipped_is_counted_and_named_once(two_classes, caplog):
    for i in range(3):
        write(two_classes / "round" / f"IMG_{i}.HEIC")
    write(two_classes / "notes.txt")
    load_dataset(str(two_classes))
    (record,) = caplog.records
    assert "3 .heic, 1 .txt (notes.txt first)" in record.message
    write(two_classes / "phone" / "1.heic")
    with pytest.raises(TITNError, match=r"phone holds no image that can be read, only 1 .heic"):
        load_dataset(str(two_classes))


def test_every_format_that_pillow_writes_and_reads(tmp_path):
    suffixes = folders.image_suffixes()
    assert {".gif", ".jfif", ".webp", ".tiff", ".bmp", ".jpg", ".png", ".ppm"} < suffixes
    assert not suffixes & {".pdf", ".mpg", ".mpeg", ".eps", ".h5", ".txt", ""}
    for suffix in sorted(suffixes):
        if Image.EXTENSION[suffix] in Image.SAVE:
            try:
                Image.new("RGB", (16, 16), (9, 99, 199)).save(tmp_path / f"image{suffix}")
            except (OSError, KeyError, ValueError):
                continue  # not for RGB, or not built into this Pillow
            assert load_image(tmp_path / f"image{suffix}", 3, 8).shape == (3, 8, 8)


# --- splits


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (["train", "val"], [48, 20, 12]),
        (["train", "valid", "test"], [60, 20, 10]),
        (["Train", "VALIDATION"], [48, 20, 12]),
        (["training", "dev", "testing"], [60, 20, 10]),
        (["train", "test"], [54, 6, 10]),
        (["train"], [43, 5, 12]),
    ],
)
def test_a_folders_own_splits(tmp_path, names, sizes):
    counts = {"train": 30, "validation": 10, "test": 5}
    for name in names:
        for i, kind in enumerate(("round", "square")):
            split = SPLITS[name.lower()]
            fill(tmp_path / name / kind, counts[split], value=10 * (1 + list(counts).index(split)) + 100 * i)
    data = load_dataset(str(tmp_path))
    assert data.classes == ("round", "square")
    assert [len(part) for part in (data.train, data.validation, data.test)] == sizes
    for split in map(str, {SPLITS[name.lower()] for name in names}):
        value = 10 * (1 + list(counts).index(split))
        assert getattr(data, split).images.unique().tolist() == [value, value + 100]


def test_a_class_called_like_a_split_is_refused(two_classes):
    fill(two_classes / "test")
    with pytest.raises(TITNError, match="test is the name of a split: rename it if it is a class"):
        load_dataset(str(two_classes))
    (two_classes / "test").rename(two_classes / "train")
    with pytest.raises(TITNError, match="train is the name of a split"):
        load_dataset(str(two_classes))
    top = two_classes.parent / "nested"
    for name in ("a", "b", "Dev"):
        fill(top / "train" / name)
    with pytest.raises(TITNError, match="has a class folder Dev, which is the name of a split"):
        load_dataset(str(top))


def test_splits_that_do_not_go_together(tmp_path):
    for name in ("val", "test"):
        for kind in "ab":
            fill(tmp_path / name / kind)
    with pytest.raises(TITNError, match="make train and test folders"):
        load_dataset(str(tmp_path))
    for kind in "abc":
        fill(tmp_path / "train" / kind)
    with pytest.raises(TITNError, match=r"different class folders \(c\)"):
        load_dataset(str(tmp_path))
    fill(tmp_path / "validation" / "a")
    with pytest.raises(TITNError, match="are both the validation split: merge them"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("cat/train", "cat/test", "dog/train", "dog/test"), "has folders with names of splits .test, train."),
        (("seg_train/cat", "seg_train/dog", "seg_test/cat", "seg_test/dog"), "have names of splits: call them train"),
        (("train_images/cat", "train_images/dog", "test images/cat"), "have names of splits"),
    ],
)
def test_folders_of_splits_are_not_taken_for_classes(tmp_path, names, says):
    for name in names:
        fill(tmp_path / name, 2)
    with pytest.raises(TITNError, match=says):
        list_images(tmp_path)


def test_classes_whose_names_hold_the_name_of_a_split(tmp_path):
    for kind in ("train", "negative test"):
        for name in (f"steam {kind}", f"freight {kind}"):
            fill(tmp_path / "all" / kind.split()[0] / name, 2)
    for kind in ("train", "negative"):
        assert len(folders.list_classes(tmp_path / "all" / kind)[0]) == 2


def test_a_link_to_the_folder_around_it_is_not_a_class(two_classes):
    (two_classes / "self").symlink_to(two_classes)
    with pytest.raises(TITNError, match=r"self is a link to .*pets, which holds all classes: remove it"):
        list_images(two_classes)


def test_an_image_of_the_same_name_and_size_changes_the_fingerprint(two_classes):
    first = list_images(two_classes).fingerprint()
    pixels = np.zeros((400, 400), np.uint8)
    for shade in (0, 1):
        pixels[100, 100] = shade
        Image.fromarray(pixels).save(two_classes / "round" / "000.bmp")
        found = list_images(two_classes).fingerprint()
        assert found["sha256"] != first["sha256"]
        first = found


def test_another_folder_beside_the_splits_is_named(tmp_path, caplog):
    for name in ("train", "test"):
        for kind in "ab":
            fill(tmp_path / name / kind)
    fill(tmp_path / "unlabeled")
    load_dataset(str(tmp_path))
    assert "unlabeled first" in caplog.text


def test_a_folder_too_high_or_an_archive_gets_a_hint(two_classes):
    with pytest.raises(TITNError, match=r"did you mean .*pets"):
        load_dataset(str(two_classes.parent))
    with pytest.raises(TITNError, match=r"pets.zip is a file: give a folder of images \(an archive unpacked\)"):
        load_dataset(str(write(two_classes.parent / "pets.zip")))
    with pytest.raises(TITNError, match="is a web address: download"):
        load_dataset("https://example.org/pets")
    for name in ("", "a\0b", "x" * 300):
        with pytest.raises(TITNError, match="unknown data set"):
            load_dataset(resolve_dataset(name))


# --- files that can't be read


def test_all_damaged_files_in_one_message_or_skipped(two_classes, caplog):
    good = load_dataset(str(two_classes))
    for i, content in enumerate(DAMAGE):
        write(two_classes / "round" / f"bad{i}.png", content)
    os.symlink(two_classes / "nowhere.png", two_classes / "square" / "link.png")
    with pytest.raises(TITNError, match="5 images can't be read") as problem:
        load_dataset(str(two_classes))
    sentence = str(problem.value)
    assert all(reason in sentence for reason in (*DAMAGE.values(), "there is no image"))
    assert "--skip-damaged" in sentence
    skipped = load_dataset(str(two_classes), skip_damaged=True)
    assert torch.equal(skipped.train.images, good.train.images)
    assert "skipped" in caplog.text
    for file in (two_classes / "square").glob("*.png"):
        file.unlink()
    write(two_classes / "square" / "0.png", b"")
    with pytest.raises(TITNError, match="no image of square can be read"):
        load_dataset(str(two_classes), skip_damaged=True)


def test_a_named_pipe_is_not_waited_for(two_classes):
    os.mkfifo(two_classes / "round" / "pipe.png")
    assert two_classes / "round" / "pipe.png" in list_images(two_classes).skipped
    with pytest.raises(TITNError, match=r"pipe.png is a named pipe: give an image file"):
        load_image(two_classes / "round" / "pipe.png", 3, 8)


def test_what_is_no_image_gets_the_sentence_that_fits(tmp_path):
    whole = image_bytes(9, ".JPG", (64, 64))
    cases = {
        tmp_path: "is a folder",
        "https://example.org/cat.png": "is a web address: download the image",
        tmp_path / "*.png": "no file matches",
        tmp_path / "none.png": "there is no image",
        "a\0b.png": "can't be opened",
        "x" * 300: "can't be opened",
        write(tmp_path / "cut.jpg", whole[:-20]): "is not an image or is damaged",
        **{write(tmp_path / f"{i}.jpg", content): words for i, (content, words) in enumerate(DAMAGE.items())},
    }
    for path, words in cases.items():
        with pytest.raises(TITNError, match=words):
            load_image(path, 3, 8)


def test_a_decompression_bomb_is_refused_and_a_large_photograph_is_not(tmp_path, monkeypatch, recwarn):
    Image.new("1", (3000, 1500)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3_000_000)
    assert load_image(tmp_path / "large.png", 3, 8).max() == 0
    assert not recwarn.list
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(TITNError, match="has more than 2 megapixels"):
        load_image(tmp_path / "large.png", 3, 8)


@pytest.mark.parametrize(
    ("values", "brightest"),
    [
        (np.linspace(0, 1, 64, dtype=np.float32), 255),
        (np.linspace(0, 200, 64, dtype=np.float32), 200),
        (np.linspace(0, 255, 64).astype(np.int32), 255),
        (np.linspace(0, 65535, 64).astype(np.int32), 255),
        (np.linspace(0, 65535, 64).astype(np.uint16), 255),
        (np.linspace(0, 257, 64).astype(np.uint16), 1),  # dark, and stays so
        (np.linspace(-1, 1, 64, dtype=np.float32), None),
        (np.linspace(0, 1e6, 64).astype(np.int32), None),
        (np.full(64, np.nan, np.float32), None),
    ],
)
def test_floats_and_integers_are_scaled_or_refused(tmp_path, values, brightest):
    Image.fromarray(values.reshape(8, 8)).save(tmp_path / "deep.tiff")
    if brightest is None:
        with pytest.raises(TITNError, match="scale is unknown: save it with 8 or 16 bits"):
            load_image(tmp_path / "deep.tiff", 1, 8)
    else:
        assert load_image(tmp_path / "deep.tiff", 1, 8).max() == brightest


def test_sixteen_bits_with_a_transparent_color(tmp_path):
    """They are scaled like all others, and not clipped."""
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "deep.png", transparency=0)
    with Image.open(tmp_path / "deep.png") as opened:
        assert opened.has_transparency_data
    found = load_image(tmp_path / "deep.png", 1, 8)[0]
    assert (found - torch.from_numpy((values / 257).astype(np.uint8))).abs().max() <= 1


def test_no_images(tmp_path):
    for paths in ([], "a.png"):
        with pytest.raises(TITNError, match="load_images expects a list of files"):
            images.load_images(paths, 3, 8)


def test_a_grayscale_folder_in_one_channel(two_classes):
    data = load_dataset(str(two_classes), in_channels=1)
    assert data.in_channels == len(data.mean) == 1
    assert torch.equal(data.train.images.expand(-1, 3, -1, -1), load_dataset(str(two_classes)).train.images)


# --- reading


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path, monkeypatch):
    rows, columns = np.mgrid[:1200, :1600] / 200
    waves = np.stack([np.sin(rows), np.cos(columns), np.sin(rows + columns)], axis=-1) * 100 + 128
    Image.fromarray(waves.astype(np.uint8)).save(tmp_path / "photo.jpg", quality=95)
    decoded = []
    real = JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda self, *a: (real(self, *a), decoded.append(self.size))[0])
    small = load_image(tmp_path / "photo.jpg", 3, (32, 48))
    assert decoded == [(200, 150)]
    with Image.open(tmp_path / "photo.jpg") as opened:
        whole = load_image(opened.copy(), 3, (32, 48))
    assert (small.int() - whole.int()).abs().max() <= 6


def test_images_are_read_in_parallel_and_in_order(two_classes, monkeypatch):
    import threading

    seen, read = set(), reading.read_image
    both = threading.Barrier(2, timeout=20)

    def meet(path, *rest):
        if path.name == "000.png":  # the first of each class: with one thread, the first would wait in vain
            both.wait()
        seen.add(threading.get_ident())
        return read(path, *rest)

    monkeypatch.setattr(reading.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(reading, "read_image", meet)
    parts = read_images(list_images(two_classes), (8, 8), progress=False)
    assert parts["all"].images.float().mean(dim=(1, 2, 3)).tolist() == [0.0] * 15 + [100.0] * 15
    assert len(seen) > 1


def test_what_does_not_fit_in_memory_is_refused_before_it_is_read(two_classes, monkeypatch):
    says = r"has 30 images, which take 0.1 GB at 1024×1024, and this machine has 0.1 GB: choose a smaller image_size"
    monkeypatch.setattr("titn_lib.data.images.memory_bytes", lambda: 10**8)
    with monkeypatch.context() as patch:
        patch.setattr(reading, "read_image", None)
        with pytest.raises(TITNError, match=says):
            load_dataset(str(two_classes), image_size=1024)
    with pytest.raises(TITNError, match=r"digits has 1,797 images, which take 0.1 GB at 256×256"):
        load_dataset("digits", image_size=256)
    monkeypatch.setattr("titn_lib.data.images.memory_bytes", lambda: 2 * 30 * 3 * 32 * 32)
    assert len(load_dataset(str(two_classes)).train) == 21
    monkeypatch.setattr("titn_lib.data.images.memory_bytes", lambda: None)
    assert len(load_dataset(str(two_classes)).train) == 21


def test_the_memory_is_known_where_there_is_a_system_call():
    if hasattr(os, "sysconf"):
        assert 10**8 < images.memory_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_stop_does_not_wait_for_all_other_images(two_classes, monkeypatch):
    read = []

    def stop(path, *_):
        read.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(reading.os, "sched_getaffinity", lambda _: {0}, raising=False)
    monkeypatch.setattr(reading, "read_image", stop)
    with pytest.raises(KeyboardInterrupt):
        read_images(list_images(two_classes), (8, 8), progress=False)
    assert len(read) < 30


def test_all_of_a_folder_whatever_its_split(tmp_path):
    for name in ("train", "test"):
        for kind in "ab":
            fill(tmp_path / name / kind, 3)
    found, classes = load_class_folders(tmp_path, (8, 8))
    assert classes == ("a", "b")
    assert found.labels.bincount().tolist() == [6, 6]


# --- fingerprints


def test_a_fingerprint_tells_every_change_of_the_files(two_classes, tmp_path):
    def fingerprint():
        return list_images(two_classes).fingerprint()

    seen = [fingerprint()]
    assert fingerprint() == seen[0]
    assert seen[0]["images"] == {"round": 15, "square": 15}
    write(two_classes / "round" / ".hidden.png")
    assert fingerprint() == seen[0]
    changes = [
        lambda: fill(two_classes / "third", 3),
        lambda: (two_classes / "third" / "000.png").rename(two_classes / "third" / "zzz.png"),
        lambda: write(two_classes / "round" / "000.png", image_bytes(1, size=(99, 77))),
        lambda: (two_classes / "round" / "000.png").rename(two_classes / "square" / "0.png"),
        lambda: (two_classes / "third").rename(two_classes / "fourth"),
    ]
    for change in changes:
        change()
        seen.append(fingerprint())
    assert len({one["sha256"] for one in seen}) == 6
    two_classes.rename(tmp_path / "moved")
    assert list_images(tmp_path / "moved").fingerprint() == seen[-1]


# --- tables


def make_table(folder, line="{name},{label}", head="file,label"):
    lines = [head]
    for i in range(40):
        write(folder / "images" / f"{i:03}.png", image_bytes(100 * (i % 2)))
        split = "train" if i < 30 else "test"
        lines.append(line.format(name=f"{i:03}.png", stem=f"{i:03}", label=("round", "square")[i % 2], split=split,
                                 number=f"{39 - i:03}"))  # fmt: skip
    return write(folder / "labels.csv", "\n".join(lines).encode())


@pytest.mark.parametrize(
    ("line", "head", "sizes"),
    [
        ("{name},{label}", "file,label", [28, 4, 8]),
        ("images/{name};{label}", "Filename;Class", [28, 4, 8]),
        ("images\\{name},{label}", "path,label", [28, 4, 8]),
        ("{stem},{label}", "id,breed", [28, 4, 8]),
        ('"{name}","{label}",{split}', "image,label,split", [27, 3, 10]),
        ("{number},{name},{label}", "id,file,label", [28, 4, 8]),  # an id that is another file's name
    ],
)
def test_a_table_of_files_and_labels(tmp_path, line, head, sizes):
    data = load_dataset(str(make_table(tmp_path, line, head)))
    assert data.classes == ("round", "square")
    assert [len(part) for part in (data.train, data.validation, data.test)] == sizes
    for part in (data.train, data.validation, data.test):
        assert torch.equal(part.images[:, 0, 0, 0].long(), 100 * part.labels)


def test_a_wrong_table_is_refused(tmp_path):
    table = make_table(tmp_path)
    good = table.read_text()
    wrong = {
        good.replace("label", "what"): "needs a first line that names a column file",
        good.replace("007.png", "777.png"): "names 777.png, and there is no such image",
        good.replace("007.png", "008.png"): r"lists .*008.png more than once",
        good.replace("007.png,square", "007.png"): "has lines with more or fewer than 2 cells",
        good.replace("square", "round"): "of two classes or more",
        good.replace("007.png,square", "007.png,"): "needs a label in every line",
        "file,label\n": "or none",
        "": "needs a first line",
        'file,label\n"' + 20_000 * "007.png,round\n": "is not a table .* look for a quotation mark that isn't closed",
    }
    for text, words in wrong.items():
        table.write_text(text)
        with pytest.raises(TITNError, match=words):
            load_dataset(str(table))
    with pytest.raises(TITNError, match=r"for a table of files and labels, give .*labels.csv"):
        load_dataset(str(tmp_path))
    write(tmp_path / "more" / "007.png", image_bytes(0))
    table.write_text(good)
    with pytest.raises(TITNError, match="2 images of that name"):
        load_dataset(str(table))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_as_spreadsheets_save_it(tmp_path, encoding):
    table = make_table(tmp_path)
    text = table.read_text(encoding="utf-8").replace("round", "Élan")
    table.write_bytes(text.encode(encoding))
    assert list_images(table).classes == ("square", "Élan")
    table.write_bytes(text.encode("cp1252"))
    with pytest.raises(TITNError, match=r"labels.csv is not UTF-8: save it as CSV in UTF-8"):
        list_images(table)


# --- mutations


def mutated(rng):
    """The bytes of an image of a random format and mode, cut, overwritten or whole, and a name that may not fit."""
    suffix = str(rng.choice(list(FORMATS)))
    mode = str(rng.choice(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "HSV", "LAB", "YCbCr"]))
    content = io.BytesIO()
    try:
        Image.effect_noise((16, 16), 50).convert("RGB").convert(mode).save(content, FORMATS[suffix])
    except (OSError, ValueError):  # not every format has every mode
        content = io.BytesIO(CONTENT[120, suffix])
    data = bytearray(content.getvalue())
    kind = rng.integers(4)
    if kind == 1:
        data = data[: rng.integers(len(data))]
    elif kind == 2:
        for at in rng.integers(len(data), size=8):
            data[at] = rng.integers(256)
    elif kind == 3:
        data[rng.integers(len(data)) :] = rng.bytes(40)
    return bytes(data), str(rng.choice(list(FORMATS)))


def test_three_hundred_mutated_images_are_read_or_refused_in_one_sentence(tmp_path):
    refusals = []
    for seed in range(300):
        content, suffix = mutated(np.random.default_rng(seed))
        file = write(tmp_path / f"{seed}{suffix}", content)
        try:
            assert load_image(file, 3, 8).shape == (3, 8, 8)
        except TITNError as problem:
            refusals.append((str(file), str(problem)))
    assert all(file in sentence and "\n" not in sentence for file, sentence in refusals)
    assert 50 < len(refusals) < 250


def test_a_bar_counts_the_images_where_reading_takes_long(two_classes, monkeypatch):
    bars = []

    def note(images, **options):
        bars.append(options)
        return images

    monkeypatch.setattr(reading, "tqdm", note)
    for progress in (True, False):
        load_dataset(str(two_classes), progress=progress)
    assert [(bar["total"], bar["disable"], bar["delay"]) for bar in bars] == [(30, False, 2), (30, True, 2)]
    assert bars[0]["desc"] == "reading pets"
