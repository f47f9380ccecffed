"""One file over HTTP into a partial file that a later attempt, or a later run, continues.

Beside `<file>.part` stands `<file>.part.json`: where the bytes came from, how many there will be, and the server's
mark of that version (ETag, else Last-Modified). Only a partial file that is known to be the same file is continued.
"""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO

import requests
import urllib3
from rich.filesize import decimal
from rich.progress import DownloadColumn, TransferSpeedColumn
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from u2pl.addresses import public
from u2pl.data.progress import EVERY, progress
from u2pl.errors import UserError
from u2pl.files import read_json, write_json

_BLOCK = 1 << 20
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_PHRASES = {int(status): status.phrase for status in HTTPStatus}


@dataclass(frozen=True)
class Network:
    """How patient a transfer is."""

    timeout: float = 60  # seconds without a byte
    attempts: int = 5  # in a row that bring nothing
    wait: float = 1  # seconds before the second attempt; doubles, up to a minute
    report: float = EVERY  # seconds between two lines of progress in a log


class Refused(Exception):
    """This address does not give the file: what was found, and what was expected if that is not just the file.

    No part of the address is in it.
    """

    def __init__(self, found: object, expected: str = "") -> None:
        super().__init__(f"{found} instead of {expected}" if expected else str(found))
        self.found, self.expected = found, expected


class Again(Exception):
    """Another attempt may succeed."""


@dataclass(frozen=True)
class _Origin:
    """What is known of the bytes in a partial file."""

    url: str
    length: int | None
    validator: str | None


def patiently(network: Network, name: str) -> Retrying:
    """Call a function again while it raises Again, with growing pauses and a line on `name` for each."""

    def tell(state: RetryCallState) -> None:
        assert state.outcome is not None
        print(f"{name}: {state.outcome.exception()}; again in {state.upcoming_sleep:.0f} s", flush=True)

    return Retrying(
        retry=retry_if_exception_type(Again),
        stop=stop_after_attempt(network.attempts),
        wait=wait_exponential(multiplier=network.wait, max=60),
        before_sleep=tell,
        reraise=True,
    )


def part_of(target: Path) -> Path:
    """Where the bytes of `target` gather until they are complete and verified."""
    return target.with_name(f"{target.name}.part")


def discard(part: Path) -> None:
    """Remove a partial file and what is known of it."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def download(session: requests.Session, url: str, part: Path, network: Network, *, checksum: bool) -> bool:
    """Complete `part` from `url`; True if some of its bytes are of an earlier attempt or run.

    checksum: whether the caller compares one. Then a partial file may also be continued where the server gives no
    mark, or from a mirror, if the lengths agree. Raises Refused if the address does not give the file, after several
    attempts if that may be temporary, and UserError if it does not fit on the disk.
    """
    attempts = patiently(network, _name(part))
    while True:
        before = _size(part)
        try:
            return attempts(_attempt, session, url, part, network, checksum)
        except Again as error:
            if _size(part) <= before:  # else the attempts brought something: a bad line, but not a dead one
                raise Refused(str(error)) from None


def copy(source: Path, part: Path, network: Network) -> None:
    """Copy a local file to `part`. Raises Refused if it cannot be read."""
    try:
        incoming = source.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise Refused(getattr(error, "strerror", None) or str(error)) from None
    with incoming:
        discard(part)
        before = os.fstat(incoming.fileno())
        check_space(part, before.st_size)
        with part.open("wb") as stream:
            _pump(lambda: incoming.read(_BLOCK), stream, before.st_size, network)
        after = os.fstat(incoming.fileno())
    if (before.st_size, before.st_mtime_ns, before.st_ctime_ns) != (
        after.st_size,
        after.st_mtime_ns,
        after.st_ctime_ns,
    ):
        raise Refused("a file that changed while it was copied")


def check_space(part: Path, more: int) -> None:
    """Raise UserError unless `more` bytes fit beside `part`."""
    free = shutil.disk_usage(part.parent).free
    if more > free:
        raise UserError(part.parent, f"{decimal(free)} of free disk", f"the {decimal(more)} that are still to come")


def _attempt(session: requests.Session, url: str, part: Path, network: Network, checksum: bool) -> bool:
    origin, offset = _resumable(part, url, checksum)
    if origin and origin.length == offset > 0:
        return True  # stopped between the last byte and the verification
    headers = {"Accept-Encoding": "identity"}  # the archive's own bytes, which ranges and checksums are about
    if origin:
        headers["Range"] = f"bytes={offset}-"
        if origin.validator and origin.url == public(url):
            headers["If-Range"] = origin.validator
    try:
        with session.get(url, headers=headers, stream=True, timeout=network.timeout) as response:
            append, length = _judge(response, part, origin, offset)
            if not append:
                offset = 0
                discard(part)
                _write_origin(part, _Origin(public(url), length, _validator(response)))
            if length is not None:
                check_space(part, length - offset)
            with part.open("ab" if append else "wb") as stream:
                _pump(lambda: response.raw.read1(_BLOCK, decode_content=False), stream, length, network)
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
        raise Refused(type(error).__name__) from None
    except requests.TooManyRedirects:
        raise Refused("a redirection that leads nowhere") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise Again(f"{_reason(error, network)} after {decimal(_size(part))}") from None
    if length is not None and _size(part) != length:
        raise Again(f"{_size(part)} bytes of the announced {length}")
    return append


def _judge(response: requests.Response, part: Path, origin: _Origin | None, offset: int) -> tuple[bool, int | None]:
    """Whether what comes continues the partial file, and the whole file's length, as far as the server tells it."""
    status = response.status_code
    if status == 200:
        return False, _number(response.headers.get("Content-Length"))
    if status == 206 and origin:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if match and int(match[1]) == offset and origin.length in (None, int(match[2])):
            return True, int(match[2])
    if origin and status in (206, 416):  # another range than asked for, or a file of another length: not ours
        discard(part)
        raise Again(f"HTTP {status} for a range: the file has changed")
    reason = f"HTTP {status} {_PHRASES.get(status, '')}".rstrip()  # not the server's phrase, which may hold anything
    raise Again(reason) if status in _TRANSIENT else Refused(reason)


def _resumable(part: Path, url: str, checksum: bool) -> tuple[_Origin | None, int]:
    """What is known of the partial file, and its size; (None, 0) if it cannot be continued from `url`."""
    try:
        origin = _Origin(**read_json(_note(part)))
    except (UserError, TypeError):
        return None, 0
    same = origin.url == public(url) and origin.validator is not None
    size = _size(part)
    if size == 0 or not (same or (checksum and origin.length)) or (origin.length is not None and size > origin.length):
        return None, 0
    return origin, size


def _write_origin(part: Path, origin: _Origin) -> None:
    write_json(_note(part), asdict(origin))


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _name(part: Path) -> str:
    return part.name.removesuffix(".part")


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _validator(response: requests.Response) -> str | None:
    """A mark that changes with the file's bytes: If-Range knows strong ETags and dates."""
    etag = response.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _reason(error: BaseException, network: Network) -> str:
    """Why a transfer broke, in the system's words. The libraries' own messages repeat the address."""
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    for seen in chain:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
    if any(isinstance(seen, (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)) for seen in chain):
        return f"no byte for {network.timeout:g} s"
    return "a broken connection"


def _pump(read: Callable[[], bytes], stream: IO[bytes], length: int | None, network: Network) -> None:
    columns = (DownloadColumn(), TransferSpeedColumn())
    with progress(
        _name(Path(stream.name)), length, start=stream.tell(), shown=decimal, columns=columns, every=network.report
    ) as advance:
        while block := read():
            stream.write(block)
            advance(len(block))
