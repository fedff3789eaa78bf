"""The library's errors."""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin


class TITNError(ValueError):
    """A problem that the user can fix. Its message is one sentence that names the cause and the way out.

    The command line prints the message without a traceback. In Python it is an ordinary `ValueError`.
    """


class TrainingInterrupted(RuntimeError):
    """Training stopped before its end (Ctrl-C, SIGTERM or the time limit); its checkpoint is on disk."""


class RunLocked(TITNError):
    """Another process is training this run."""


def unknown(kind: str, name: str, known: Iterable[str]) -> TITNError:
    """The error for a name that is not among the known ones, with the closest known name first."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return TITNError(f"unknown {kind} {name!r}: {hint}the choices are {', '.join(known)}")


def check_choices(settings: Any) -> None:
    """Check a dataclass's `Literal` settings.

    Raises:
        TITNError: the value of one is not among its choices.
    """
    for field in dataclasses.fields(settings):
        value, choices = getattr(settings, field.name), get_args(field.type)
        if get_origin(field.type) is Literal and value not in choices:
            raise unknown(field.name, str(value), choices)
