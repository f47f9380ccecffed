"""Records as Snakemake names them, and its lock."""

import errno
import fcntl
import json
import socket
from pathlib import Path

import pytest

from u2pl.errors import UserError
from u2pl.snakemake_files import clear_stale_lock, records_file, take_records, write_records

OUTPUTS = ["data/demo/pascal/manifest.json", "results/demo/runs/" + 30 * "a_long_name=0.123-" + "seed0/run.json"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".snakemake").mkdir()
    return tmp_path


def snakemakes_own(folder):
    """Snakemake's reader and writer of records."""
    persistence = pytest.importorskip("snakemake.persistence.file")
    return persistence.FilePersistence(path=folder / ".snakemake")


def test_records_go_from_one_folder_to_another(folder, tmp_path_factory, monkeypatch):
    there = snakemakes_own(folder)
    for number, output in enumerate([*OUTPUTS, "results/paper/cells.csv"]):
        there._io_write(there._metadata_path, {"rule": f"rule {number}", "params": ["'ä'"]}, output)
    write_records("demo")
    assert list(json.loads(records_file("demo").read_text())) == OUTPUTS, "no other scale's"

    other = tmp_path_factory.mktemp("other")
    monkeypatch.chdir(other)
    (other / records_file("demo").parent).mkdir(parents=True)
    (other / records_file("demo")).write_bytes((folder / records_file("demo")).read_bytes())
    (other / ".snakemake").mkdir()
    take_records("demo")
    here = snakemakes_own(other)
    for number, output in enumerate(OUTPUTS):
        assert here._io_read(here._metadata_path, output) == {"rule": f"rule {number}", "params": ["'ä'"]}
    # What Snakemake has learnt since stays, until another version of the records is pulled.
    here._io_write(here._metadata_path, {"rule": "newer"}, OUTPUTS[0])
    take_records("demo")
    assert here._io_read(here._metadata_path, OUTPUTS[0]) == {"rule": "newer"}
    records_file("demo").write_text(json.dumps({OUTPUTS[0]: {"rule": "pulled"}}))
    take_records("demo")
    assert here._io_read(here._metadata_path, OUTPUTS[0]) == {"rule": "pulled"}


def test_without_records_the_versioned_ones_stay(folder):
    records_file("demo").parent.mkdir(parents=True)
    records_file("demo").write_text("{}")
    with pytest.raises(UserError, match="no records of the scale 'demo'"):
        write_records("demo")
    assert records_file("demo").read_text() == "{}"


@pytest.mark.parametrize("locks", ["as on NFS 4", "none"])
def test_a_second_snakemake_starts_whatever_the_file_system_locks(folder, monkeypatch, locks):
    """NFS 4 shares a lock on a readable file only, and another Snakemake has it alone for a moment."""

    def flock(stream, operation):
        if locks == "none":
            raise OSError(errno.ENOLCK, "no locks available")
        if operation & fcntl.LOCK_EX:
            raise BlockingIOError
        if not stream.readable():
            raise OSError(errno.EBADF, "bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", flock)
    (folder / ".snakemake/locks").mkdir()
    clear_stale_lock()
    assert (folder / ".snakemake/locks").exists()


def test_damaged_records_are_named(folder):
    records_file("demo").parent.mkdir(parents=True)
    for content in ("{", "[]"):
        records_file("demo").write_text(content)
        with pytest.raises(UserError, match=r"records\.json"):
            take_records("demo")


@pytest.mark.parametrize("case", ["nobody", "somebody here", "another machine"])
def test_a_lock_stays_where_somebody_may_be_alive(folder, case):
    locks = folder / ".snakemake/locks"
    locks.mkdir()
    (locks / "0.output.lock").write_text("results/demo/cells.csv\n")
    other = (
        folder / ".snakemake" / ("alive.elsewhere" if case == "another machine" else f"alive.{socket.gethostname()}")
    )
    with other.open("w") as stream:
        if case == "somebody here":
            fcntl.flock(stream, fcntl.LOCK_SH)
        clear_stale_lock()
        assert locks.exists() == (case != "nobody")
        # Whoever comes next finds this process alive.
        with pytest.raises(BlockingIOError), Path(f".snakemake/alive.{socket.gethostname()}").open() as mine:
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
