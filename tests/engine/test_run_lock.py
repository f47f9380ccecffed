"""One process at a time writes a run, and nothing that a dead one left keeps the next from it."""

import errno
import fcntl
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from u2pl.engine import run_lock
from u2pl.engine.run_lock import lock_path, locked_run
from u2pl.errors import UserError

pytestmark = pytest.mark.slow

# What another process does that holds the lock. A child of it lives on, as a loader's worker does after a SIGKILL.
HOLD = """
import os, sys, time
from pathlib import Path
from u2pl.engine.run_lock import locked_run
with locked_run(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(100)
"""
AWAY = {"machine": "boot-of-another pid:[1]", "host": "node7"}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, seconds in {"BEAT_S": 0.05, "PATIENCE_S": 0.6, "POLL_S": 0.02}.items():
        monkeypatch.setattr(run_lock, name, seconds)
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "run.lock"


def forge(path: Path, **changes: Any) -> None:
    """A file as another process would have left it."""
    path.write_text(json.dumps(run_lock._self() | {"pid": 4, "started": "1", "since": "yesterday"} | changes))


@pytest.fixture
def holding(path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the lock, and its child."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    yield process, child
    for pid in (process.pid, child):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def test_the_second_one_is_told_who_holds_the_run_and_since_when(path: Path, holding: Any) -> None:
    started = time.monotonic()
    with pytest.raises(UserError) as raised, locked_run(path):
        pass
    assert time.monotonic() - started < run_lock.PATIENCE_S
    assert re.search(
        rf"process {holding[0].pid} on \S+, which has this run since \d{{4}}-\d\d-\d\d ", str(raised.value)
    )
    assert json.loads(path.read_text())["pid"] == holding[0].pid


def test_after_a_kill_the_next_one_starts_at_once_though_a_child_lives(
    path: Path, holding: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    process, child = holding
    process.kill()
    while (
        Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    ):  # not waited for: a zombie
        time.sleep(0.01)
    os.kill(child, 0)
    with locked_run(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert capsys.readouterr().out == "" and not path.exists()


def test_the_lock_of_a_killed_process_that_is_still_exiting_is_awaited_without_a_message(
    path: Path, holding: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel frees it with the last thread, which may outlive the main thread, whose state /proc shows."""
    os.kill(holding[0].pid, signal.SIGSTOP)
    forge(path)  # a process that has ended; the same inode, so the lock stays
    released = threading.Timer(0.1, holding[0].kill)
    released.start()
    with locked_run(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    released.join()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("raised", [None, UserError("a", "b", "c"), SystemExit(75), KeyboardInterrupt()])
def test_the_file_goes_with_its_holder_however_that_ends(path: Path, raised: BaseException | None) -> None:
    threads = threading.active_count()
    for _ in range(2):
        try:
            with locked_run(path) as lock:
                assert path.exists()
                lock.check()
                if raised is not None:
                    raise raised
        except (UserError, SystemExit, KeyboardInterrupt) as error:
            assert error is raised
        assert not path.exists()
    assert threading.active_count() == threads


def test_a_holder_of_another_machine_that_shows_signs_of_life_is_respected(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge(path, **AWAY, job="17")
    beating, end = run_lock._open(path)[0], threading.Event()

    def beat() -> None:
        while not end.wait(0.1):
            os.utime(beating)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with (
            pytest.raises(UserError, match=r"process 4 on node7 \(SLURM job 17\), .* since yesterday"),
            locked_run(path),
        ):
            pass
    finally:
        end.set()
        thread.join()
        os.close(beating)
    assert json.loads(path.read_text())["host"] == "node7"
    assert len(capsys.readouterr().out.splitlines()) == 1, "one line says what is waited for"


def test_a_holder_of_another_machine_without_signs_of_life_is_replaced(path: Path) -> None:
    """Its clock does not count: the file may be from the future."""
    forge(path, **AWAY)
    os.utime(path, (2**32, 2**32))
    started = time.monotonic()
    with locked_run(path) as lock:
        assert time.monotonic() - started >= run_lock.PATIENCE_S
        lock.check()


def test_the_lock_of_a_dead_machine_is_waited_for_no_longer_than_a_server_keeps_it(path: Path, holding: Any) -> None:
    """What an NFS server that has not yet missed its client looks like: the kernel's lock, and no sign of life."""
    os.kill(holding[0].pid, signal.SIGSTOP)
    forge(path, **AWAY)  # the same inode, so the lock stays
    released = threading.Timer(0.3, holding[0].kill)
    released.start()
    started = time.monotonic()
    with locked_run(path):
        assert time.monotonic() - started >= 0.3
    released.join()


def test_a_lock_that_a_server_never_frees_ends_the_wait_and_names_the_way_out(path: Path, holding: Any) -> None:
    os.kill(holding[0].pid, signal.SIGSTOP)
    forge(path, **AWAY)
    with pytest.raises(UserError, match="process 4 on node7.*if it has ended, remove the file"), locked_run(path):
        pass
    path.unlink()
    with locked_run(path):
        pass


@pytest.mark.parametrize(
    ("own", "restarts", "at_once"), [("17", "1", True), ("17", None, False), ("18", "1", False), ("", "1", False)]
)
def test_a_requeued_job_takes_over_from_its_own_dead_predecessor(
    own: str, restarts: str | None, at_once: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command of the same allocation, which was not started again, is somebody else."""
    forge(path, **AWAY, job="17" if own else "")
    monkeypatch.setenv("SLURM_JOB_ID", own)
    if restarts:
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    started = time.monotonic()
    with locked_run(path):
        assert (time.monotonic() - started < run_lock.PATIENCE_S) == at_once


@pytest.mark.parametrize("alive", [True, False])
def test_without_locks_of_the_file_system_the_process_decides(
    alive: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unable)
    parent = os.getppid()
    forge(path, pid=parent, started=run_lock._started(parent) if alive else "12")
    if alive:
        with pytest.raises(UserError, match=f"process {parent} "), locked_run(path):
            pass
    else:
        with locked_run(path) as lock:
            lock.check()


@pytest.mark.parametrize(
    "content",
    ["", "half of a", "[]", "3", "{}", '{"pid": -1}', json.dumps(run_lock._self() | {"pid": "1"}), "[" * 9999],
)
def test_a_file_that_names_no_process_is_replaced_once_nothing_moves(content: str, path: Path) -> None:
    path.write_text(content)
    with locked_run(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_who_lost_the_run_while_suspended_writes_no_more_and_leaves_the_winner_alone(path: Path) -> None:
    with locked_run(path) as lock:
        lock.check()
        path.unlink()
        forge(path, **AWAY)
        with pytest.raises(UserError, match="another one has taken the run over"):
            lock.check()
    assert json.loads(path.read_text())["host"] == "node7"
    path.unlink()
    with locked_run(path) as lock:
        forge(path, **AWAY)  # in place, as where the file system's locks do not reach other nodes
        with pytest.raises(UserError, match="another one has taken the run over"):
            lock.check()
    assert path.exists()


def test_a_holder_shows_signs_of_life(path: Path) -> None:
    with locked_run(path):
        before = path.stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while path.stat().st_mtime_ns == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime_ns > before


def test_a_lock_that_cannot_be_written_is_one_line(tmp_path: Path, path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"a\.lock"), locked_run(tmp_path / "file/a.lock"):
        pass
    path.mkdir()
    with pytest.raises(UserError, match=r"run\.lock: found Is a directory"), locked_run(path):
        pass


def test_whoever_is_told_to_stop_does_not_wait(path: Path) -> None:
    forge(path, **AWAY)

    def stop() -> None:
        raise SystemExit(75)

    with pytest.raises(SystemExit), locked_run(path, stop):
        pass
    assert json.loads(path.read_text())["host"] == "node7"


def compete(path: Path, log: Path, seconds: float) -> None:
    """Take the lock over and over; inside, nobody else may be."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with locked_run(path):
                (log / "inside").mkdir()
                (log / f"{os.getpid()}-{time.monotonic_ns()}").touch()
                (log / "inside").rmdir()
        except UserError:
            continue


def test_of_many_at_once_one_is_inside(path: Path, tmp_path: Path) -> None:
    """Releases remove the file that others have already opened."""
    log = tmp_path / "log"
    log.mkdir()
    context = multiprocessing.get_context("fork")
    rivals = [context.Process(target=compete, args=(path, log, 1.5)) for _ in range(4)]
    for rival in rivals:
        rival.start()
    for rival in rivals:
        rival.join(30)
        rival.kill()
    assert [rival.exitcode for rival in rivals] == [0] * 4
    assert len({file.name.partition("-")[0] for file in log.iterdir()}) == 4, "each had its turn"


def test_the_lock_lies_beside_the_state() -> None:
    """A complete training removes the folder; `u2pl evaluate` of a run without any has a lock too."""
    assert lock_path(Path("results/demo/state/pascal-4-key=0.5-seed0")) == Path(
        "results/demo/state/pascal-4-key=0.5-seed0.lock"
    )
