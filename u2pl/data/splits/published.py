"""Split lists that other repositories published: fetched like archives, verified, parsed, and made into a split.

Upstream's lines are ids, or paths of images with or without those of their masks; a list may lack its final newline
and may end its lines as Windows does.
"""

import re
from pathlib import Path
from typing import Any

from u2pl.data.lists import hash_ids, parse_ids, read_ids
from u2pl.data.splits.draw import check_lists, write
from u2pl.errors import UserError
from u2pl.experiments.schema import Archive, Protocol, PublishedList, PublishedSource
from u2pl.files import sha256
from u2pl.folders import Prepared

# [folders/]id[_leftImg8bit][.jpg or .png][ mask's path]
_LINE = re.compile(r"(?:\S*/)?([A-Za-z0-9][A-Za-z0-9_-]*?)(?:_leftImg8bit)?(?:\.(?:jpg|png))?(?:\s+(\S+))?")


def archive(source: PublishedSource, path: str) -> Archive:
    """The file at `path` of the source's repository, as something to fetch; an empty prefix leaves it to the user."""
    expected = source.sha256[path].file if source.sha256 else None
    return Archive(file=path, url=f"{source.url.rstrip('/')}/{path}" if source.url else "", sha256=expected)


def parse(text: str, where: object) -> list[str]:
    """The ids of a published list, in its order.

    Raises UserError for a line that names no image, or a mask of another image, and for a doubled id.
    """
    ids = []
    for line in filter(None, map(str.strip, text.splitlines())):
        match = _LINE.fullmatch(line)
        if match is None or (match[2] and not Path(match[2]).name.startswith(match[1])):
            raise UserError(where, repr(line), "an image id, or the paths of an image and its mask")
        ids.append(match[1])
    return parse_ids("\n".join(ids), where)


def read(source: PublishedSource, path: str, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """The ids of a fetched list below `folder`, and its path and hashes as a manifest holds them.

    Raises UserError if the file is missing or not text, or has another hash, of its bytes or its ids, than declared.
    """
    file = folder / path
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(file, "no file", "a published list (run `u2pl data fetch-list`)") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(file, error, "a published list") from error
    facts = {"path": path, "sha256": sha256(file)}
    expected = source.sha256[path] if source.sha256 else None
    if expected and facts["sha256"] != expected.file:
        raise UserError(file, f"sha256 {facts['sha256']}", expected.file)
    ids = parse(text, file)
    facts["sha256_ids"] = hash_ids(ids)
    if expected and facts["sha256_ids"] != expected.ids:
        raise UserError(file, f"sha256 {facts['sha256_ids']} of its ids", expected.ids)
    return ids, facts


def install(
    name: str,
    source: PublishedSource,
    files: PublishedList,
    protocol: Protocol,
    labelled: int,
    *,
    folder: Path,
    prepared: Path,
    target: Path,
) -> None:
    """Make the split folder `target` of the fetched lists `files` of the source `name`, which stand below `folder`.

    Without a published unlabelled list, the rest of the protocol's universe is unlabelled. Nothing is written unless
    both lists have their hashes and sizes, are disjoint, and are exactly the universe; else UserError.
    """
    ids, facts = read(source, files.labelled, folder)
    universe = read_ids(Prepared(prepared).list(protocol.universe))
    lists, where = {"labeled": ids}, {"labeled": folder / files.labelled}
    published: dict[str, dict[str, Any] | None] = {"labeled": facts, "unlabeled": None}
    if files.unlabelled is None:
        lists["unlabeled"], where["unlabeled"] = [i for i in universe if i not in set(ids)], where["labeled"]
    else:
        lists["unlabeled"], published["unlabeled"] = read(source, files.unlabelled, folder)
        where["unlabeled"] = folder / files.unlabelled
    if len(ids) != labelled:
        raise UserError(where["labeled"], f"{len(ids)} images", f"the {labelled} of the protocol's fraction")
    check_lists(lists, where, prepared, protocol.candidates, protocol.universe)
    write(
        protocol,
        lists,
        prepared,
        target,
        {
            "source": name,
            "repository": source.repository,
            "commit": source.commit,
            "verified": source.sha256 is not None,  # false: a mirror of our own making, not what the commit holds
            "files": published,
        },
    )
