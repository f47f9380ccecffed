"""One process at a time writes a run: trains it, or evaluates it again.

Two signs of life, since neither is enough. The kernel's record lock goes with the process that holds it, however that
ends; but some file systems of clusters keep it on one node (Lustre with localflock) or have none (NFS without lockd),
and an NFS server keeps that of a dead node for its lease. So the holder also touches the file every 20 seconds. Whether
it still does is judged by the own clock, because clocks of two nodes differ.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from u2pl.errors import UserError

BEAT_S = 20.0
PATIENCE_S = 120.0  # several beats, and longer than an NFS server's usual lease of 90 s
POLL_S = 1.0
Holder = dict[str, Any]


class RunLock:
    """The lock that this process holds on a run."""

    def __init__(self, path: Path, handle: int, content: bytes) -> None:
        self.path, self.handle, self.content = path, handle, content
        self._end = threading.Event()
        self._beat = threading.Thread(target=self._keep_alive, daemon=True)
        self._beat.start()

    def _keep_alive(self) -> None:
        while not self._end.wait(BEAT_S):
            with suppress(OSError):  # a server that is away for a while
                os.utime(self.handle)

    def _own(self) -> bool:
        # Never by opening the file again: closing any descriptor of it would drop the kernel's lock.
        return _is_at(self.handle, self.path) and _read(self.handle) == self.content

    def check(self) -> None:
        """Raise UserError if another process has taken the run, as it may if this one was suspended or cut off."""
        if not self._own():
            raise UserError(self.path, "no longer the lock of this process", "it: another one has taken the run over")

    def release(self) -> None:
        """Let others in."""
        self._end.set()
        self._beat.join()
        with suppress(OSError):
            if self._own():
                self.path.unlink()  # before the lock goes: who waits for it sees that the file is gone
        os.close(self.handle)


def lock_path(state: Path) -> Path:
    """The lock of the run whose state folder is `state`: beside it, because a complete training removes the folder."""
    return state.with_name(f"{state.name}.lock")


@contextmanager
def locked_run(path: Path, between: Callable[[], None] = lambda: None) -> Iterator[RunLock]:
    """Hold the lock file `path`, which is removed at the end.

    A holder of this machine, or one that shows signs of life, is respected at once; of another machine it takes up to
    PATIENCE_S to see that there are none. What a dead process of this machine, or an earlier start of the same SLURM
    job left is taken over at once. between: called while waiting. Raises UserError that names the holder, or if the
    file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path, between)
    except OSError as error:
        raise UserError(path, error.strerror, "a file that can be written") from error
    try:
        yield lock
    finally:
        lock.release()


def _acquire(path: Path, between: Callable[[], None]) -> RunLock:
    content = json.dumps(_self(), sort_keys=True).encode()
    created = None  # the file that this process has made, if it has: nobody can have left that one
    first: tuple[Holder | None, int] | None = None  # the holder and its last sign of life
    since = time.monotonic()
    while True:
        handle, new = _open(path)
        try:
            free = _lock(handle)
            if not _is_at(handle, path):  # its holder has removed it meanwhile
                continue
            found = os.fstat(handle)
            created = found.st_ino if new else created
            seen = _holder(handle), found.st_mtime_ns
            holder = seen[0]
            still = seen == first and time.monotonic() - since >= PATIENCE_S
            fresh = holder is None and found.st_ino == created
            if free and (fresh or _gone(holder) or still):
                _write(handle, content, path)
                lock, handle = RunLock(path, handle, content), -1
                return lock
        finally:
            if handle >= 0:
                os.close(handle)
        moved = first is not None and seen != first
        if still or holder is not None and (moved or holder["machine"] == _machine()) and not _gone(holder):
            raise UserError(path, _described(holder), "no other process (if it has ended, remove the file)")
        if first is None or moved:
            first, since = seen, time.monotonic()
            if not _ended_here(holder):  # else its last thread is exiting, and frees the lock at once
                print(f"{path}: {_described(holder)}; waiting up to {PATIENCE_S:.0f} s for a sign of life", flush=True)
        between()
        time.sleep(POLL_S)


def _open(path: Path) -> tuple[int, bool]:
    """A descriptor of the file, and whether it is new."""
    while True:
        with suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR), False


def _lock(handle: int) -> bool:
    """Whether no other process has the kernel's lock, which then is this one's where the file system has locks."""
    try:
        # Not flock: processes that a training forks would hold on to that.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _read(handle: int) -> bytes:
    return os.pread(handle, 1 << 16, 0)


def _write(handle: int, content: bytes, path: Path) -> None:
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, content, 0)
        os.fsync(handle)
    except OSError:  # a full disk: what is left would be waited for
        path.unlink(missing_ok=True)
        raise


def _self() -> Holder:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "since": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "restarts": _restarts(),
    }


def _restarts() -> int:
    """How often SLURM has put this job back into the queue and started it again."""
    found = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(found) if found.isdecimal() else 0


def _machine() -> str:
    """Where a process id means the same process: in one namespace of one boot. Nodes may share a host name."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _started(pid: int) -> str:
    """When a process of this machine started, in the kernel's clock ticks; empty if it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in ("Z", "X") else fields[18]
    except FileNotFoundError:
        return ""


def _holder(handle: int) -> Holder | None:
    """What the file says of its holder; None if it says nothing of the kind."""
    try:
        found = json.loads(_read(handle))
        like = _self()
        whole = all(type(found[name]) is type(like[name]) for name in like)
        return found if whole and found["pid"] > 0 and str(found).isprintable() else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _gone(holder: Holder | None) -> bool:
    """Whether the holder is certain to have ended."""
    if holder is None or holder["machine"] == _machine():
        return _ended_here(holder)
    job = os.environ.get("SLURM_JOB_ID", "")  # SLURM starts a job again once its processes have ended
    return job != "" and job == holder["job"] and _restarts() > holder["restarts"]


def _ended_here(holder: Holder | None) -> bool:
    """Whether the holder was a process of this machine and no longer runs."""
    return holder is not None and holder["machine"] == _machine() and _started(holder["pid"]) != holder["started"]


def _described(holder: Holder | None) -> str:
    if holder is None:
        return "a lock that names no process"
    job = f" (SLURM job {holder['job']})" if holder["job"] else ""
    return f"process {holder['pid']} on {holder['host']}{job}, which has this run since {holder['since']}"
