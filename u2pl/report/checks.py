"""The outcome of one check of `u2pl verify`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from u2pl.errors import UserError


@dataclass(frozen=True)
class Check:
    """The outcome for one file; that of a manifest is the one for the folder's lists."""

    kind: str
    path: Path
    state: Literal["same", "differs", "absent", "unchecked"] = "same"
    found: str = ""
    expected: str = ""


def tried(kind: str, path: Path, function: Callable[..., Any], *arguments: Any) -> tuple[Check, Any]:
    """The outcome of function(path, *arguments), which raises UserError for what differs, and what it returned."""
    if not path.exists():
        return Check(kind, path, "absent"), None
    try:
        return Check(kind, path), function(path, *arguments)
    except UserError as error:
        # `where` may be a file that the function read beside `path`, and a key of it.
        file, _, key = error.where.partition(": ")
        return Check(kind, Path(file), "differs", f"{key}: {error.found}" if key else error.found, error.expected), None
    except OSError as error:
        return Check(kind, path, "differs", str(error.strerror), "a readable file"), None


def left_out(kind: str, path: Path) -> Check:
    """For a file that rests on one that differs or is absent."""
    return Check(kind, path, "unchecked" if path.exists() else "absent")
