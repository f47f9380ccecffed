import functools
import io
import multiprocessing
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from cityscapesscripts.helpers.labels import labels as cityscapes_labels
from PIL import Image

from u2pl.data.layouts.cityscapes import train_id_table
from u2pl.data.prepare import prepare, restore
from u2pl.data.synthetic.archives import synthesize
from u2pl.errors import UserError
from u2pl.experiments.schema import Archive, Dataset
from u2pl.files import read_json, sha256

Make = Callable[..., Dataset]
REAL = Path(os.environ.get("U2PL_REAL_DATA", Path(__file__).parents[3] / "shared/data/real"))
Change = Callable[[dict[str, bytes]], None]


def unpack(path: Path) -> dict[str, bytes]:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive.getmembers()}  # type: ignore[union-attr]


def pack(path: Path, files: dict[str, bytes]) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def png(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def values(content: bytes | Path) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(content) if isinstance(content, bytes) else content))


def segmentation(content: bytes) -> np.ndarray:
    stream: Any = io.BytesIO(content)  # the stubs know paths only
    return scipy.io.loadmat(stream)["GTcls"]["Segmentation"][0, 0]


def ids(folder: Path, name: str) -> list[str]:
    return (folder / "lists" / f"{name}.txt").read_text().split()


@pytest.mark.parametrize("kind", ["pascal", "cityscapes"])
def test_synthetic_archives_are_byte_identical(kind: str, archives: Path, make_dataset: Make, tmp_path: Path) -> None:
    train = {"pascal": 6, "cityscapes": 5}[kind]
    val = {"pascal": 4, "cityscapes": 3}[kind]
    for seed in (3, 4):
        synthesize(kind, tmp_path / str(seed), seed=seed, train=train, extra=4, val=val, size=(48, 64))
    for archive in make_dataset(kind).archives.values():
        assert (tmp_path / "3" / archive.file).read_bytes() == (archives / archive.file).read_bytes()
        assert (tmp_path / "4" / archive.file).read_bytes() != (archives / archive.file).read_bytes()


def test_pascal_round_trip(archives: Path, pascal: Path) -> None:
    voc, sbd = unpack(archives / "VOCtrainval_11-May-2012.tar"), unpack(archives / "benchmark.tgz")
    root, cls = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset/cls"
    train, val = (voc[f"{root}/ImageSets/Segmentation/{n}.txt"].decode().split() for n in ("train", "val"))
    sbd_ids = {name.split("/")[-1][:-4] for name in sbd if name.endswith(".mat")}
    assert set(val) & sbd_ids, "the overlap that must not leak into training"
    assert ids(pascal, "train") == train and ids(pascal, "val") == val
    assert ids(pascal, "train_aug") == sorted((set(train) | sbd_ids) - set(val))
    differing = 0
    for image_id in (*train, *val):
        mask = values(pascal / "masks" / f"{image_id}.png")
        np.testing.assert_array_equal(mask, values(voc[f"{root}/SegmentationClass/{image_id}.png"]))
        assert (pascal / "images" / f"{image_id}.jpg").read_bytes() == voc[f"{root}/JPEGImages/{image_id}.jpg"]
        mat = segmentation(sbd[f"{cls}/{image_id}.mat"])
        differing += bool((mask != mat).any())
    assert differing == len(train) + len(val), "VOC's masks and not SBD's"
    for image_id in set(ids(pascal, "train_aug")) - set(train):
        mat = segmentation(sbd[f"{cls}/{image_id}.mat"])
        np.testing.assert_array_equal(values(pascal / "masks" / f"{image_id}.png"), mat)
    manifest = read_json(pascal / "manifest.json")
    assert manifest["counts"] == {"train": 6, "train_aug": 10, "val": 4}
    assert manifest["files"] == 3 + 2 * 14 and manifest["suffix"] == ".jpg"
    assert manifest["archives"] == {f: sha256(archives / f) for f in ("VOCtrainval_11-May-2012.tar", "benchmark.tgz")}


def test_cityscapes_round_trip(archives: Path, make_dataset: Make, tmp_path: Path) -> None:
    prepare(make_dataset("cityscapes"), archives, tmp_path, 1)
    known = {label.id: label.trainId for label in cityscapes_labels}
    seen: set[int] = set()
    for name, content in unpack(archives / "gtFine_trainvaltest.zip").items():
        if "/test/" in name or not name.endswith("_labelIds.png"):
            continue
        raw = values(content)
        seen |= set(raw.ravel().tolist())
        expected = np.vectorize(known.__getitem__)(raw)
        stem = name.split("/")[-1].removesuffix("_gtFine_labelIds.png")
        assert stem in ids(tmp_path, name.split("/")[1])
        np.testing.assert_array_equal(values(tmp_path / "masks" / f"{stem}.png"), expected)
        assert (tmp_path / "images" / f"{stem}.png").is_file()
    assert {i for i in seen if known[i] == 255}, "ignored ids occur"
    assert len({name.split("_")[0] for name in ids(tmp_path, "train")}) > 1


def test_train_id_table_is_cityscapesscripts() -> None:
    table = train_id_table(255)
    for label in cityscapes_labels:
        if label.id >= 0:
            assert table[label.id] == label.trainId
    assert (table[34:] == -1).all()


def break_voc_image(files: dict[str, bytes]) -> None:
    name = next(n for n in files if "JPEGImages" in n)
    files[name] = files[name][: len(files[name]) // 2]


def break_voc_mask_size(files: dict[str, bytes]) -> None:
    name = next(n for n in files if "SegmentationClass" in n)
    files[name] = png(np.zeros((48, 63), np.uint8))


def break_voc_mask_label(files: dict[str, bytes]) -> None:
    name = next(n for n in files if "SegmentationClass" in n)
    files[name] = png(np.full((48, 64), 21, np.uint8))


def break_voc_mask_mode(files: dict[str, bytes]) -> None:
    name = next(n for n in files if "SegmentationClass" in n)
    files[name] = png(np.zeros((48, 64, 3), np.uint8))


def drop_voc_mask(files: dict[str, bytes]) -> None:
    del files[next(n for n in files if "SegmentationClass" in n)]


def leak_voc_val(files: dict[str, bytes]) -> None:
    lists = [n for n in files if n.endswith("/train.txt") or n.endswith("/val.txt")]
    files[lists[0]] += files[lists[1]].splitlines()[0] + b"\n"


def hostile_id(files: dict[str, bytes]) -> None:
    files[next(n for n in files if n.endswith("/train.txt"))] += b"../../x\n"


def break_mat(files: dict[str, bytes]) -> None:
    for name in files:
        if name.endswith(".mat"):
            files[name] = files[name][:150]


def unknown_city_id(files: dict[str, bytes]) -> None:
    files[next(iter(files))] = png(np.full((48, 64), 34, np.uint8))


def drop_city_label(files: dict[str, bytes]) -> None:
    del files[next(iter(files))]


@pytest.mark.parametrize(
    ("kind", "key", "change", "message"),
    [
        ("pascal", "voc", break_voc_image, "truncated"),
        ("pascal", "voc", break_voc_mask_size, "48x63"),
        ("pascal", "voc", break_voc_mask_label, "label 21"),
        ("pascal", "voc", break_voc_mask_mode, "RGB"),
        ("pascal", "voc", drop_voc_mask, "no mask of"),
        ("pascal", "voc", leak_voc_val, "in train and val"),
        ("pascal", "voc", hostile_id, "one image id a line"),
        ("pascal", "sbd", break_mat, "GTcls"),
        ("cityscapes", "labels", unknown_city_id, "label id 34"),
        ("cityscapes", "labels", drop_city_label, "no train file of"),
    ],
)
def test_bad_contents(
    kind: str, key: str, change: Change, message: str, archives: Path, make_dataset: Make, tmp_path: Path
) -> None:
    dataset = make_dataset(kind)
    shutil.copytree(archives, tmp_path / "archives")
    path = tmp_path / "archives" / dataset.archives[key].file
    files = unpack(path)
    change(files)
    pack(path, files)
    target = tmp_path / "out"
    target.mkdir()
    (target / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=message):
        prepare(dataset, tmp_path / "archives", target, 1)
    assert not (target / "manifest.json").exists()
    assert not [p for p in target.rglob(".*")], "no temporary file is left"


def test_counts_and_missing_archives(archives: Path, make_dataset: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"benchmark.tgz: found 10 images in train_aug, expected the 11 "):
        prepare(make_dataset("pascal", {"train": 6, "train_aug": 11, "val": 4}), archives, tmp_path / "a", 1)
    with pytest.raises(UserError, match="no file"):
        prepare(make_dataset("pascal"), tmp_path, tmp_path / "b", 1)
    dataset = make_dataset("pascal", archives={"voc": Archive(file="x", url="")})
    with pytest.raises(UserError, match="sbd"):
        prepare(dataset, archives, tmp_path / "c", 1)


@pytest.mark.parametrize("part", [0.3, 0.9])
def test_cut_archive(part: float, archives: Path, make_dataset: Make, tmp_path: Path) -> None:
    shutil.copytree(archives, tmp_path / "archives")
    path = tmp_path / "archives" / "benchmark.tgz"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(UserError, match="benchmark.tgz"):
        prepare(make_dataset("pascal"), tmp_path / "archives", tmp_path / "out", 1)
    path.write_bytes(b"no archive at all")
    with pytest.raises(UserError, match="a tar or zip archive"):
        prepare(make_dataset("pascal"), tmp_path / "archives", tmp_path / "out", 1)


def member(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("/tmp/absolute"), member("../outside"), member("a/../../outside"), member("soft", tarfile.SYMTYPE),
        member("hard", tarfile.LNKTYPE), member("device", tarfile.CHRTYPE), member("pipe", tarfile.FIFOTYPE),
        member("disk", tarfile.BLKTYPE), member("../folder", tarfile.DIRTYPE), member("C:/drive"),
    ],
    ids=lambda info: info.name,
)  # fmt: skip
def test_unsafe_tar_members(bad: tarfile.TarInfo, archives: Path, make_dataset: Make, tmp_path: Path) -> None:
    shutil.copytree(archives, tmp_path / "archives")
    with tarfile.open(tmp_path / "archives" / "VOCtrainval_11-May-2012.tar", "a") as archive:
        archive.addfile(bad)
    with pytest.raises(UserError, match=bad.name):
        prepare(make_dataset("pascal"), tmp_path / "archives", tmp_path / "out", 1)
    assert not (tmp_path / "out" / "images").exists()


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("/absolute.png", 0o100644), ("../x.png", 0o100644), ("..\\x.png", 0o100644), ("C:\\x.png", 0o100644),
        ("../folder/", 0o040755), ("link", 0o120777), ("device", 0o020666), ("disk", 0o060666), ("pipe", 0o010666),
    ],
)  # fmt: skip
def test_unsafe_zip_members(name: str, mode: int, archives: Path, make_dataset: Make, tmp_path: Path) -> None:
    shutil.copytree(archives, tmp_path / "archives")
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    with zipfile.ZipFile(tmp_path / "archives" / "gtFine_trainvaltest.zip", "a") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="member"):
        prepare(make_dataset("cityscapes"), tmp_path / "archives", tmp_path / "out", 1)


def test_resume_keeps_finished_files_and_a_new_archive_does_not(
    archives: Path, pascal: Path, make_dataset: Make, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    shutil.copytree(pascal, target)
    image_id = ids(target, "train")[0]
    kept, redone = target / "masks" / f"{ids(target, 'train')[1]}.png", target / "masks" / f"{image_id}.png"
    redone.unlink()
    before = kept.stat().st_mtime_ns
    prepare(make_dataset("pascal"), archives, target, 2)
    assert kept.stat().st_mtime_ns == before and redone.is_file()
    assert (target / "manifest.json").read_bytes() == (pascal / "manifest.json").read_bytes()
    other = tmp_path / "archives"
    synthesize("pascal", other, seed=9, train=6, extra=4, val=4, size=(48, 64))
    prepare(make_dataset("pascal"), other, target, 2)
    prepare(make_dataset("pascal"), other, tmp_path / "fresh", 1)
    assert (target / "manifest.json").read_bytes() == (tmp_path / "fresh" / "manifest.json").read_bytes()
    assert sorted(p.name for p in (target / "images").iterdir()) == sorted(
        p.name for p in (tmp_path / "fresh" / "images").iterdir()
    )


def test_real_files(make_dataset: Make, tmp_path: Path) -> None:
    """Real VOC, SBD and Cityscapes files, packed as upstream packs them."""
    real, packed = REAL, tmp_path / "archives"
    if not (real / "VOCdevkit").is_dir():
        pytest.skip("no folder with VOCdevkit, benchmark_RELEASE and cityscapes (U2PL_REAL_DATA)")
    packed.mkdir()
    for file, mode, folder in (
        ("VOCtrainval_11-May-2012.tar", "w", "VOCdevkit"),
        ("benchmark.tgz", "w:gz", "benchmark_RELEASE"),
    ):
        with tarfile.open(packed / file, mode) as archive:  # type: ignore[call-overload]
            archive.add(real / folder, folder)
    for file, folder in (("leftImg8bit_trainvaltest.zip", "leftImg8bit"), ("gtFine_trainvaltest.zip", "gtFine")):
        with zipfile.ZipFile(packed / file, "w") as archive:
            for path in sorted((real / "cityscapes" / folder).rglob("*.png")):
                archive.write(path, path.relative_to(real / "cityscapes"))
    lists = real / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    train, val = (set((lists / f"{n}.txt").read_text().split()) for n in ("train", "val"))
    sbd = {p.stem for p in (real / "benchmark_RELEASE").rglob("*.mat")}
    aug = (train | sbd) - val
    counts = {"train": len(train), "train_aug": len(aug), "val": len(val)}
    prepare(make_dataset("pascal", counts), packed, tmp_path / "pascal", 2)
    for image_id in aug | val:
        mask = values(tmp_path / "pascal" / "masks" / f"{image_id}.png")
        assert mask.shape == values(tmp_path / "pascal" / "images" / f"{image_id}.jpg").shape[:2]
        assert set(np.unique(mask)) <= {*range(21), 255}
    city = len(list((real / "cityscapes" / "leftImg8bit" / "train").rglob("*.png")))
    prepare(make_dataset("cityscapes", {"train": city}), packed, tmp_path / "cityscapes", 2)
    for path in (tmp_path / "cityscapes" / "masks").iterdir():
        assert {0, 2, 8} <= set(np.unique(values(path))), "every street has road, buildings and vegetation"


def test_files_whose_manifest_alone_was_pulled_come_back(
    archives: Path, pascal: Path, make_dataset: Make, tmp_path: Path
) -> None:
    target = tmp_path / "pascal"
    target.mkdir()
    shutil.copy(pascal / "manifest.json", target)
    before = (target / "manifest.json").stat().st_mtime_ns
    for left in (None, "images", "lists"):
        if left:
            next((target / left).iterdir()).unlink()
        restore(make_dataset("pascal"), archives, target, 1)
        files = {path.relative_to(target): path.read_bytes() for path in target.rglob("*") if path.is_file()}
        assert files == {path.relative_to(pascal): path.read_bytes() for path in pascal.rglob("*") if path.is_file()}
        assert (target / "manifest.json").stat().st_mtime_ns == before


def test_many_jobs_that_miss_the_pulled_files_at_once(
    archives: Path, pascal: Path, make_dataset: Make, tmp_path: Path
) -> None:
    """The first converts; the others, which waited, find everything there, and none sees half of it."""
    target = tmp_path / "pascal"
    target.mkdir()
    shutil.copy(pascal / "manifest.json", target)
    job = functools.partial(restore, make_dataset("pascal"), archives, target, 1)
    jobs = [multiprocessing.get_context("spawn").Process(target=job) for _ in range(4)]
    for process in jobs:
        process.start()
    for process in jobs:
        process.join()
    assert [process.exitcode for process in jobs] == [0] * len(jobs)
    files = {path.relative_to(target): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert files == {path.relative_to(pascal): path.read_bytes() for path in pascal.rglob("*") if path.is_file()}


def test_archives_that_give_other_files_than_the_pulled_manifest_says(
    archives: Path, pascal: Path, make_dataset: Make, tmp_path: Path
) -> None:
    shutil.copy(pascal / "manifest.json", tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()
    other = tmp_path / "archives"
    synthesize("pascal", other, seed=4, train=6, extra=4, val=4, size=(48, 64))
    with pytest.raises(UserError, match=r"manifest\.json says"):
        restore(make_dataset("pascal"), other, tmp_path, 1)
    assert (tmp_path / "manifest.json").read_bytes() == before
