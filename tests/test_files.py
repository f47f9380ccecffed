"""A file either has its final name and all its bytes, or does not exist."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from u2pl.engine.checkpoints import save
from u2pl.engine.run_folder import write_live
from u2pl.errors import UserError
from u2pl.files import atomic_path, read_json, write_json


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"old": 1})
    before = target.read_bytes()
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_a_name_is_on_the_disk_after_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order, a power cut leaves the old file or the new one, and never an empty one."""
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append("folder" if path == tmp_path else f"{path.read_bytes()!r}")
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_bytes(b"all of it")
    assert events == ["b'all of it'", "rename", "folder"]


def test_errors_do_not_steer_the_terminal() -> None:
    error = UserError("a\x1b[2Jb\x07", "\u202eright to left", "\ud800 and \x00")
    assert str(error).isprintable() and error.where == "a\x1b[2Jb\x07"


def test_an_output_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file"):
        write_json(tmp_path / "file" / "a.json", {})


def weights(folder: Path) -> None:
    save(folder / "weights.pt", {"tensor": torch.ones(50_000)})


def live(folder: Path) -> None:
    write_live(folder / "live", [{"epoch": i, "loss": 0.5, "supervised": 0.25} for i in range(5000)])


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.parametrize("write", [lambda folder: write_json(folder / "a.json", "x" * 200_000), weights, live])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, write: Callable[[Path], None]) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no small file system can be mounted here")
    try:
        with pytest.raises(UserError, match="No space left"):
            write(tmp_path)
        assert [path for path in tmp_path.iterdir() if path.name != "live"] == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize(
    "content",
    [
        b'{"miou": NaN}',
        b'{"miou": -Infinity}',
        b'{"miou": 1e999}',
        b"[" + b"9" * 5000 + b"]",
        b"[18446744073709551616]",
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a": 1, "a": 2}',
        b'{"a": "\xff"}',
        b'{"a": 1',
        b"",
    ],
)
def test_what_is_no_json_or_holds_no_usable_number_is_one_short_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: found ") and "\n" not in message
    assert len(message) < len(str(path)) + 200


def test_the_widest_numbers_survive_the_file(tmp_path: Path) -> None:
    value = {"a": [-(2**63), 2**63 - 1, 1.7976931348623157e308, 5e-324, 0.1]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
