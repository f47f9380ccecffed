"""Prepared files that are missing or damaged are found by their checksums and made again, and no others."""

import io
import os
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from u2pl.data import convert
from u2pl.data.prepare import prepare, restore
from u2pl.data.progress import progress
from u2pl.errors import UserError
from u2pl.experiments.schema import Archive, Dataset
from u2pl.files import read_json, write_json

Make = Callable[..., Dataset]
VOC, SBD = "VOCtrainval_11-May-2012.tar", "benchmark.tgz"


@pytest.fixture
def copy(pascal: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pascal, tmp_path / "pascal")


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and date of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def flip(path: Path, seed: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[random.Random(seed).randrange(len(content))] ^= 1 << random.Random(seed).randrange(8)
    path.write_bytes(content)


def test_a_folder_in_a_files_place_is_one_line(copy: Path, archives: Path, make_dataset: Make) -> None:
    victim = one(copy, "images")
    victim.unlink()
    victim.mkdir()
    with pytest.raises(UserError, match=f"{victim}: found Is a directory"):
        restore(make_dataset("pascal"), archives, copy, 1)


def one(folder: Path, kind: str, number: int = 0) -> Path:
    return sorted((folder / kind).iterdir())[number]


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a flipped bit": flip,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty, as a power cut leaves it": lambda path: os.truncate(path, 0),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("kind", ["images", "masks", "lists"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_damaged_file_alone_is_made_again(
    damage: str,
    kind: str,
    copy: Path,
    archives: Path,
    make_dataset: Make,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, victim = state(copy), one(copy, kind, 1)
    name = str(victim.relative_to(copy))
    DAMAGES[damage](victim)
    restore(make_dataset("pascal"), archives, copy, 1)
    after = state(copy)
    assert {key: content for key, (content, _) in after.items()} == {key: old for key, (old, _) in before.items()}
    assert [key for key in before if after[key][1] != before[key][1]] == [name]
    assert f"{copy}: missing or damaged: {name}; converting" in capsys.readouterr().out
    restore(make_dataset("pascal"), archives, copy, 1)
    assert capsys.readouterr().out == "" and state(copy) == after


def test_without_the_archives_the_damaged_files_and_the_way_out_are_named(copy: Path, make_dataset: Make) -> None:
    for number in range(7):
        flip(one(copy, "images", number))
    before = state(copy)
    for _ in range(2):  # the second call is no milder
        with pytest.raises(UserError) as caught:
            restore(make_dataset("pascal"), copy.parent / "none", copy, 1)
        text = str(caught.value)
        assert text.startswith(f"{copy}: found missing or damaged: images/{one(copy, 'images').name}, ")
        assert " and 2 more" in text and f"none/{VOC}, no file" in text and "u2pl data fetch" in text
    assert state(copy) == before


@pytest.mark.parametrize("damage", ["a flipped bit", "truncated", "missing"])
def test_lost_checksums_are_written_again_if_all_files_are_sound(
    damage: str, copy: Path, make_dataset: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(copy)
    DAMAGES[damage](copy / "checksums.sha256")
    restore(make_dataset("pascal"), copy.parent / "no archives", copy, 1)
    after = state(copy)
    assert {key: old for key, (old, _) in before.items()} == {key: content for key, (content, _) in after.items()}
    assert [key for key in before if after[key] != before[key]] in ([], ["checksums.sha256"])
    assert "all other files are sound" in capsys.readouterr().out


def test_lost_checksums_and_a_damaged_file(copy: Path, archives: Path, make_dataset: Make) -> None:
    before = {key: content for key, (content, _) in state(copy).items()}
    flip(copy / "checksums.sha256")
    flip(one(copy, "masks"))
    restore(make_dataset("pascal"), archives, copy, 1)
    assert {key: content for key, (content, _) in state(copy).items()} == before


def test_a_damaged_archive_is_not_believed(copy: Path, archives: Path, make_dataset: Make, tmp_path: Path) -> None:
    """The folder stays as it is: neither manifest nor checksums are made to fit."""
    shutil.copytree(archives, tmp_path / "archives")
    flip(tmp_path / "archives" / VOC)
    flip(one(copy, "images"))
    before = state(copy)
    with pytest.raises(UserError, match=r"archives as prepared: archives: found .*manifest\.json says"):
        restore(make_dataset("pascal"), tmp_path / "archives", copy, 1)
    assert state(copy) == before


def test_other_bytes_from_the_same_archives_are_an_error(
    copy: Path, archives: Path, make_dataset: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another zlib would make them."""
    flip(one(copy, "masks"))
    before = state(copy)
    original = convert.encode_mask
    monkeypatch.setattr(convert, "encode_mask", lambda labels: original(labels) + b"trailing")
    for _ in range(2):
        with pytest.raises(UserError, match=r"other bytes when they are converted again, expected a folder as"):
            restore(make_dataset("pascal"), archives, copy, 1)
    after = state(copy)
    assert after["checksums.sha256"] == before["checksums.sha256"] and after["manifest.json"] == before["manifest.json"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("suffix", ".png"), ("classes", ["background"]), ("ignore_label", 254), ("counts", {"train": 7}),
        ("dataset", "cityscapes"), ("format", 0), ("files", None), ("content_sha256", 1), ("archives", []),
    ],
)  # fmt: skip
def test_a_manifest_of_other_params_is_refused(
    key: str, value: Any, copy: Path, archives: Path, make_dataset: Make
) -> None:
    write_json(copy / "manifest.json", read_json(copy / "manifest.json") | {key: value})
    before = state(copy)
    with pytest.raises(UserError, match=f"manifest.json: {key}: found .*(u2pl data prepare|Input should be)"):
        restore(make_dataset("pascal"), archives, copy, 1)
    assert state(copy) == before


# --- the verb itself


@pytest.mark.parametrize("kind", ["images", "masks", "lists"])
@pytest.mark.parametrize("damage", ["a flipped bit", "truncated", "empty, as a power cut leaves it", "missing"])
def test_prepare_keeps_no_damaged_file(damage: str, kind: str, copy: Path, archives: Path, make_dataset: Make) -> None:
    before, victim = state(copy), one(copy, kind)
    DAMAGES[damage](victim)
    prepare(make_dataset("pascal"), archives, copy, 1)
    after = state(copy)
    assert {key: content for key, (content, _) in after.items()} == {key: old for key, (old, _) in before.items()}
    changed = [key for key in before if after[key][1] != before[key][1] and key not in ("manifest.json",)]
    assert set(changed) <= {str(victim.relative_to(copy)), "checksums.sha256"}


def test_prepare_of_complete_data_writes_nothing(copy: Path, archives: Path, make_dataset: Make) -> None:
    """An equal manifest with a new date would have all splits planned again."""
    before = state(copy)
    prepare(make_dataset("pascal"), archives, copy, 1)
    assert state(copy) == before


def test_damaged_checksums_do_not_certify(copy: Path, archives: Path, make_dataset: Make) -> None:
    before = {key: content for key, (content, _) in state(copy).items()}
    for seed in range(20):
        flip(copy / "checksums.sha256", seed)
        if seed % 3 == 0:
            flip(one(copy, "images", seed % 5), seed)
        prepare(make_dataset("pascal"), archives, copy, 1)
        assert {key: content for key, (content, _) in state(copy).items()} == before


def test_prepare_checks_the_declared_sums(archives: Path, make_dataset: Make, tmp_path: Path) -> None:
    """Archives put there by hand have no manifest."""
    declared = {"voc": Archive(file=VOC, url="", md5="0" * 32), "sbd": Archive(file=SBD, url="")}
    with pytest.raises(UserError, match=f"{VOC}: found md5 .*, expected 0000"):
        prepare(make_dataset("pascal", archives=declared), archives, tmp_path / "out", 1)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_progress_in_a_log(
    archives: Path, make_dataset: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("u2pl.data.prepare.progress", _each)
    prepare(make_dataset("pascal"), archives, tmp_path / "out", 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'out'}: images: 1 of 14, ")
    assert [line.split(",")[0].split(": ")[-1] for line in lines[:14]] == [f"{i} of 14" for i in range(1, 15)]
    assert lines[-1].startswith(f"{tmp_path / 'out'}: masks: 14 of 14, ")


def _each(title: str, total: int) -> Any:
    return progress(title, total, every=0)


# --- what the archives hold beside


def changed(archive: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> None:
    """Write a tar or zip again, each member as `change` gives it; None leaves it out."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as old:
            members = [(name, old.read(name)) for name in old.namelist()]
        with zipfile.ZipFile(archive, "w") as new:
            for item in filter(None, (change(*member) for member in members)):
                new.writestr(*item)
        return
    with tarfile.open(archive) as opened:
        members = [(m.name, opened.extractfile(m).read()) for m in opened.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(archive, "w:gz" if archive.suffix == ".tgz" else "w") as target:
        for item in filter(None, (change(*member) for member in members)):
            info = tarfile.TarInfo(item[0])
            info.size = len(item[1])
            target.addfile(info, io.BytesIO(item[1]))


WANTED = {
    VOC: ("/ImageSets/Segmentation/", "/JPEGImages/", "/SegmentationClass/"),
    SBD: ("benchmark_RELEASE/dataset/img/", "benchmark_RELEASE/dataset/cls/", "dataset/train.txt", "dataset/val.txt"),
    "leftImg8bit_trainvaltest.zip": ("leftImg8bit/train/", "leftImg8bit/val/"),
    "gtFine_trainvaltest.zip": ("_labelIds.png",),
}
BESIDE = {
    VOC: ("/Annotations/", "/ImageSets/Main/", "/ImageSets/Layout/", "/ImageSets/Action/", "/SegmentationObject/"),
    SBD: (*(f"/demo/datadir/{name}/" for name in ("img", "cls", "inst")), "dataset/inst/", "datadir/train.txt"),
    "leftImg8bit_trainvaltest.zip": ("/test/", "README"),
    "gtFine_trainvaltest.zip": ("_polygons.json", "_instanceIds.png", "_color.png", "/test/", "license.txt"),
}


@pytest.mark.parametrize("kind", ["pascal", "cityscapes"])
def test_only_the_wanted_members_count(kind: str, archives: Path, make_dataset: Make, tmp_path: Path) -> None:
    """With everything else made unreadable the files are the same; the synthetic archives hold a sample of all that."""
    copied = shutil.copytree(archives, tmp_path / "archives")
    prepare(make_dataset(kind), archives, tmp_path / "before", 1)
    for archive in make_dataset(kind).archives.values():
        seen: list[str] = []

        def spoil(name: str, content: bytes, file: str = archive.file, seen: list[str] = seen) -> tuple[str, bytes]:
            beside = "/test/" in name or not any(part in name for part in WANTED[file])
            seen.append(name)
            return name, b"spoilt" if beside else content

        changed(copied / archive.file, spoil)
        assert all(any(part in name for name in seen) for part in BESIDE[archive.file])
    prepare(make_dataset(kind), copied, tmp_path / "after", 1)
    assert (tmp_path / "after/checksums.sha256").read_bytes() == (tmp_path / "before/checksums.sha256").read_bytes()


@pytest.mark.parametrize("bad", [" aachen_000000_000019", "aachen_000000_000019\n", "a b", "\u00e4", "-rf", "a\tb"])
@pytest.mark.parametrize("file", ["leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"])
def test_each_cityscapes_id_is_checked_by_itself(
    file: str, bad: str, archives: Path, make_dataset: Make, tmp_path: Path
) -> None:
    copied = shutil.copytree(archives, tmp_path / "archives")

    def rename(name: str, content: bytes) -> tuple[str, bytes]:
        return name.replace("/aachen_000000_000019", f"/{bad}"), content

    changed(copied / file, rename)
    with pytest.raises(UserError, match=f"{file}: found a file of .*expected image ids"):
        prepare(make_dataset("cityscapes"), copied, tmp_path / "out", 1)
