"""The project's folders, atomic file writes, locks, and Markdown tables."""

import argparse
import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from titn_lib.errors import RunLocked, TITNError

REASONS = {
    errno.ENOSPC: "the disk is full: free some space or choose another folder",
    errno.EDQUOT: "your disk quota is used up: free some space or choose another folder",
    errno.EFBIG: "the file would be larger than this system allows: choose another folder",
    errno.EACCES: "no permission: choose another folder or change its permissions",
    errno.EPERM: "no permission: choose another folder or change its permissions",
    errno.EROFS: "that disk is read-only: choose another folder",
    errno.ENOTDIR: "part of that path is a file, not a folder: choose another folder",
    errno.EEXIST: "part of that path is a file, not a folder: choose another folder",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.EISDIR: "that is a folder: give the name of a file",
}
UNFINISHED = re.compile(r".+\.(json|pt|safetensors)\.\d+\.part")  # of a run; other programs' files have such names, too


def repo_root() -> Path | None:
    """The root of the checkout that contains this library; None for an installed package."""
    top = Path(__file__).resolve().parent.parent
    return top if (top / "pyproject.toml").exists() else None


def records_dir() -> Path:
    """The folder with experiments/, results/ and benchmarks/.

    It is the checkout, or in an installed package a copy without weights and images.
    """
    return repo_root() or Path(__file__).parent / "recorded"


def cannot_write(path: Path, problem: OSError) -> TITNError:
    """The error for a failed write, with the reason and the way out."""
    return TITNError(f"cannot write {path}: {REASONS.get(problem.errno or 0, problem.strerror or str(problem))}")


def path_of(text: str) -> Path:
    """A path, from the command line."""
    return Path(text_of(text))


def text_of(text: str) -> str:
    """A name or path that the system can take: neither empty nor with a NUL character."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"names must not be empty or contain a NUL character: {text!r}")
    return text


def make_folder(path: str | Path) -> Path:
    """Create a folder and its parents.

    Raises:
        TITNError: the folder can't be created or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise cannot_write(path, problem) from problem
    if not os.access(path, os.W_OK):
        raise cannot_write(path, PermissionError(errno.EACCES, ""))
    return path


@contextmanager
def lock_dir(folder: Path) -> Iterator[None]:
    """Context in which no other process can lock the folder. File systems without locks give no protection.

    Unfinished files of `write_atomically` that killed processes left in the folder are deleted.

    Raises:
        RunLocked: another process holds the lock.
    """
    lock = FileLock(folder / ".lock")
    with suppress(NotImplementedError):
        try:
            lock.acquire(blocking=False)
        except Timeout as problem:
            raise RunLocked(f"another process is training in {folder}: wait, or choose another folder") from problem
        for left in filter(lambda file: UNFINISHED.fullmatch(file.name), folder.iterdir()):
            if not left.name.endswith(f".{os.getpid()}.part"):
                left.unlink(missing_ok=True)
    try:
        yield
    finally:
        lock.release()


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that even after a crash it has either the whole old or the whole new content.

    Raises:
        TITNError: the folder can't be written to or the disk is full. No partial file is left behind.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        write_in_place(path, content)
        return
    path = path.resolve() if path.is_symlink() else path  # the link stays
    make_folder(path.parent)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")  # another process may write the same file
    try:
        with open(unfinished, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        sync_folder(path.parent)
    except BaseException as problem:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if isinstance(problem, OSError):
            raise cannot_write(path, problem) from problem
        raise


def write_in_place(path: Path, content: bytes) -> None:
    """Write to a device or a pipe, such as /dev/null or /dev/stdout: a file that replaced it would break the system.

    Raises:
        TITNError: it can't be written to, or is a folder.
    """
    try:
        with open(path, "wb") as file:
            file.write(content)
    except OSError as problem:
        raise cannot_write(path, problem) from problem


def require_no_input(out: Path, inputs: Iterable[Path | None]) -> None:
    """Raises TITNError if an output would overwrite one of the files that it is made from, whatever their names."""
    for path in inputs:
        if path and path.exists() and out.exists() and path.samefile(out):
            raise TITNError(f"{out} is an input ({path}) and would be overwritten: choose another file")


def require_outside(out: Path, images: str | Path) -> None:
    """Raises TITNError if an output lies in a folder of images, where it would be taken for a class or an image."""
    if os.path.isdir(images) and out.resolve().is_relative_to(Path(images).resolve()):
        raise TITNError(f"{out} would lie among the images of {images}: choose a place outside that folder")


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a renamed file survives a power cut, where the system supports it."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def markdown_table(head: list[str], rows: list[list[str]], align: bool = False) -> str:
    """A Markdown table.

    Args:
        align: pad all cells of a column to the same width, for reading in a terminal.
    """
    widths = [max(len(row[i]) for row in [head, *rows]) if align else 0 for i in range(len(head))]
    rule = ["-" * max(3, width) for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [head, rule, *rows]
    )
