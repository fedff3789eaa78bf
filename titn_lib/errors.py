"""One kind of error for everything a user can mend."""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin


class TITNError(Exception):
    """A problem the user can mend: its text is one sentence that names the thing and the way out.

    The command line prints the sentence without a traceback; in Python it is raised like any other error.
    """


class Interrupted(TITNError):
    """Training stopped before its end (Ctrl-C, SIGTERM or the time limit); its checkpoint is on disk."""


class Busy(TITNError):
    """Another process is making this run."""


def unknown(kind: str, name: str, known: Iterable[str]) -> TITNError:
    """The error for a name that is not among the known ones, with the closest known name first."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return TITNError(f"unknown {kind} {name!r}: {hint}the choices are {', '.join(known)}")


def check_choices(settings: Any) -> None:
    """Raises TITNError where a setting of a dataclass that is one of a few words (`Literal`) is another."""
    for field in dataclasses.fields(settings):
        value, choices = getattr(settings, field.name), get_args(field.type)
        if get_origin(field.type) is Literal and value not in choices:
            raise unknown(field.name, str(value), choices)
