"""Small archives in the upstream layouts, drawn instead of downloaded.

`scenes` draws the images. Equal arguments give equal bytes: every image has its own generator, and archives carry no
clock, user or machine. Each archive also holds a sample of what upstream's has beside the wanted files, so that no path
is taken by real data alone.
"""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray
from PIL import Image

from u2pl.data.images import UInt8, encode_mask
from u2pl.data.synthetic.scenes import pascal_scene, simple_scene, street_scene, textured_scene
from u2pl.errors import UserError
from u2pl.files import atomic_path

_CITIES = {"train": ("aachen", "bochum", "cologne"), "val": ("frankfurt", "munster")}
_TEST = "test/berlin/berlin_000000_000019"
_VOC = "VOCdevkit/VOC2012"
_SBD = "benchmark_RELEASE/dataset"
_SBD_DEMO = "benchmark_RELEASE/benchmark_code_RELEASE/demo/datadir"
_TASKS = {"Main": "aeroplane", "Layout": "person", "Action": "jumping"}  # tasks of VOC -> the beginning of a list
_RIM = 255
Scene = Callable[[int, int, tuple[int, int]], tuple[UInt8, UInt8]]
SCENES: dict[str, Scene] = {"plain": pascal_scene, "simple": simple_scene, "textured": textured_scene}


def synthesize(
    dataset: str,
    target: Path,
    *,
    seed: int,
    train: int,
    extra: int,
    val: int,
    size: tuple[int, int],
    scene: str = "plain",
) -> None:
    """Write the archives of `dataset` ("pascal" or "cityscapes") into the folder `target` under upstream's names.

    `train` and `val` are the lengths of VOC's or Cityscapes' lists, `extra` the images only SBD has, and `size` is
    (height, width) in pixels. `scene` is one of SCENES, for Pascal. Raises UserError for an unknown data set,
    impossible numbers or a full disk.
    """
    if dataset not in ("pascal", "cityscapes"):
        raise UserError("dataset", repr(dataset), "pascal or cityscapes")
    if min(size) < 32 or min(train, val) < 1 or extra < 0:
        raise UserError(f"synthetic {dataset}", (train, extra, val, size), "32x32 pixels or more, no empty list")
    if dataset == "pascal":
        _pascal(target, seed, train, extra, val, size, SCENES[scene])
    else:
        _cityscapes(target, seed, train, val, size)


def _pascal(target: Path, seed: int, train: int, extra: int, val: int, size: tuple[int, int], scene: Scene) -> None:
    # Years and lists are interleaved, so that neither order nor name tells train from val.
    total = train + val + extra
    names = [f"{2007 + index % 5}_{index:06d}" for index in range(total)]
    order = np.random.default_rng([seed, total]).permutation(total)
    groups = {"train": order[:train], "val": order[train : train + val], "extra": order[train + val :]}
    voc = sorted((names[i], int(i)) for name in ("train", "val") for i in groups[name])
    lists = {name: sorted(names[i] for i in groups[name]) for name in ("train", "val")}
    lists["trainval"] = sorted(lists["train"] + lists["val"])

    def voc_members() -> Iterator[tuple[str, bytes]]:
        for name, ids in sorted(lists.items()):
            yield f"{_VOC}/ImageSets/Segmentation/{name}.txt", _lines(ids)
        for image_id, index in voc:
            image, labels = scene(seed, index, size)
            yield f"{_VOC}/JPEGImages/{image_id}.jpg", _jpeg(image)
            yield f"{_VOC}/SegmentationClass/{image_id}.png", _palettised(_with_rims(labels))
        yield from _rest_of_voc(voc[0], [names[i] for i in groups["extra"][:1]], scene(seed, total, size))

    everything = sorted((name, index) for index, name in enumerate(names))
    held_out = everything[::4]  # SBD's own val list, unrelated to VOC's

    def sbd_members() -> Iterator[tuple[str, bytes]]:
        for image_id, index in everything:
            image, labels = scene(seed, index, size)
            yield f"{_SBD}/cls/{image_id}.mat", _sbd_mat(_coarse(labels))
            yield f"{_SBD}/img/{image_id}.jpg", _jpeg(image)
        yield f"{_SBD}/train.txt", _lines([name for name, _ in everything if (name, _) not in held_out])
        yield f"{_SBD}/val.txt", _lines([name for name, _ in held_out])
        # Upstream's demo has copies of two images, with lists of its own.
        shown = everything[:2]
        for image_id, index in shown:
            image, labels = scene(seed, index, size)
            for folder in (_SBD, _SBD_DEMO):
                yield f"{folder}/inst/{image_id}.mat", _sbd_mat(_coarse(labels), "GTinst")
            yield f"{_SBD_DEMO}/cls/{image_id}.mat", _sbd_mat(_coarse(labels))
            yield f"{_SBD_DEMO}/img/{image_id}.jpg", _jpeg(image)
        yield f"{_SBD_DEMO}/train.txt", _lines([shown[0][0]])
        yield f"{_SBD_DEMO}/val.txt", _lines([name for name, _ in shown[1:]])

    _write_tar(target / "VOCtrainval_11-May-2012.tar", voc_members(), compress=False)
    _write_tar(target / "benchmark.tgz", sbd_members(), compress=True)


def _rest_of_voc(first: tuple[str, int], others: list[str], scene: tuple[UInt8, UInt8]) -> Iterator[tuple[str, bytes]]:
    """Lists of the other tasks, instances and boxes, and images that no list of segmentation names."""
    image_id, _ = first
    image, labels = scene
    for task, line in (("Main", f"{image_id} -1\n"), ("Layout", f"{image_id} 1\n"), ("Action", f"{image_id} 1 -1\n")):
        for name in ("train", "val", "trainval"):
            yield f"{_VOC}/ImageSets/{task}/{name}.txt", f"{image_id}\n".encode()
        yield f"{_VOC}/ImageSets/{task}/{_TASKS[task]}_train.txt", line.encode()
    yield f"{_VOC}/Annotations/{image_id}.xml", b"<annotation><folder>VOC2012</folder></annotation>\n"
    yield f"{_VOC}/SegmentationObject/{image_id}.png", _palettised(_with_rims(labels))
    for other in others:
        yield f"{_VOC}/JPEGImages/{other}.jpg", _jpeg(image)


def _cityscapes(target: Path, seed: int, train: int, val: int, size: tuple[int, int]) -> None:
    def stems() -> Iterator[tuple[int, str, str]]:
        for offset, (split, length) in zip((0, train), (("train", train), ("val", val)), strict=True):
            cities = _CITIES[split]
            for i in range(length):
                city = cities[i % len(cities)]
                yield offset + i, f"{split}/{city}", f"{city}_{i // len(cities):06d}_000019"

    def images() -> Iterator[tuple[str, bytes]]:
        for index, folder, stem in stems():
            yield f"leftImg8bit/{folder}/{stem}_leftImg8bit.png", _png(street_scene(seed, index, size)[0])
        yield f"leftImg8bit/{_TEST}_leftImg8bit.png", _png(street_scene(seed, train + val, size)[0])
        yield from _papers()

    def labels() -> Iterator[tuple[str, bytes]]:
        for index, folder, stem in stems():
            yield f"gtFine/{folder}/{stem}_gtFine_labelIds.png", encode_mask(street_scene(seed, index, size)[1])
        # The test split's labels are of the frame and the own car alone.
        _, folder, stem = next(stems())
        ids = street_scene(seed, 0, size)[1]
        for path in (f"gtFine/{folder}/{stem}", f"gtFine/{_TEST}"):
            yield f"{path}_gtFine_instanceIds.png", _png(ids.astype(np.uint16) * 1000)
            yield f"{path}_gtFine_color.png", _png(np.stack([ids] * 3, axis=2))
            yield f"{path}_gtFine_polygons.json", b'{"imgHeight": 0, "imgWidth": 0, "objects": []}'
        yield f"gtFine/{_TEST}_gtFine_labelIds.png", encode_mask(np.full(size, 3, np.uint8))
        yield from _papers()

    _write_zip(target / "leftImg8bit_trainvaltest.zip", images())
    _write_zip(target / "gtFine_trainvaltest.zip", labels())


def _papers() -> Iterator[tuple[str, bytes]]:
    yield from ((name, b"of the synthetic Cityscapes\n") for name in ("README", "license.txt"))


# ----------------------------------------------------------------------------------------------------------- masks


def _with_rims(labels: UInt8) -> UInt8:
    """Put 255 on both sides of every boundary, as VOC's annotators did: a rim of two pixels."""
    edge = np.zeros(labels.shape, bool)
    vertical, horizontal = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= vertical
    edge[:-1] |= vertical
    edge[:, 1:] |= horizontal
    edge[:, :-1] |= horizontal
    return np.where(edge, np.uint8(_RIM), labels)


def _coarse(labels: UInt8) -> UInt8:
    """SBD's outlines are rougher than VOC's: keep every fourth pixel and enlarge."""
    height, width = labels.shape
    return np.repeat(np.repeat(labels[::4, ::4], 4, axis=0), 4, axis=1)[:height, :width]


def voc_palette() -> list[int]:
    """The 256 RGB colours of VOC: three bits of the label to each channel, highest bits first."""
    colours = np.zeros((256, 3), np.uint8)
    for label in range(256):
        for bit in range(8):
            for channel in range(3):
                colours[label, channel] |= ((label >> (3 * bit + channel)) & 1) << (7 - bit) if 3 * bit < 8 else 0
    return [int(value) for value in colours.ravel()]


# -------------------------------------------------------------------------------------------------- files, archives


def _lines(ids: list[str]) -> bytes:
    return "".join(f"{i}\n" for i in ids).encode()


def _jpeg(image: UInt8) -> bytes:
    return _saved(Image.fromarray(image), "JPEG", quality=92)


def _png(image: NDArray[Any]) -> bytes:
    return _saved(Image.fromarray(image), "PNG")


def _palettised(labels: UInt8) -> bytes:
    image = Image.fromarray(labels)
    image.putpalette(voc_palette())
    return _saved(image, "PNG")


def _saved(image: Image.Image, kind: str, **options: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _sbd_mat(labels: UInt8, name: str = "GTcls") -> bytes:
    """SBD's class file: the struct `name` with Segmentation (H, W) uint8 and CategoriesPresent."""
    present = np.unique(labels[labels > 0]).astype(np.uint8)[:, None]
    stream: Any = io.BytesIO()  # the stubs know paths only
    scipy.io.savemat(stream, {name: {"Segmentation": labels, "CategoriesPresent": present}}, do_compression=True)
    # The first 116 bytes are a comment with the time of writing.
    content: bytes = stream.getvalue()
    return b"MATLAB 5.0 MAT-file, synthetic".ljust(116) + content[116:]


def _write_tar(path: Path, members: Iterator[tuple[str, bytes]], *, compress: bool) -> None:
    def fill(stream: io.BufferedIOBase) -> None:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for name, content in members:
                info = tarfile.TarInfo(name)  # mtime 0, no owner
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    with atomic_path(path) as temporary, temporary.open("wb") as raw:
        if compress:
            with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=raw, mtime=0) as packed:
                fill(packed)
        else:
            fill(raw)


def _write_zip(path: Path, members: Iterator[tuple[str, bytes]]) -> None:
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o100644 << 16  # the same bytes on every system
            archive.writestr(info, content)
