"""Archives, weights and lists from where they are published, verified, with a small manifest beside each.

<file>             complete and verified, or not there
<file>.json        its size, SHA-256, MD5 and source: what the workflow and later steps look at
.<file>.verified   its checksums with the size, inode and time of change that it had when they were computed
<file>.part        what has arrived so far, with <file>.part.json (see transfer.py)

The manifest is equal for equal files, so it can be versioned. The record of the verification is of this machine alone:
while the file's inode is as it says, the file is not read again.
"""

import hashlib
import os
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from u2pl.addresses import public
from u2pl.data.sources import cityscapes as cityscapes_site
from u2pl.data.sources.http import Network, Refused, copy, discard, download, part_of
from u2pl.errors import UserError
from u2pl.experiments.records import FetchedManifest, read, write
from u2pl.experiments.schema import Archive
from u2pl.files import locked, read_json, sync, write_json

_BLOCK = 1 << 20


def fetch(archive: Archive, target: Path, network: Network | None = None) -> None:
    """Put the archive at the file `target` and its manifest beside it, from the first address that gives it.

    A `target` with the declared checksums is kept. One with others is replaced only if it was once verified here, so
    never one that the user has put there. An interrupted transfer resumes where it stopped. One process at a time. With
    U2PL_OFFLINE set, only files of this machine are used. Raises UserError if no address gives the file with its
    checksums; then none has the final name.
    """
    if _stands(archive, target):
        return
    with locked(target):
        try:
            if not _stands(archive, target) and not _accept(archive, target):
                _obtain(archive, target, network or Network())
        except OSError as error:
            raise UserError(error.filename or part_of(target), error.strerror, "a file that can be written") from None


def manifest_of(target: Path) -> Path:
    """The manifest of a fetched file."""
    return target.with_name(f"{target.name}.json")


def fetched_sha256(path: Path, archive: Archive | None = None) -> str:
    """SHA-256 of a fetched file, without reading it again if it is untouched since it was verified.

    Raises UserError if the file is missing or is not what its manifest says, which is removed then, so that the
    workflow fetches again; and if it has another checksum than `archive` declares, fetched or put there by hand.
    """
    recorded = _recorded(path)
    expected = recorded.sha256 if recorded else None
    facts = _facts(path) if path.is_file() else None
    if facts is None or expected not in (None, facts["sha256"]):
        try:
            manifest_of(path).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(manifest_of(path), error.strerror, "the manifest of the archive beside it") from error
    if facts is None:
        raise UserError(path, "no file", "the archive (run `u2pl data fetch`, or put it there)")
    if archive and (wrong := _wrong(archive, facts)):
        raise UserError(path, wrong[0], f"{wrong[1]} (run `u2pl data fetch`, or put the right file there)")
    if expected not in (None, facts["sha256"]):
        raise UserError(path, f"sha256 {facts['sha256']}", f"{expected} as fetched (run `u2pl data fetch`)")
    with suppress(UserError):  # a folder that cannot be written: the next step computes it again
        _record(path, facts)
    return str(facts["sha256"])


def _recorded(target: Path) -> FetchedManifest | None:
    """The manifest; None if it is none, or that of another file."""
    try:
        manifest = read(FetchedManifest, manifest_of(target))
    except UserError:
        return None
    return manifest if manifest.file == target.name else None


def _record_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.verified")


def _identity(target: Path) -> dict[str, int]:
    """What changes with every change of the file. Unlike dates, inode and ctime survive no copying."""
    stat = target.stat()
    return {"size": stat.st_size, "inode": stat.st_ino, "ctime_ns": stat.st_ctime_ns}


def _facts(target: Path) -> dict[str, Any]:
    """Size and checksums of the file: from the record of its verification if it is untouched since, else computed."""
    try:
        record = read_json(_record_of(target))
    except UserError:
        record = None
    if isinstance(record, dict) and record.keys() >= {"md5", "sha256"} and record == record | _identity(target):
        return {name: record[name] for name in ("size", "md5", "sha256")}
    return _checksums(target)


def _record(target: Path, facts: dict[str, Any]) -> None:
    """Note that the file as it is now has these checksums."""
    record = _identity(target) | {name: facts[name] for name in ("md5", "sha256")}
    try:
        same = read_json(_record_of(target)) == record
    except UserError:
        same = False
    if not same:
        write_json(_record_of(target), record)


def _stands(archive: Archive, target: Path) -> bool:
    """Whether nothing is to be done. Without a checksum, a copy may be out of date."""
    recorded = _recorded(target)
    known = archive.by_hand or archive.md5 or archive.sha256
    if not (known and recorded and target.is_file() and _record_of(target).is_file()):
        return False
    facts = _facts(target)
    return facts["sha256"] == recorded.sha256 and _wrong(archive, facts) is None


def _wrong(archive: Archive, facts: dict[str, Any]) -> tuple[str, str] | None:
    """What was found and what was expected, if a declared checksum differs."""
    for name, expected in (("md5", archive.md5), ("sha256", archive.sha256)):
        if expected and not str(facts[name]).startswith(expected.lower()):
            return f"{name} {facts[name]}", expected.lower()
    return None


def _checksums(path: Path) -> dict[str, Any]:
    """Size and checksums, computed. Raises UserError if the file changes meanwhile."""
    before = _identity(path)
    sums = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            for each in sums.values():
                each.update(block)
    if _identity(path) != before:
        raise UserError(path, "a file that changed while it was read", "one that nobody writes to")
    return {"size": before["size"], **{name: each.hexdigest() for name, each in sums.items()}}


def _write_manifest(target: Path, facts: dict[str, Any], source: str | None) -> None:
    """The record, and last of all the manifest, without a clock or a machine in it."""
    _record(target, facts)
    write(manifest_of(target), FetchedManifest(file=target.name, source=source, **facts))


def _offline() -> bool:
    return os.environ.get("U2PL_OFFLINE", "0") not in ("", "0")


def _accept(archive: Archive, target: Path) -> bool:
    """Whether the file that is at `target` is the archive; it gets its manifest then.

    Raises UserError if it is another one that the user may have put there.
    """
    checked = archive.md5 or archive.sha256
    if not target.is_file() or not (archive.by_hand or checked or _offline()):
        return False
    facts = _facts(target)
    if wrong := _wrong(archive, facts):
        if archive.by_hand:
            raise UserError(target, *wrong)
        if not _record_of(target).is_file():
            raise UserError(target, wrong[0], f"{wrong[1]}, or no file: move away what was not fetched here")
        return False
    discard(part_of(target))
    recorded = _recorded(target)
    _write_manifest(target, facts, recorded.source if recorded else None)
    return True


def _by_hand(archive: Archive, target: Path) -> str:
    """Which file the user can put where."""
    sums = [f"{name} {value}" for name, value in (("md5", archive.md5), ("sha256", archive.sha256)) if value]
    return f"{archive.file}{' with ' if sums else ''}{' and '.join(sums)}, put by hand at {target}"


def _obtain(archive: Archive, target: Path, network: Network) -> None:
    addresses = [url for url in (archive.url, *archive.mirrors) if url]
    for url in addresses:
        if (scheme := url.partition(":")[0]) not in ("file", "http", "https", "cityscapes"):
            raise UserError(public(url), f"scheme {scheme!r}", "file, http, https or cityscapes")
    if not addresses:
        raise UserError(target, "no file and no address", _by_hand(archive, target))
    if _offline() and not (addresses := [url for url in addresses if url.startswith("file:")]):
        damaged = _wrong(archive, _facts(target)) if target.is_file() else None
        found = f"U2PL_OFFLINE, so no network{f', and at {target} {damaged[0]}' if damaged else ''}"
        raise UserError(public(archive.url), found, _by_hand(archive, target))
    refusals: list[tuple[str, Refused]] = []
    for url in addresses:
        try:
            facts = _verified(archive, url, part_of(target), network)
        except Refused as error:
            refusals.append((public(url), error))
            continue
        part_of(target).replace(target)
        sync(target.parent)
        discard(part_of(target))
        _write_manifest(target, facts, public(url))
        return
    by_hand = f"the file, or {_by_hand(archive, target)}"
    if len(refusals) == 1:
        where, refused = refusals[0]
        raise UserError(where, refused.found, refused.expected or by_hand)
    raise UserError(archive.file, "; ".join(f"{where}: {refused}" for where, refused in refusals), by_hand)


def _verified(archive: Archive, url: str, part: Path, network: Network) -> dict[str, Any]:
    """Complete `part` from `url`; its size and checksums. Raises Refused if they are wrong, with the file removed."""
    resumed, published = _transfer(archive, url, part, network)
    archive = archive.model_copy(update={"md5": archive.md5 or published})
    facts = _checksums(part)
    wrong = _wrong(archive, facts)
    if wrong and resumed:
        print(f"{archive.file}: {wrong[0]} after an interrupted transfer; once more from the start", flush=True)
        discard(part)
        _transfer(archive, url, part, network)
        facts = _checksums(part)
        wrong = _wrong(archive, facts)
    if wrong:
        discard(part)
        raise Refused(*wrong)
    sync(part)  # the final name must not outlive the bytes in a power cut
    return facts


def _transfer(archive: Archive, url: str, part: Path, network: Network) -> tuple[bool, str | None]:
    """Complete `part`: whether it has bytes of an earlier attempt, and the MD5 that the site publishes, if any."""
    if url.startswith("file:"):
        address = urlsplit(url)
        if address.netloc not in ("", "localhost"):
            raise Refused(f"host {address.netloc!r} in the address of a file")
        copy(Path(urllib.request.url2pathname(address.path)), part, network)
        return False, None
    published = None
    with requests.Session() as session:
        session.headers["User-Agent"] = "u2pl"
        if url.startswith("cityscapes:"):
            url, published = cityscapes_site.open_package(session, url.partition(":")[2], network)
        checksum = bool(archive.md5 or published or len(archive.sha256 or "") == 64)
        return download(session, url, part, network, checksum=checksum), published
