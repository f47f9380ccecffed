"""What Snakemake keeps under .snakemake: its records of the outputs, and its lock on the folder.

A record says which rule, params and input hashes made an output. A file without one is judged by its date alone, and
`dvc pull` dates everything anew. So the records of a scale are versioned with its results, in one file; who pulls them
also sees which runs a later change of the params concerns.
"""

import fcntl
import json
import os
import shutil
import socket
from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from u2pl.errors import UserError
from u2pl.files import read_json, sha256, write_json

_STATE = Path(".snakemake")
_METADATA = _STATE / "metadata"
_alive: list[IO[str]] = []  # held until this process ends


def clear_stale_lock() -> None:
    """Remove the lock that a killed Snakemake has left on this folder, if no Snakemake is alive in it.

    Snakemake's lock outlives kill -9 and power cuts. The kernel's does not: every Snakemake here shares one, and who
    gets it alone is alone. That holds for one machine: where others have worked in the folder too, nothing is removed.
    """
    _STATE.mkdir(exist_ok=True)
    own = _STATE / f"alive.{socket.gethostname()}"
    # NFS shares a lock only on what can be read, and gives it alone only on what can be written.
    stream = own.open("a+")
    _alive.append(stream)
    with suppress(OSError):  # a file system without such locks: Snakemake's own message says what to do
        with suppress(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if list(_STATE.glob("alive.*")) == [own]:
                shutil.rmtree(_STATE / "locks", ignore_errors=True)
        fcntl.flock(stream, fcntl.LOCK_SH)


def records_file(scale: str) -> Path:
    """Where the records of a scale are versioned."""
    return Path("results") / scale / "records.json"


def write_records(scale: str) -> None:
    """Write what Snakemake has recorded about the outputs of a scale, by their paths.

    Raises UserError if it has recorded nothing.
    """
    folders = (f"data/{scale}/", f"results/{scale}/", "weights/")
    records = {}
    for path in _METADATA.rglob("*"):
        if path.is_file() and (output := _output(path)).startswith(folders):
            records[output] = read_json(path)
    if not records:
        raise UserError(_METADATA, f"no records of the scale {scale!r}", "those of a Snakemake that has run here")
    target = records_file(scale)
    write_json(target, records)
    _stamp(scale).write_text(sha256(target), encoding="utf-8")


def take_records(scale: str) -> None:
    """Give Snakemake the records of a scale if they are others than those last written or taken here.

    Raises UserError if the file is not what `write_records` wrote.
    """
    source, stamp = records_file(scale), _stamp(scale)
    if not source.is_file():
        return
    digest = sha256(source)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return
    records = read_json(source)
    if not isinstance(records, dict):
        raise UserError(source, type(records).__name__, "records by output")
    _METADATA.mkdir(parents=True, exist_ok=True)
    # Snakemake would take metadata without this folder for that of an old version.
    (_STATE / "incomplete").mkdir(exist_ok=True)
    for output, record in records.items():
        _write(output, record)
    stamp.write_text(digest, encoding="utf-8")


def _stamp(scale: str) -> Path:
    return _STATE / f"records.{scale}"


def _write(output: str, record: Any) -> None:
    # Snakemake's naming: base64 of the path, cut where the file system ends a name, "@" before all parts but the last.
    name, width = urlsafe_b64encode(output.encode()).decode(), os.pathconf(_METADATA, "PC_NAME_MAX") - 1
    *folders, last = [name[i : i + width] for i in range(0, len(name), width)]
    path = _METADATA.joinpath(*(f"@{folder}" for folder in folders), last)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record), encoding="utf-8")


def _output(path: Path) -> str:
    name = "".join(part.removeprefix("@") for part in path.relative_to(_METADATA).parts)
    try:
        return urlsafe_b64decode(name).decode()
    except ValueError:
        return ""  # not a record
