"""Id lists: text files with one image id a line, sorted by bytes."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from u2pl.errors import UserError
from u2pl.files import atomic_path

# Ids become file names, so nothing that could leave the folder is an id.
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def parse_ids(text: str, where: object) -> list[str]:
    """The ids of a list's text, in its order. Raises UserError for a malformed or a doubled id."""
    ids = [line.strip() for line in text.splitlines() if line.strip()]
    seen: set[str] = set()
    for image_id in ids:
        if not ID.fullmatch(image_id):
            raise UserError(where, repr(image_id), "one image id a line (letters, digits, _ and -)")
        if image_id in seen:
            raise UserError(where, f"{image_id} twice", "every id once")
        seen.add(image_id)
    return ids


def read_ids(path: Path) -> list[str]:
    """Read a list. Raises UserError if it is missing, not text, or `parse_ids` refuses it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(path, "no file", "a list of image ids") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(path, error, "a list of image ids") from error
    return parse_ids(text, path)


def write_ids(path: Path, ids: Iterable[str]) -> None:
    """Write ids sorted by bytes (independent of the locale), atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(list_bytes(ids))


def list_bytes(ids: Iterable[str]) -> bytes:
    """The content of a list: the ids sorted by bytes, a newline after each."""
    return "".join(f"{i}\n" for i in sort_ids(ids)).encode()


def sort_ids(ids: Iterable[str]) -> list[str]:
    """Sort by bytes: the order in which `LC_ALL=C sort` would put the lines."""
    return sorted(ids, key=str.encode)


def hash_ids(ids: Iterable[str]) -> str:
    """SHA-256 of the ids in byte order with a newline between, not after: equal for equal sets, however written."""
    return hashlib.sha256("\n".join(sort_ids(ids)).encode()).hexdigest()
