"""What a data set's layout must provide, and helpers for writing one.

A layout selects members of upstream's archives by name and gives each an image id. It ignores what it does not name,
since archives hold more than is used (VOC: every object class and year; SBD: a demo with copies of two images;
Cityscapes: a test split without labels).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from u2pl.data.lists import ID, parse_ids, sort_ids
from u2pl.data.sources.unpack import ArchiveReader
from u2pl.errors import UserError

# (content of a member, its place in messages, ignore label) -> (H, W) integers: train ids and the ignore label.
# `convert` checks their range and size. Worker processes call it, so it must be a module's function.
ReadMask = Callable[[bytes, str, int], NDArray[Any]]


@dataclass
class Plan:
    """What to read: (archive key, member name) -> image id, once for images and once for masks."""

    lists: dict[str, list[str]]
    images: dict[tuple[str, str], str] = field(default_factory=dict)
    masks: dict[tuple[str, str], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """Everything that is specific to one data set's archives.

    `plan` takes the archives' paths by key. Its lists are those of `u2pl.experiments.schema.LISTS`. It raises UserError
    for an archive that is missing, unsafe or damaged, or lacks an image, a mask or a list.
    """

    suffix: str  # of the images, which are stored as they are
    archives: frozenset[str]  # keys of `archives` in params/datasets.yaml
    plan: Callable[[Mapping[str, Path]], Plan]
    masks: Mapping[str, ReadMask]  # by key of the archive that holds them


def by_tail(reader: ArchiveReader, pattern: str) -> dict[str, str]:
    """Member names whose end matches `pattern`, by its first group. Archives differ in their leading folders."""
    found: dict[str, str] = {}
    for name in reader.names:
        if match := re.fullmatch(rf"(?:.*/)?{pattern}", name, re.DOTALL):
            if match[1] in found:
                raise UserError(reader.path, f"{found[match[1]]!r} and {name!r}", "one of them")
            found[match[1]] = name
    return found


def decode_ids(text: bytes, path: Path, member: str) -> list[str]:
    """The ids of a list in an archive. Raises UserError if `parse_ids` refuses it."""
    try:
        return parse_ids(text.decode(), f"{path}:{member}")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{member}", error, "a list of image ids") from error


def check_ids(ids: set[str], path: Path) -> None:
    """Ids from file names: each whole, since white space around it would be lost in a list."""
    if bad := [image_id for image_id in sort_ids(ids) if not ID.fullmatch(image_id)]:
        raise UserError(path, f"a file of {bad[0]!r}", "image ids of letters, digits, _ and -")
