"""Images and their classes on disk: a subfolder for each class, or a table of files and labels.

Listing and reading are two steps. `list_images` finds the files, their classes and splits, and reads none of them.
`reading.read_images` reads them.
"""

import codecs
import csv
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from titn_lib.errors import TITNError, unknown

ALL = "all"  # of images that aren't split yet
SPLITS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validate": "validation",
    "validation": "validation", "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip
ORDER = ("train", "validation", "test")
SYSTEM_NAMES = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "@eadir",
    "lost+found", "icon\r", "__pycache__",
}  # fmt: skip
# Pillow only recognizes these, or needs another program for them.
UNREADABLE_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
FILE_COLUMNS = ("file", "filename", "file_name", "path", "filepath", "image", "image_id", "id", "name")
LABEL_COLUMNS = ("label", "class", "category", "target", "breed", "species", "labels", "class_name")
SPLIT_COLUMNS = ("split", "subset", "set")
END_BYTES = 2**16  # of each file, in a fingerprint


@dataclass(frozen=True)
class ImageList:
    """Image files with their labels, not yet read.

    Attributes:
        path: the folder or table.
        classes: in alphabetical order.
        files: "all", or those of "train", "validation" and "test" that there are, each with (file, label) pairs.
        skipped: what lies there and is no image, without hidden and system files.
    """

    path: Path
    classes: tuple[str, ...]
    files: dict[str, list[tuple[Path, int]]]
    skipped: tuple[Path, ...] = ()

    @property
    def num_training_images(self) -> int:
        """How many images training will see: about 72 % of those that aren't split yet."""
        return len(self.files["train"]) if "train" in self.files else len(self.files[ALL]) * 72 // 100

    def fingerprint(self) -> dict[str, object]:
        """What tells this list from another: how many images each class has, and a hash of all names, sizes and ends.

        The last 64 KB of each file count: uncompressed images all have the same size.
        """
        digest, counts = hashlib.sha256(), Counter[str]()
        top = self.path if self.path.is_dir() else self.path.parent
        for split, files in self.files.items():
            for file, label in files:
                counts[self.classes[label] if split == ALL else f"{split}/{self.classes[label]}"] += 1
                name = file.relative_to(top).as_posix() if file.is_relative_to(top) else file.name
                digest.update(os.fsencode(f"{split}\0{self.classes[label]}\0{name}\0") + size_and_end(file))
        return {"images": dict(counts), "sha256": digest.hexdigest()}


def size_and_end(file: Path) -> bytes:
    """A file's size and its last `END_BYTES`; of one that can't be read, neither."""
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - END_BYTES))
            return b"%d\0" % size + opened.read()
    except OSError:
        return b"unreadable"


@cache
def image_suffixes() -> frozenset[str]:
    """The endings of files that Pillow reads, in lowercase; those of plug-ins such as pillow-heif, too."""
    formats = Image.registered_extensions()
    return frozenset(
        suffix for suffix, name in formats.items() if name in Image.OPEN and name not in UNREADABLE_FORMATS
    )


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to the system or a program: it is never read, counted or named."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def list_images(path: Path) -> ImageList:
    """The images of a folder, or of a table (`list_table`).

    A folder has a subfolder for each class, or subfolders train, val (or valid, validation, dev) and test, in any
    mixture with train, each with a subfolder for each class. Subfolders of a class's folder belong to the class.
    Hidden and system files are skipped, symbolic links to folders aren't followed below a class.

    Raises:
        TITNError: fewer than two classes; an empty class; a class with the name of a split; two folders of one split;
            different classes in the splits; or a folder that can't be read.
    """
    if path.is_file():
        return list_table(path)
    folders, loose = visible(path)
    parts: dict[str, Path] = {}
    named = [folder for folder in folders if folder.name.lower() in SPLITS]
    for folder in named:
        other = parts.setdefault(SPLITS[folder.name.lower()], folder)
        if other != folder:
            raise TITNError(f"{other} and {folder.name} are both the {SPLITS[folder.name.lower()]} split: merge them")
    others = [folder for folder in folders if folder not in named]
    if not named:
        classes, files, skipped = list_classes(path)
        return ImageList(path, classes, {ALL: files}, skipped)
    if "train" not in parts or (others and len(parts) == 1):
        names = ", ".join(folder.name for folder in folders[:4])
        raise TITNError(
            f"{path} has the folders {names}, and {named[0].name} is the name of a split: rename it if it is a class, "
            "or make train and test folders, each with a subfolder for each class"
        )
    listed = {split: list_classes(parts[split]) for split in ORDER if split in parts}
    classes = listed["train"][0]
    for split, (found, _, _) in listed.items():
        if found != classes:
            raise TITNError(
                f"{parts['train']} and {parts[split]} have different class folders "
                f"({', '.join(sorted(set(classes) ^ set(found)))}): give both the same"
            )
    skipped = (*loose, *others, *(file for part in listed.values() for file in part[2]))
    return ImageList(path, classes, {split: part[1] for split, part in listed.items()}, skipped)


def list_own_images(name: str, known: Iterable[str]) -> ImageList:
    """The images of a folder or table; `known` are the data sets that have names.

    Raises:
        TITNError: there is no such path, or its images can't be used (`list_images`).
    """
    if "://" in name:
        raise TITNError(f"{name} is a web address: download the images and give their folder")
    if os.path.lexists(name):
        return list_images(Path(name))
    if os.sep in name or "/" in name:
        raise TITNError(f"there is no folder {name}: check the path")
    raise unknown("data set", name, known)


def visible(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders in a folder, and what else is in it, in alphabetical order and without what is hidden."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not is_hidden(entry.name))
    except OSError as problem:
        raise TITNError(f"{folder} can't be read ({problem.strerror}): check its permissions") from problem
    folders, files = list[Path](), list[Path]()
    for entry in entries:
        (folders if entry.is_dir() else files).append(entry)
    return folders, files


def list_classes(folder: Path) -> tuple[tuple[str, ...], list[tuple[Path, int]], tuple[Path, ...]]:
    """The classes of a folder with a subfolder for each, its images with their labels, and what was skipped."""
    folders, skipped = visible(folder)
    classes = tuple(sub.name for sub in folders)
    if len(classes) < 2:
        raise TITNError(
            f"{folder} needs a subfolder of images for each class, two or more, and has {len(classes)}"
            f"{hint(folder, folders, skipped)}"
        )
    if wrong := [name for name in classes if name.lower() in SPLITS]:
        raise TITNError(f"{folder} has a class folder {wrong[0]}, which is the name of a split: rename the class")
    named = [{SPLITS[word] for word in re.split(r"[\W_]+", name.lower()) if word in SPLITS} for name in classes]
    if all(named) and "train" in set.union(*named) != {"train"}:  # "steam train" and "freight train" may be classes
        raise TITNError(
            f"the class folders of {folder} ({', '.join(classes[:4])}) have names of splits: call them train and test, "
            "or rename the classes"
        )
    if wrong := [name for name in classes if name.encode(errors="ignore").decode() != name]:
        raise TITNError(f"the name of the class folder {wrong[0]!r} is not UTF-8: rename it")
    files: list[tuple[Path, int]] = []
    for label, sub in enumerate(folders):
        require_class(sub, folder)
        found = list_class(sub)
        images = [file for file in found if is_image(file)]
        skipped += [file for file in found if not is_image(file)]
        if not images:
            only = f" that can be read, only {kinds(found)}" if found else ""
            raise TITNError(f"the class folder {sub} holds no image{only}: add some, or remove the folder")
        files += [(file, label) for file in images]
    return classes, files, tuple(skipped)


def require_class(sub: Path, folder: Path) -> None:
    """Raises TITNError if a class folder can't be one: it holds the splits, or is a link to the folder around it."""
    if len(inside := [entry.name for entry in visible(sub)[0] if entry.name.lower() in SPLITS]) > 1:
        raise TITNError(
            f"the class folder {sub} has folders with names of splits ({', '.join(inside)}): make train and test "
            "folders, each with a subfolder for each class"
        )
    if folder.resolve().is_relative_to(sub.resolve()):
        raise TITNError(f"the class folder {sub} is a link to {sub.resolve()}, which holds all classes: remove it")


def hint(folder: Path, folders: list[Path], files: list[Path]) -> str:
    """What the user may have meant by a folder that holds fewer than two classes."""
    tables = [file.name for file in files if file.suffix.lower() in (".csv", ".tsv")]
    if tables:
        return f": for a table of files and labels, give {folder / tables[0]}"
    if len(folders) == 1 and len(visible(folders[0])[0]) > 1:
        return f": did you mean {folders[0]}?"
    return ""


def list_class(folder: Path) -> list[Path]:
    """All files below a folder, sorted, without what is hidden."""
    found = []

    def refuse(problem: OSError) -> None:
        raise TITNError(f"{problem.filename} can't be read ({problem.strerror}): check its permissions") from problem

    for top, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not is_hidden(name)]
        found += [Path(top, name) for name in files if not is_hidden(name)]
    return sorted(found)


def is_image(file: Path) -> bool:
    """Whether a file, by its ending, is an image. A link that leads nowhere is; a named pipe or a device is not."""
    if file.suffix.lower() not in image_suffixes():
        return False
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except OSError:
        return True  # reading it will say what is wrong


def kinds(files: Iterable[Path]) -> str:
    """How many files have which ending, such as "12 .heic, 1 .txt"."""
    counts = Counter("folders" if file.is_dir() else file.suffix.lower() or "without an ending" for file in files)
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(6))


def list_table(path: Path) -> ImageList:
    """The images of a CSV or TSV file with a column of files and a column of labels, and perhaps one of splits.

    Files are relative to the table. A name that isn't there is looked for in the folders beside the table; its ending
    may be missing.

    Raises:
        TITNError: the file isn't such a table, an image is missing or listed twice, or there are fewer than two
            classes.
    """
    if path.suffix.lower() not in (".csv", ".tsv"):
        raise TITNError(f"{path} is a file: give a folder of images (an archive unpacked), or a .csv of file,label")
    lines = table_text(path).splitlines()
    delimiter = max(",;\t", key=lines[0].count) if lines else ","
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter) if any(row)]
    except csv.Error as problem:
        raise TITNError(f"{path} is not a table ({problem}): look for a quotation mark that isn't closed") from problem
    head = [cell.lower() for cell in rows[0]] if rows else []
    file_at, label_at, split_at = (
        next((head.index(name) for name in names if name in head), None)  # a "file" before an "id"
        for names in (FILE_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS)
    )
    if file_at is None or label_at is None:
        raise TITNError(f"{path} needs a first line that names a column file and a column label: add it")
    body = [row for row in rows[1:] if len(row) == len(head)]
    if len(body) < len(rows) - 1 or not body:
        raise TITNError(f"{path} has lines with more or fewer than {len(head)} cells, or none: complete them")
    classes = tuple(sorted({row[label_at] for row in body}))
    if len(classes) < 2 or "" in classes:
        raise TITNError(f"{path} needs a label in every line, of two classes or more: complete it")
    find, files = finder(path), dict[str, list[tuple[Path, int]]]()
    for row in body:
        split = ALL if split_at is None else SPLITS.get(row[split_at].lower(), "")
        if not split:
            raise TITNError(f"{path} names a split {row[split_at or 0]!r}: write train, validation or test")
        files.setdefault(split, []).append((find(row[file_at]), classes.index(row[label_at])))
    twice = [file for file, count in Counter(f for part in files.values() for f, _ in part).items() if count > 1]
    if twice:
        raise TITNError(f"{path} lists {twice[0]} more than once: leave one line for each image")
    if ALL not in files and "train" not in files:
        raise TITNError(f"{path} has no image in the split train: add some, or leave the column out")
    return ImageList(path, classes, {split: files[split] for split in (ALL, *ORDER) if split in files})


def table_text(path: Path) -> str:
    """The text of a table in UTF-8, or in UTF-16 with its byte-order mark, as Excel writes it.

    Raises:
        TITNError: it is in another encoding.
    """
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as problem:
        raise TITNError(f"{path} is not UTF-8: save it as CSV in UTF-8") from problem


def finder(table: Path) -> Callable[[str], Path]:
    """A function that finds the file that a table names."""

    @cache
    def index() -> dict[str, list[Path]]:
        names: dict[str, list[Path]] = {}
        for file in filter(is_image, list_class(table.parent)):
            for name in {file.name, file.stem}:
                names.setdefault(name, []).append(file)
        return names

    def find(name: str) -> Path:
        file = table.parent / name.replace("\\", "/")
        if file.is_file():
            return file
        found = index().get(file.name, [])
        if len(found) != 1:
            there = f"{len(found)} images of that name" if found else "no such image"
            raise TITNError(f"{table} names {name}, and there is {there} in {table.parent}: correct the line")
        return found[0]

    return find
