"""What a machine does to a download: a killed process, a full or read-only disk, two at once."""

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from u2pl.data.sources.fetch import fetch
from u2pl.data.sources.http import Network
from u2pl.errors import UserError
from u2pl.experiments.schema import Archive
from u2pl.files import locked

CONTENT = random.Random(1).randbytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
HASTY = Network(timeout=60, attempts=2, wait=0)
SCRIPT = """
import json, sys
from pathlib import Path
from u2pl.data.sources.fetch import fetch
from u2pl.experiments.schema import Archive
fetch(Archive(**json.loads(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.fixture
def served(upstream: Any) -> Any:
    upstream.files["/a"], upstream.etags["/a"] = CONTENT, '"one"'
    return upstream


def start(archive: Archive, target: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, archive.model_dump_json(), str(target)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does; its end is the test's end."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_while_it_downloads(served: Any, tmp_path: Path) -> None:
    archive, target, part = Archive(file="a", url=served.url + "/a", md5=MD5), tmp_path / "a", tmp_path / "a.part"
    served.faults["/a"] = [served.short("/a", 200_000, stall=True)]
    running = start(archive, target)
    try:
        until(lambda: part.exists() and part.stat().st_size > 0)
    finally:
        running.kill()
        running.communicate()
    arrived = part.stat().st_size
    assert 0 < arrived <= 200_000 and not target.exists()
    fetch(archive, target, HASTY)  # the lock has died with its holder
    assert served.seen[-1]["Range"] == f"bytes={arrived}-"
    assert target.read_bytes() == CONTENT
    assert {path.name for path in tmp_path.iterdir()} == {"a", "a.json", ".a.verified"}


def test_two_at_once(served: Any, tmp_path: Path) -> None:
    archive, target = Archive(file="a", url=served.url + "/a", md5=MD5), tmp_path / "a"
    served.faults["/a"] = [served.short("/a", 200_000, stall=True)]
    first = start(archive, target)
    try:
        assert served.stalling.wait(60)
        second = start(archive, target)
        assert second.stdout is not None
        line = second.stdout.readline()
        assert line == f"{target}: waiting for process {first.pid} on {os.uname().nodename}, which is making it\n"
    finally:
        served.go_on.set()
        outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert [request.get("Range") for request in served.seen] == [None, "bytes=200000-"], "the second asks for nothing"
    assert target.read_bytes() == CONTENT
    assert {path.name for path in tmp_path.iterdir()} == {"a", "a.json", ".a.verified"}


def test_a_lock_lets_one_in_at_a_time(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with locked(tmp_path / "a"):
                inside += 1
                most = max(most, inside)
                os.sched_yield()
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up(served: Any, small_disk: Callable[[str], Path]) -> None:
    """Where the length is announced it is compared before; else the disk says so."""
    folder = small_disk("size=200k")
    archive, target = Archive(file="a", url=served.url + "/a", md5=MD5), folder / "a"
    with pytest.raises(UserError, match="of free disk, expected the 300.0 kB that are still to come"):
        fetch(archive, target, HASTY)
    assert not target.exists()

    def endless(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(CONTENT)

    served.faults["/a"] = [endless]
    with pytest.raises(UserError, match=r"a.part: found No space left on device, expected a file that can be written"):
        fetch(archive, target, HASTY)
    assert not target.exists()
    small_disk("size=2m")
    fetch(archive, target, HASTY)
    assert target.read_bytes() == CONTENT
    assert {path.name for path in folder.iterdir()} == {"a", "a.json", ".a.verified"}


def test_a_folder_that_cannot_be_written(served: Any, small_disk: Callable[[str], Path]) -> None:
    folder = small_disk("size=2m")
    archive, target = Archive(file="a", url=served.url + "/a", md5=MD5), folder / "a"
    fetch(archive, target, HASTY)
    small_disk("ro,size=2m")
    served.seen.clear()
    fetch(archive, target, HASTY)  # a shared, read-only folder that holds everything
    other = Archive(file="b", url=served.url + "/a", md5=MD5)
    with pytest.raises(UserError, match=f"{folder}: found Read-only file system, expected a folder that can be"):
        fetch(other, folder / "b", HASTY)
    assert served.seen == []


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="folder that can be written"):
        fetch(Archive(file="a", url="file:a"), tmp_path / "file" / "a", HASTY)
    (tmp_path / "a").mkdir()
    (tmp_path / "source").write_bytes(b"x")
    with pytest.raises(UserError, match="Is a directory"):
        fetch(Archive(file="a", url=(tmp_path / "source").as_uri()), tmp_path / "a", HASTY)
