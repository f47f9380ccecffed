"""What the command line prints, into places that take it and places that do not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
U2PL = [sys.executable, "-m", "u2pl"]


def u2pl(*arguments: str, **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*U2PL, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=60, **options)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["runs"], ["plan"], ["--help"]])
def test_a_full_disk_is_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = u2pl(*arguments, stdout=full)
    assert done.returncode == 2
    assert done.stderr == "u2pl: standard output: found No space left on device, expected room for what is printed\n"


@pytest.mark.parametrize("arguments", [["runs"], ["plan"], ["--help"]])
def test_a_closed_pipe_ends_quietly(arguments: list[str]) -> None:
    """With the code of a shell's own tools, and not with one that says that a number moved."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = u2pl(*arguments, stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("verb", ["runs", "plan"])
def test_a_closed_output_is_nobodys_loss(verb: str) -> None:
    command = ["bash", "-c", 'exec "$@" >&-', "-", *U2PL, verb]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_characters_that_the_terminal_lacks_are_replaced() -> None:
    environment = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "COLUMNS": "100"}
    done = u2pl("show", "claims", "--scale", "mini", stdout=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "mean ? sample standard deviation over 10 seeds" in " ".join(done.stdout.split()) and done.stdout.isascii()


def test_an_error_gives_the_terminal_no_orders(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "params", tmp_path / "params")
    with (tmp_path / "params/methods.yaml").open("a") as file:
        file.write('mine: {title: Mine, "a\\e[31mred": 1}\n')
    done = subprocess.run([*U2PL, "runs"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "methods.yaml: mine.a\\x1b[31mred: found an unknown key" in done.stderr
    assert "\x1b" not in done.stderr and len(done.stderr.splitlines()) == 1
