"""Before Snakemake plans: specifications of today, dates that follow from the receipts, and one Snakemake at a time.

A result is current if its receipt has the hashes of today's files (see `specs`). Snakemake decides by dates, so inputs
of a current result are dated no later than the result, and the specification of any other result is dated after it.
"""

import fcntl
import os
import shutil
import sys
import time
from pathlib import Path
from typing import IO

from u2pl.errors import UserError
from u2pl.experiments.specs import Job, Jobs, is_current, receipt_of, there, write_specs
from u2pl.experiments.suite import Suite
from u2pl.files import atomic_path
from u2pl.folders import results_of


def settle(jobs: Jobs) -> list[Job]:
    """Write the specifications, and set dates so that Snakemake plans the results that are not current: these jobs."""
    write_specs(jobs)
    hashes: dict[str, str] = {}
    below: dict[str, list[tuple[str, int]]] = {}  # by specification: what later results know of it, and their dates
    stale = []
    for job in reversed(list(jobs)):  # each before those that make its inputs, whose dates it may set
        made = [os.lstat(file).st_mtime_ns for file in (*job.outputs, job.receipt) if there(file)]
        if not made:
            # Snakemake makes a file that is not here only if it would be later than what was made of it.
            if known := below.get(job.spec):
                current = all(digest == job.sha256 for digest, _ in known)
                _date(Path(job.spec), min(date for _, date in known), current)
            continue
        current = is_current(job, hashes)
        for path in (job.spec, *(job.inputs if current else [])):
            _date(Path(path), min(made), current)
        receipt = receipt_of(job)
        for spec, digest in (receipt.above if receipt else {}).items():
            below.setdefault(spec, []).append((digest, min(made)))
        if not current:
            stale.append(job)
    return stale[::-1]


def _date(path: Path, made: int, current: bool) -> None:
    """Date a small file no later than `made`, or later, by whether what was made of it then is current.

    A link into DVC's cache becomes a file of its own first.
    """
    if not path.is_file():
        return
    latest = max(path.stat().st_mtime_ns, path.lstat().st_mtime_ns)
    if current == (latest <= made):
        return
    if path.is_symlink() or path.stat().st_nlink > 1:
        with atomic_path(path, durable=False) as temporary:
            shutil.copyfile(path, temporary)
    date = made if current else max(time.time_ns(), made + 1_000_000_000)
    os.utime(path, ns=(date, date))


_held: list[IO[str]] = []  # until this process ends: the kernel frees the lock then, at kill -9 too


def alone(scale: str) -> bool:
    """Take the lock of a scale for the rest of this process; False if another Snakemake holds it."""
    path = results_of(scale).lock
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = path.open("a+")
    _held.append(stream)
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True


def prepare_scale(suite: Suite) -> Jobs:
    """The jobs of a scale, with specifications and dates settled, for the one Snakemake that works on it.

    Raises UserError if another one does; a dry run changes nothing then.
    """
    jobs = Jobs(suite)
    if not alone(suite.scale):
        if _dry_run(sys.argv[1:]):
            return jobs
        lock = results_of(suite.scale).lock
        raise UserError(lock, "another Snakemake at work on this scale", "one at a time: wait for it, or stop it")
    if stale := settle(jobs):
        more = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
        print(f"Out of date: {stale[0].kind} {stale[0].name}{more}", file=sys.stderr)
    return jobs


def _dry_run(arguments: list[str]) -> bool:
    short = [word for word in arguments if word.startswith("-") and not word.startswith("--")]
    return any("n" in word for word in short) or bool({"--dry-run", "--dryrun"} & set(arguments))
