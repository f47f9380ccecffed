"""What Snakemake knows about a scale's files, in one file that can be versioned with them.

Under .snakemake/metadata stands, of every output, which rule, params and input hashes made it. A file without a record
is judged by its date alone, and `dvc pull` dates everything anew. So the records travel with the results, and who pulls
them also sees which runs a later change of the params concerns.
"""

import json
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path
from typing import Any

from u2pl.errors import UserError
from u2pl.files import read_json, sha256, write_json

_STATE = Path(".snakemake")
_METADATA = _STATE / "metadata"


def records_file(scale: str) -> Path:
    """Where the records of a scale are versioned."""
    return Path("results") / scale / "records.json"


def write_records(scale: str) -> None:
    """Write what Snakemake has recorded about the outputs of a scale, by their paths."""
    folders = (f"data/{scale}/", f"results/{scale}/", "weights/")
    records = {}
    for path in _METADATA.rglob("*"):
        if path.is_file() and (output := _output(path)).startswith(folders):
            records[output] = read_json(path)
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
