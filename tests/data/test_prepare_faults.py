"""What a machine, or somebody who means harm, does to the preparation of data."""

import io
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from u2pl.data import convert as module
from u2pl.data.prepare import prepare
from u2pl.errors import UserError
from u2pl.experiments.schema import Dataset

Make = Callable[..., Dataset]
ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, signal, sys
from pathlib import Path
from u2pl.data import convert, prepare
from u2pl.data.sources.unpack import ArchiveReader
from u2pl.experiments.schema import Dataset

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

{when}
dataset = Dataset.model_validate_json(sys.argv[1])
prepare.prepare(dataset, Path(sys.argv[2]), Path(sys.argv[3]), 2)
"""
READING = """
read = ArchiveReader.read

def few(self, names):
    for number, item in enumerate(read(self, names)):
        if number == {number} and item[0].endswith("{ending}"):
            print("workers", *os.popen(f"ps -o pid= --ppid {{os.getpid()}}").read().split(), flush=True)
            die()
        yield item

ArchiveReader.read = few
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    "when",
    [
        READING.format(number=4, ending=".jpg"),
        READING.format(number=3, ending=".mat"),
        "prepare.list_bytes = die",
        "prepare._content_hash = die",
        "import dataclasses; prepare.LAYOUTS['pascal'] = dataclasses.replace(prepare.LAYOUTS['pascal'], plan=die)",
    ],
    ids=["images", "masks", "lists", "hashes", "plan"],
)
def test_killed_and_run_again(when: str, archives: Path, pascal: Path, make_dataset: Make, tmp_path: Path) -> None:
    dataset, target = make_dataset("pascal"), tmp_path / "out"
    arguments = [dataset.model_dump_json(), str(archives), str(target)]
    command = [sys.executable, "-c", SCRIPT.format(when=when), *arguments]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (target / "manifest.json").exists()
    lines = [line.split() for line in killed.stdout.splitlines()]  # among those of progress
    workers = [int(word) for line in lines if line[0] == "workers" for word in line[1:]]
    assert bool(workers) == ("few" in when)
    deadline = time.monotonic() + 60
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "workers outlive the process that they work for"
        time.sleep(0.01)
    (target / "images").mkdir(exist_ok=True)
    (target / "images" / ".half-written.jpg").write_bytes(b"half")
    prepare(dataset, archives, target, 2)
    assert contents(target) == contents(pascal)


def test_a_killed_worker_is_one_line(
    archives: Path, pascal: Path, make_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "encode_mask", lambda _: os.kill(os.getpid(), signal.SIGKILL))  # as for lack of memory
        with pytest.raises(UserError, match="out: found a worker that was killed, expected memory for 2 of them"):
            prepare(make_dataset("pascal"), archives, tmp_path / "out", 2)
    assert not (tmp_path / "out" / "manifest.json").exists()
    prepare(make_dataset("pascal"), archives, tmp_path / "out", 2)
    assert contents(tmp_path / "out") == contents(pascal)


def test_two_at_once(archives: Path, pascal: Path, make_dataset: Make, tmp_path: Path) -> None:
    arguments = [make_dataset("pascal").model_dump_json(), str(archives), str(tmp_path / "out")]
    command = [sys.executable, "-c", SCRIPT.format(when=""), *arguments]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    assert contents(tmp_path / "out") == contents(pascal)


def test_a_full_disk_and_then_room(
    archives: Path, pascal: Path, make_dataset: Make, small_disk: Callable[[str], Path]
) -> None:
    target = small_disk("size=64k") / "out"
    with pytest.raises(UserError, match="No space left on device"):
        prepare(make_dataset("pascal"), archives, target, 2)
    assert not (target / "manifest.json").exists()
    assert not [path for path in target.rglob(".*")], "no temporary file is left"
    small_disk("size=4m")
    prepare(make_dataset("pascal"), archives, target, 2)
    assert contents(target) == contents(pascal)


def test_a_target_that_cannot_be_written(
    archives: Path, pascal: Path, make_dataset: Make, small_disk: Callable[[str], Path]
) -> None:
    target = small_disk("size=4m") / "out"
    shutil.copytree(pascal, target)
    small_disk("ro,size=4m")
    with pytest.raises(UserError, match="Read-only file system"):
        prepare(make_dataset("pascal"), archives, target, 2)
    assert contents(target) == contents(pascal)


def bomb(side: int) -> bytes:
    """A grey PNG of `side` x `side` zeros, a thousandth of its pixels in bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def replaced(archive: Path, target: Path, ending: str, content: bytes) -> str:
    """Copy a zip or tar, with the first member of that ending replaced; its name."""
    name = ""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.namelist():
            first = not name and item.endswith(ending)
            name = item if first else name
            new.writestr(item, content if first else old.read(item))
    return name


@pytest.mark.parametrize("file", ["leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"])
def test_a_png_bomb_is_one_line_of_the_command(file: str, tmp_path: Path) -> None:
    def u2pl(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "u2pl", "data", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    shutil.copytree(ROOT / "params", tmp_path / "params")
    assert u2pl("synthesize", "cityscapes").returncode == 0
    upstream, data = tmp_path / "data/demo/upstream", tmp_path / "data/demo/archives"
    shutil.copytree(upstream, data)
    name = replaced(upstream / file, data / file, ".png", bomb(6000))
    done = u2pl("prepare", "cityscapes", "--workers", "2")
    assert done.returncode == 2
    message = f"u2pl: data/demo/archives/{file}:{name}: found Image size (36000000 pixels) exceeds limit"
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
    assert not (tmp_path / "data/demo/cityscapes/manifest.json").exists()


def test_a_png_bomb_takes_no_memory(tmp_path: Path) -> None:
    """Twelve thousand pixels square: small enough for Pillow's own limit, and 144 MB when decoded."""
    (tmp_path / "bomb.png").write_bytes(bomb(12_000))
    assert (tmp_path / "bomb.png").stat().st_size < 1_000_000
    script = """
import resource, sys
from pathlib import Path
from u2pl.data.images import decode, decode_image, decode_mask
from u2pl.errors import UserError
content = Path(sys.argv[1]).read_bytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for function in (decode, decode_image, decode_mask):
    try:
        function(content, "here")
    except UserError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "bomb.png")], capture_output=True, text=True)
    *lines, megabytes = done.stdout.splitlines()
    assert len(lines) == 3 and all("144000000 pixels" in line for line in lines), done.stderr
    assert int(megabytes) < 40


def test_a_member_bomb_is_not_unpacked(archives: Path, make_dataset: Make, tmp_path: Path) -> None:
    shutil.copytree(archives, tmp_path / "archives")
    file, content = "leftImg8bit_trainvaltest.zip", bytes(2**25 + 1)
    name = replaced(archives / file, tmp_path / "archives" / file, ".png", content)
    with pytest.raises(UserError, match=f"{name}: found {2**25 + 1} bytes, expected at most"):
        prepare(make_dataset("cityscapes"), tmp_path / "archives", tmp_path / "out", 1)
    voc = tmp_path / "archives" / "VOCtrainval_11-May-2012.tar"
    with tarfile.open(archives / voc.name) as old, tarfile.open(voc, "w:gz") as new:
        for member in old.getmembers():
            stream: Any = old.extractfile(member)
            if member.name.endswith("/train.txt"):
                stream, member.size = io.BytesIO(content), len(content)
            new.addfile(member, stream)
    with pytest.raises(UserError, match="train.txt: found"):
        prepare(make_dataset("pascal"), tmp_path / "archives", tmp_path / "out", 1)


def labels(**fields: Any) -> dict[str, Any]:
    return {"GTcls": {"Segmentation": np.zeros((48, 64), np.uint8)} | fields}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"other": 1}, "KeyError 'GTcls'"),
        ({"GTcls": np.zeros((48, 64), np.uint8)}, "GTcls.Segmentation of SBD"),
        ({"GTcls": {"Boundaries": 1}}, "GTcls.Segmentation of SBD"),
        (labels(Segmentation=np.zeros((48, 63), np.uint8)), "a mask of 48x63, expected its image's 48x64"),
        (labels(Segmentation=np.zeros((64, 48), np.uint8)), "64x48"),
        (labels(Segmentation=np.zeros((48, 64, 3), np.uint8)), r"shape \(48, 64, 3\)"),
        (labels(Segmentation=np.zeros((48, 64))), "an \\(H, W\\) array of labels"),
        (labels(Segmentation=np.zeros((0, 0), np.uint8)), "0x0"),
        (labels(Segmentation="text"), "array of labels"),
        (labels(Segmentation=np.full((48, 64), -1, np.int16)), "labels -1 to -1"),
        (labels(Segmentation=np.full((48, 64), 256, np.uint16)), "labels 256 to 256"),
        (labels(Segmentation=np.full((48, 64), 21, np.uint8)), "label 21"),
    ],
)
def test_mat_files_of_another_shape(
    content: dict[str, Any], message: str, archives: Path, pascal: Path, make_dataset: Make, tmp_path: Path
) -> None:
    shutil.copytree(archives, tmp_path / "archives")
    stream = io.BytesIO()
    scipy.io.savemat(stream, content)
    wanted = set((pascal / "lists/train_aug.txt").read_text().split()) - set(
        (pascal / "lists/train.txt").read_text().split()
    )
    with (
        tarfile.open(archives / "benchmark.tgz") as old,
        tarfile.open(tmp_path / "archives" / "benchmark.tgz", "w:gz") as new,
    ):
        for member in old.getmembers():
            inside: Any = old.extractfile(member)
            if Path(member.name).suffix == ".mat" and Path(member.name).stem in wanted:
                inside, member.size = io.BytesIO(stream.getvalue()), len(stream.getvalue())
            new.addfile(member, inside)
    with pytest.raises(UserError, match=rf"benchmark.tgz:.*\.mat: found .*{message}"):
        prepare(make_dataset("pascal"), tmp_path / "archives", tmp_path / "out", 1)
    assert not (tmp_path / "out" / "manifest.json").exists()
