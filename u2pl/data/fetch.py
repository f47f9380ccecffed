"""Fetch an upstream archive and check it."""

import hashlib
import http.client
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from u2pl.errors import UserError
from u2pl.experiments.schema import Archive
from u2pl.files import atomic_path, sha256, write_json

_TIMEOUT = 60  # seconds without a byte
_BLOCK = 1 << 20


def fetch(archive: Archive, target: Path) -> None:
    """Put the archive at the file `target`, following redirects; nothing is left if that fails.

    A `target` that already has the declared checksum is kept. With an empty url the user puts the file there, and only
    the checksums are compared. `target`.json tells the workflow what the file is. Raises UserError for an unknown
    scheme, a failed transfer or a wrong checksum.
    """
    _fetch(archive, target)
    content = {"file": target.name, "size": target.stat().st_size, "sha256": sha256(target)}
    write_json(target.with_name(f"{target.name}.json"), content)


def _fetch(archive: Archive, target: Path) -> None:
    if target.is_file() and (not archive.url or archive.md5 or archive.sha256):
        try:
            _check(archive, target, target)
            return
        except UserError:
            if not archive.url:
                raise
    if not archive.url:
        raise UserError(target, "no file", f"{archive.file}, downloaded by hand from the data set's site (see docs)")
    scheme = urllib.parse.urlsplit(archive.url).scheme
    if scheme not in ("file", "http", "https"):
        raise UserError(archive.url, f"scheme {scheme!r}", "file, http or https")
    with atomic_path(target) as temporary:
        _download(archive.url, temporary)
        _check(archive, temporary, archive.url)


def _download(url: str, path: Path) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "u2pl"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            length = response.headers.get("Content-Length")
            written = 0
            with path.open("wb") as stream:
                while block := response.read(_BLOCK):
                    stream.write(block)
                    written += len(block)
    except urllib.error.HTTPError as error:
        raise UserError(url, f"HTTP {error.code} {error.reason}", "the archive") from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise UserError(url, getattr(error, "reason", error), "the archive") from error
    # A dropped connection ends the blocks without an error.
    if length is not None and written != int(length):
        raise UserError(url, f"{written} bytes", f"the announced {length}")


def _check(archive: Archive, path: Path, where: object) -> None:
    for name, expected in (("md5", archive.md5), ("sha256", archive.sha256)):
        if expected is None:
            continue
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, name).hexdigest()
        if not found.startswith(expected.lower()):
            raise UserError(where, f"{name} {found}", expected)
