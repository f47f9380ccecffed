"""Damaged, doubled and hostile members of archives."""

import gzip
import io
import random
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from u2pl.data.sources.unpack import open_archive
from u2pl.errors import UserError

FILES = {f"folder/{i}.txt": random.Random(i).randbytes(700) + bytes(3000) for i in range(6)}
Pack = Callable[[Path], None]


def packed_tar(mode: str, **options: int) -> Pack:
    def pack(path: Path) -> None:
        with tarfile.open(path, mode, **options) as archive:  # type: ignore[call-overload]
            for name, content in FILES.items():
                info = tarfile.TarInfo(name)
                info.size, info.pax_headers = len(content), {"comment": "x" * 40, "path": name}
                archive.addfile(info, io.BytesIO(content))

    return pack


def packed_zip(method: int) -> Pack:
    def pack(path: Path) -> None:
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in FILES.items():
                archive.writestr(name, content)

    return pack


PACKERS = {
    "tar": packed_tar("w"), "pax": packed_tar("w", format=tarfile.PAX_FORMAT), "tar.gz": packed_tar("w:gz"),
    "tar.bz2": packed_tar("w:bz2"), "tar.xz": packed_tar("w:xz"), "zip": packed_zip(zipfile.ZIP_DEFLATED),
    "zip, LZMA": packed_zip(zipfile.ZIP_LZMA), "zip, bzip2": packed_zip(zipfile.ZIP_BZIP2),
}  # fmt: skip


def contents(path: Path) -> dict[str, bytes]:
    with open_archive(path) as archive:
        return dict(archive.read(archive.names))


@pytest.mark.parametrize("kind", PACKERS)
def test_damage_anywhere_is_one_line(kind: str, tmp_path: Path) -> None:
    """Flipped bits, cuts and runs of zeros and ones, many in the headers: content, or a UserError, and nothing else."""
    whole = tmp_path / "whole"
    PACKERS[kind](whole)
    assert contents(whole) == FILES
    good, path, refused = whole.read_bytes(), tmp_path / "damaged", 0
    for seed in range(150):
        rng = random.Random(seed)
        bad = bytearray(good)
        at = rng.randrange(len(bad) if seed % 2 else min(1200, len(bad)))
        if seed % 5 == 0:
            bad = bad[:at]
        elif seed % 5 == 1:
            bad[at : at + 12] = rng.choice([b"\0", b"\xff", b"9", b"-"]) * len(bad[at : at + 12])
        else:
            bad[at] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        try:
            contents(path)
        except UserError as error:
            refused += 1
            assert str(error).isprintable() and str(path) in str(error)
    assert refused > 20


@pytest.mark.parametrize("header", [{"GNU.sparse.map": "x"}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}])
def test_pax_headers_that_mean_nothing_are_one_line(header: dict[str, str], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "archive", "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a")
        info.size, info.pax_headers = 700, header
        archive.addfile(info, io.BytesIO(b"x" * 700))
    with pytest.raises(UserError, match="archive: found .*, expected a"):
        contents(tmp_path / "archive")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("second", ["a/b.txt", "./a/b.txt", "a//b.txt"])
def test_two_members_of_one_name_are_refused(kind: str, second: str, tmp_path: Path) -> None:
    """Readers differ in which of them counts."""
    path = tmp_path / "archive"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as opened:
            for name in ("a/b.txt", second):
                opened.writestr(name, name)
    else:
        with tarfile.open(path, "w") as archive:
            for name in ("a/b.txt", second):
                archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(UserError, match="two members .*b.txt"):
        contents(path)


@pytest.mark.parametrize("name", ["", ".", "./"])
def test_a_file_without_a_name_is_refused(name: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "archive", "w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(UserError, match="member"):
        contents(tmp_path / "archive")


def test_the_archives_own_folder_is_a_member_of_many(tmp_path: Path) -> None:
    """As `tar cf archive.tar .` writes it."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").write_bytes(b"x")
    with tarfile.open(tmp_path / "archive", "w") as archive:
        archive.add(tmp_path / "files", ".")
    assert contents(tmp_path / "archive") == {"a": b"x"}


def peak_of(function: Callable[[], object]) -> int:
    """The most bytes that Python has held at once while the function refused its input."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_zip_that_holds_more_than_it_says_takes_no_memory(tmp_path: Path) -> None:
    path, size = tmp_path / "archive", 200_000_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(size))
    content = path.read_bytes()
    assert content.count(struct.pack("<I", size)) == 2, "in the member's header and in the directory"
    path.write_bytes(content.replace(struct.pack("<I", size), struct.pack("<I", 1000)))
    assert peak_of(lambda: contents(path)) < 20_000_000


def test_a_header_of_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    """A long name, of which tarfile reads as many bytes as the header says: here inflated from almost nothing."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 200_000_000
    path = tmp_path / "archive"
    with gzip.open(path, "wb") as stream:
        stream.write(info.tobuf())
        stream.write(bytes(info.size + 4096))
    assert peak_of(lambda: contents(path)) < 20_000_000


def test_names_do_not_steer_the_terminal(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        archive.writestr("\x1b[2J/../x", b"")
        archive.writestr("ok", b"")
    with pytest.raises(UserError) as caught:
        contents(tmp_path / "archive")
    assert str(caught.value).isprintable()
