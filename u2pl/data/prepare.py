"""Upstream archives -> images, train-id masks and id lists in one layout for every data set.

<target>/images/<id><suffix>   upstream's bytes, decoded once to prove them complete
<target>/masks/<id>.png        (H, W) uint8: 0 to n_classes - 1, or the ignore label
<target>/lists/{train,train_aug,val}.txt
<target>/checksums.sha256      of all those files, as sha256sum writes and checks them
<target>/manifest.json         written last: what all files must be, by the hash of checksums.sha256

No file is trusted for its name. An interrupted conversion is resumed from checksums.sha256, which grows with each file;
a finished folder is compared with it before it is used, and what is missing or damaged is converted again.
"""

import hashlib
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from u2pl.data.convert import convert
from u2pl.data.layouts import LAYOUTS
from u2pl.data.layouts.layout import Plan
from u2pl.data.lists import list_bytes, sort_ids
from u2pl.data.progress import progress
from u2pl.data.sources.fetch import fetched_sha256
from u2pl.errors import UserError
from u2pl.experiments.read import validate
from u2pl.experiments.records import PreparedManifest, plain, read, write
from u2pl.experiments.schema import Dataset
from u2pl.files import atomic_path, locked, read_json, sha256, write_json
from u2pl.folders import Prepared

_FORMAT = 1  # of the prepared folder; part of the resume key, so a change of it converts anew
_NAMED = 5  # damaged files that are named before the rest is counted
_LINE = re.compile(r"^([0-9a-f]{64})  ((?:images|masks|lists)/[^/\n]+)$", re.MULTILINE)
Digests = Mapping[str, str]  # path below the folder -> SHA-256


def prepare(dataset: Dataset, archives: Path, target: Path, workers: int) -> None:
    """Convert the archives of `dataset` in the folder `archives` into the folder `target`, with `workers` processes.

    Files that are there already are kept if they have their recorded checksum, and made again otherwise; a manifest
    that would be equal is not written again. One process at a time. Raises UserError for a missing, unsafe or damaged
    archive or one with another checksum than declared, an image that does not decode, a mask of another size, an
    unknown label, lists whose lengths differ from `dataset.counts`, and a full disk; no manifest is left then.
    """
    manifest = Prepared(target).manifest
    with _alone(target, workers):
        try:
            paths, hashes = _sources(dataset, archives)
            _start(target, dataset, hashes)
            listed = _listed(target)
            known = _sound(target, listed)
            if known != listed:
                manifest.unlink(missing_ok=True)
                _write_checksums(target, known)
            made, counts = _make(dataset, paths, target, workers, known, Prepared(target).checksums)
            _write_checksums(target, made)
            facts = {"counts": counts, "files": len(made), "content_sha256": _content_hash(made), "archives": hashes}
            content = validate(PreparedManifest, _declared(dataset) | facts, manifest)
            if not _holds(manifest, plain(content)):
                write(manifest, content)
        except BaseException:
            manifest.unlink(missing_ok=True)
            raise


def restore(dataset: Dataset, archives: Path, target: Path, workers: int) -> None:
    """Convert again what is missing in `target` or is not what its manifest records. Without a manifest, do nothing.

    Only the manifest is versioned. It is left as it is, so that nothing that depends on it is made again. Raises
    UserError if the manifest is not of today's params, or the archives are missing or give other files.
    """
    manifest = Prepared(target).manifest
    if not manifest.is_file():
        return
    recorded = read(PreparedManifest, manifest)
    _check_manifest(dataset, recorded, manifest)
    if not _damaged(target, recorded):
        return
    with _alone(target, workers):
        damaged = _damaged(target, recorded)  # perhaps repaired by the process that had the lock
        if damaged:
            _repair(dataset, archives, target, workers, recorded, damaged)


def _repair(
    dataset: Dataset, archives: Path, target: Path, workers: int, recorded: PreparedManifest, damaged: list[str]
) -> None:
    """Convert the `damaged` files again; all but the provably sound ones if checksums.sha256 itself is damaged."""
    manifest, checksums = Prepared(target).manifest, Prepared(target).checksums
    whole = damaged == [checksums.name]
    if whole and _content_hash(found := _digests(target, _names(target))) == recorded.content_sha256:
        print(f"{checksums}: missing or damaged; written again, since all other files are sound", flush=True)
        _write_checksums(target, found)
        return
    more = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
    what = f"missing or damaged: {', '.join(damaged[:_NAMED])}{more}"
    if whole and not _names(target):
        what = "no files but the manifest"
    print(f"{target}: {what}; converting the archives' images and masks again", flush=True)
    try:
        paths, hashes = _sources(dataset, archives)
    except UserError as error:
        found_there = f"{what}; and for converting again, at {error.where}, {error.found}"
        raise UserError(target, found_there, error.expected) from error
    if hashes != recorded.archives:
        raise UserError(f"{archives} as prepared: archives", hashes, f"{recorded.archives}, as {manifest} says")
    if whole:
        _start(target, dataset, hashes)
        _write_checksums(target, known := _sound(target, _listed(target)))
    else:
        known = {name: digest for name, digest in _listed(target).items() if name not in damaged}
    made, _ = _make(dataset, paths, target, workers, known, checksums if whole else None)
    if _content_hash(made) != recorded.content_sha256:
        now = f"a folder as {manifest} says (`u2pl data prepare` accepts what this machine makes, as other data)"
        raise UserError(target, f"{what}; and other bytes when they are converted again", now)
    if whole:
        _write_checksums(target, made)


@contextmanager
def _alone(target: Path, workers: int) -> Iterator[None]:
    with locked(target):
        try:
            yield
        except BrokenProcessPool as error:
            raise UserError(target, "a worker that was killed", f"memory for {workers} of them") from error
        except OSError as error:
            raise UserError(error.filename or target, error.strerror, "a file that can be written") from error


def _sources(dataset: Dataset, archives: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The archives by key, and their SHA-256 by file name."""
    needed = LAYOUTS[dataset.kind].archives
    if set(dataset.archives) != needed:
        raise UserError(f"archives of {dataset.kind}", sorted(dataset.archives), sorted(needed))
    paths = {key: archives / archive.file for key, archive in dataset.archives.items()}
    return paths, {path.name: fetched_sha256(path, dataset.archives[key]) for key, path in paths.items()}


# ------------------------------------------------------------------------------------------------ manifest, checksums


def _declared(dataset: Dataset) -> dict[str, Any]:
    """The part of the manifest that follows from the params."""
    return {
        "dataset": dataset.kind,
        "suffix": LAYOUTS[dataset.kind].suffix,
        "classes": [label.name for label in dataset.classes],
        "ignore_label": dataset.ignore_label,
        "format": _FORMAT,
    }


def _check_manifest(dataset: Dataset, recorded: PreparedManifest, manifest: Path) -> None:
    """Raise UserError unless the manifest is of the data set as the params declare it today."""
    found = plain(recorded)
    for key, expected in (_declared(dataset) | {"counts": recorded.counts | dataset.counts}).items():
        if found[key] != expected:
            again = f"{expected} of the params (`u2pl data prepare` converts again)"
            raise UserError(f"{manifest}: {key}", found[key], again)


def _text(digests: Digests) -> bytes:
    return "".join(f"{digests[name]}  {name}\n" for name in sort_ids(digests)).encode()


def _content_hash(digests: Digests) -> str:
    return hashlib.sha256(_text(digests)).hexdigest()


def _write_checksums(target: Path, digests: Digests) -> None:
    text = _text(digests)
    if not (Prepared(target).checksums).is_file() or (Prepared(target).checksums).read_bytes() != text:
        with atomic_path(Prepared(target).checksums) as temporary:
            temporary.write_bytes(text)


def _listed(target: Path) -> dict[str, str]:
    """What checksums.sha256 lists; of a damaged one, the lines that are whole."""
    try:
        text = (Prepared(target).checksums).read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return {}
    return {name: digest for digest, name in _LINE.findall(text)}


def _names(target: Path) -> list[str]:
    """The prepared files that are there."""
    folders = (Prepared(target).images, Prepared(target).masks, Prepared(target).lists)
    return [f"{folder.name}/{path.name}" for folder in folders for path in folder.glob("[!.]*") if path.is_file()]


def _digests(target: Path, names: Collection[str]) -> dict[str, str]:
    """SHA-256 of the files, several at a time, since hashing releases Python's lock; missing ones are left out."""

    def digest(name: str) -> str | None:
        try:
            return sha256(target / name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(target / name, error.strerror, "a readable file") from error

    with ThreadPoolExecutor() as pool:
        found = zip(names, pool.map(digest, names), strict=True)
        return {name: value for name, value in found if value is not None}


def _sound(target: Path, listed: Digests) -> dict[str, str]:
    """The listed files that are there with their checksum."""
    return {name: digest for name, digest in _digests(target, listed).items() if listed[name] == digest}


def _damaged(target: Path, recorded: PreparedManifest) -> list[str]:
    """The files that are missing or not as recorded; checksums.sha256 alone where it is not the manifest's."""
    listed = _listed(target)
    path = Prepared(target).checksums
    if not path.is_file() or sha256(path) != recorded.content_sha256:
        return [path.name]
    found = _digests(target, listed)
    return [name for name, digest in listed.items() if found.get(name) != digest]


def _start(target: Path, dataset: Dataset, hashes: dict[str, str]) -> None:
    """Keep the finished files of an interrupted conversion only if it had the same inputs, and no unfinished one."""
    for unfinished in target.rglob(".*.*"):  # the names of atomic_path
        unfinished.unlink()
    key = {
        "format": _FORMAT,
        "kind": dataset.kind,
        "archives": hashes,
        "classes": len(dataset.classes),
        "ignore_label": dataset.ignore_label,
    }
    folder = Prepared(target)
    if _holds(folder.sources, key):
        return
    # The old key goes first, the new one comes last: a kill in between leaves no old file under the new key.
    for path in (folder.sources, folder.checksums):
        path.unlink(missing_ok=True)
    for path in (folder.images, folder.masks, folder.lists):
        shutil.rmtree(path, ignore_errors=True)
    write_json(folder.sources, key)


def _holds(path: Path, value: dict[str, Any]) -> bool:
    """Whether the JSON file holds this value."""
    with suppress(UserError):
        return bool(read_json(path) == value)
    return False


# --------------------------------------------------------------------------------------------------------- conversion


def _make(
    dataset: Dataset, paths: dict[str, Path], target: Path, workers: int, known: Digests, journal: Path | None
) -> tuple[dict[str, str], dict[str, int]]:
    """Make all files but the `known` ones, whose checksums are given; the checksums of all, and the lists' lengths.

    journal: the file that gets a line for each file that is made.
    """
    layout = LAYOUTS[dataset.kind]
    plan = layout.plan(paths)
    _check_counts(dataset, plan, paths)
    wanted = {
        f"{folder}/{image_id}{ending}": (key, member)
        for members, folder, ending in ((plan.images, "images", layout.suffix), (plan.masks, "masks", ".png"))
        for (key, member), image_id in members.items()
    }
    made = {name: digest for name, digest in known.items() if name in wanted}
    lists = {f"lists/{name}.txt": list_bytes(ids) for name, ids in plan.lists.items()}
    for folder in ("images", "masks"):  # in this order, because a mask is checked against its image's size
        todo = {wanted[name]: name for name in wanted if name.startswith(folder) and name not in made}
        if not todo:
            continue
        with progress(f"{target}: {folder}", len(todo)) as advance:
            for name, digest in convert(dataset, paths, target, todo, workers):
                made[name] = digest
                if journal:
                    with journal.open("a", encoding="utf-8") as stream:
                        stream.write(f"{digest}  {name}\n")
                advance(1)
    for name, content in lists.items():
        made[name] = hashlib.sha256(content).hexdigest()
        if known.get(name) != made[name]:
            with atomic_path(target / name) as temporary:
                temporary.write_bytes(content)
    return made, {name: len(ids) for name, ids in plan.lists.items()}


def _check_counts(dataset: Dataset, plan: Plan, paths: dict[str, Path]) -> None:
    for name, expected in dataset.counts.items():
        if name not in plan.lists:
            raise UserError(f"counts of {dataset.kind}", name, " or ".join(plan.lists))
        if len(plan.lists[name]) != expected:
            where = " and ".join(map(str, paths.values()))
            raise UserError(
                where, f"{len(plan.lists[name])} images in {name}", f"the {expected} that `counts` declares"
            )
