"""Atomic writes and content hashes: a file either has its final name and all its bytes, or does not exist."""

import errno
import hashlib
import json
import math
import os
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from u2pl.errors import UserError


@contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; it is renamed to `path` if the block succeeds, else removed.

    durable: the bytes are on the disk before the file has its name, and the name before this returns, so that a power
    cut leaves no empty file. Without it, readers must compare the file with its recorded checksum.
    Raises UserError if the folder cannot be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise UserError(path.parent, error.strerror, "a folder that can be written") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; results are meant to be shared.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        if durable:
            sync(temporary)
        temporary.replace(path)
        if durable:
            sync(path.parent)
    except OSError as error:
        if error.errno is None or isinstance(error, (FileNotFoundError, ConnectionError, TimeoutError)):
            raise
        raise UserError(path, error.strerror, "a file that can be written") from error
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Write a file's bytes, or a folder's names, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some file systems cannot do it for a folder
            raise
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let only one process at a time make `path`; a second one says whom it waits for, and waits.

    The kernel drops the lock of a process that dies. Raises UserError if the folder of `path` cannot be written.
    """
    file = path.with_name(f".{path.name}.lock")
    lock = FileLock(file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(f"{path}: waiting for {_holder(file)}, which is making it", flush=True)
            lock.acquire()
    except OSError as error:
        raise UserError(path.parent, error.strerror, "a folder that can be written") from error
    try:
        with suppress(OSError):  # a full disk: the lock holds without the name
            file.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        file.unlink(missing_ok=True)  # before the release: whoever waits sees that the file is gone and makes a new one
        lock.release()


def _holder(lock: Path) -> str:
    try:
        return lock.read_text(encoding="utf-8") or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON; raises UserError if the file is missing or is not JSON.

    Refused as well, since Python's reader takes them: NaN and infinities, numbers that no 64-bit integer or float
    holds, and a key that occurs twice.
    """
    try:
        return json.loads(
            path.read_text(encoding="utf-8"),
            parse_constant=_finite,
            parse_float=_finite,
            parse_int=_int64,
            object_pairs_hook=_distinct,
        )
    except FileNotFoundError as error:
        raise UserError(path, "no file", "a JSON file") from error
    except RecursionError as error:
        raise UserError(path, "values nested too deeply", "a JSON file") from error
    except (OSError, ValueError) as error:
        raise UserError(path, error, "a JSON file") from error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{value}, no finite number")
    return value


def _int64(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**63:
        raise ValueError(f"a number that begins with {text[:20]}, no integer of 64 bits")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:80]!r} twice")
    return value


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
