"""Archives, weights and lists from where they are published, verified, with a small manifest beside each.

<file>             complete and verified, or not there
<file>.json        its size, SHA-256, MD5 and source: what the workflow and later steps look at
<file>.part        what has arrived so far, with <file>.part.json (see transfer.py)
"""

import hashlib
import os
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from u2pl.data import cityscapes_site
from u2pl.data.transfer import Network, Refused, copy, discard, download, part_of
from u2pl.errors import UserError
from u2pl.experiments.schema import Archive, public
from u2pl.files import locked, read_json, sha256, write_json

_BLOCK = 1 << 20


def fetch(archive: Archive, target: Path, network: Network | None = None) -> None:
    """Put the archive at the file `target` and its manifest beside it, from the first address that gives it.

    A `target` with the declared checksums is kept, and a file that the user may have put there is never replaced.
    An interrupted transfer goes on where it stopped. One process at a time. With U2PL_OFFLINE set, only files of this
    machine are used. Raises UserError if no address gives the file with its checksums; then none has the final name.
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
    """SHA-256 of an archive, from its manifest if the file has not been touched since that was written.

    Raises UserError if the archive is missing or is not what its manifest says. The manifest is removed then, so that
    the workflow fetches again.
    """
    if archive is not None and path.is_file() and (wrong := _wrong(archive, _facts(path))):
        raise UserError(path, *wrong)
    recorded = _recorded(path)
    if _untouched(path, recorded):
        return str(recorded["sha256"])
    found = sha256(path) if path.is_file() else None
    if found is not None and recorded.get("sha256") in (None, found):
        return found
    try:
        manifest_of(path).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(manifest_of(path), error.strerror, "the manifest of the archive beside it") from error
    if found is None:
        raise UserError(path, "no file", "the archive (run `u2pl data fetch`, or put it there)")
    raise UserError(path, f"sha256 {found}", f"{recorded['sha256']} as fetched (run `u2pl data fetch`)")


def _recorded(target: Path) -> dict[str, Any]:
    try:
        value = read_json(manifest_of(target))
    except UserError:
        return {}
    whole = isinstance(value, dict) and value.keys() >= {"file", "size", "md5", "sha256"}
    return value if whole and value["file"] == target.name else {}


def _untouched(target: Path, recorded: dict[str, Any]) -> bool:
    """Whether the manifest is younger than the last change of the file. Unlike mtime, ctime survives no copying."""
    if not (recorded and target.is_file()):
        return False
    stat = target.stat()
    return recorded.get("size") == stat.st_size and stat.st_ctime_ns <= manifest_of(target).stat().st_mtime_ns


def _stands(archive: Archive, target: Path) -> bool:
    """Whether nothing is to be done, without reading the file. Without a checksum, a copy may be out of date."""
    recorded = _recorded(target)
    known = archive.by_hand or archive.md5 or archive.sha256
    return bool(known) and _untouched(target, recorded) and _wrong(archive, recorded) is None


def _wrong(archive: Archive, facts: dict[str, Any]) -> tuple[str, str] | None:
    """What was found and what was expected, if a declared checksum differs."""
    for name, expected in (("md5", archive.md5), ("sha256", archive.sha256)):
        if expected and not str(facts[name]).startswith(expected.lower()):
            return f"{name} {facts[name]}", expected.lower()
    return None


def _facts(path: Path) -> dict[str, Any]:
    sums = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            for each in sums.values():
                each.update(block)
    return {"size": path.stat().st_size, **{name: each.hexdigest() for name, each in sums.items()}}


def _write_manifest(target: Path, facts: dict[str, Any], source: str | None) -> None:
    """Last of all; without a clock or a machine in it, so that the same file always has the same manifest."""
    write_json(manifest_of(target), {"file": target.name, "source": source, **facts})


def _offline() -> bool:
    return os.environ.get("U2PL_OFFLINE", "0") not in ("", "0")


def _accept(archive: Archive, target: Path) -> bool:
    """Whether the file that stands there is the archive; it gets its manifest then."""
    checked = archive.md5 or archive.sha256
    if not target.is_file() or not (archive.by_hand or checked or _offline()):
        return False
    facts = _facts(target)
    if wrong := _wrong(archive, facts):
        if archive.by_hand:
            raise UserError(target, *wrong)
        return False
    discard(part_of(target))
    _write_manifest(target, facts, _recorded(target).get("source"))
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
        raise UserError(public(archive.url), "U2PL_OFFLINE, so no network", _by_hand(archive, target))
    refusals: list[tuple[str, Refused]] = []
    for url in addresses:
        try:
            facts = _verified(archive, url, part_of(target), network)
        except Refused as error:
            refusals.append((public(url), error))
            continue
        part_of(target).replace(target)
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
    facts = _facts(part)
    wrong = _wrong(archive, facts)
    if wrong and resumed:
        print(f"{archive.file}: {wrong[0]} after an interrupted transfer; once more from the start", flush=True)
        discard(part)
        _transfer(archive, url, part, network)
        facts = _facts(part)
        wrong = _wrong(archive, facts)
    if wrong:
        discard(part)
        raise Refused(*wrong)
    with part.open("rb") as stream:
        os.fsync(stream.fileno())  # the final name must not outlive the bytes in a power cut
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
