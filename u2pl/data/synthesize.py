"""Small archives in the upstream layouts, drawn instead of downloaded.

Every class has a colour, a texture and, for Pascal, a shape. Classes come in pairs of close colours that differ in
texture, so that a weak network confuses them: there are unreliable pixels to learn from. Equal arguments give equal
bytes: every image has its own generator, and archives carry no clock, user or machine.
"""

import colorsys
import gzip
import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray
from PIL import Image

from u2pl.data.images import UInt8, encode_mask
from u2pl.errors import UserError
from u2pl.files import atomic_path

_CITIES = {"train": ("aachen", "bochum", "cologne"), "val": ("frankfurt", "munster")}
_VOC = "VOCdevkit/VOC2012"
_SBD = "benchmark_RELEASE/dataset"
_RIM = 255


def synthesize(
    dataset: str, target: Path, *, seed: int, train: int, extra: int, val: int, size: tuple[int, int]
) -> None:
    """Write the archives of `dataset` ("pascal" or "cityscapes") into the folder `target` under upstream's names.

    `train` and `val` are the lengths of VOC's or Cityscapes' lists, `extra` the images only SBD has, and `size` is
    (height, width) in pixels. Raises UserError for an unknown data set, impossible numbers or a full disk.
    """
    if dataset not in ("pascal", "cityscapes"):
        raise UserError("dataset", repr(dataset), "pascal or cityscapes")
    if min(size) < 32 or min(train, val) < 1 or extra < 0:
        raise UserError(f"synthetic {dataset}", (train, extra, val, size), "32x32 pixels or more, no empty list")
    if dataset == "pascal":
        _pascal(target, seed, train, extra, val, size)
    else:
        _cityscapes(target, seed, train, val, size)


def _pascal(target: Path, seed: int, train: int, extra: int, val: int, size: tuple[int, int]) -> None:
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
            image, labels = pascal_scene(seed, index, size)
            yield f"{_VOC}/JPEGImages/{image_id}.jpg", _jpeg(image)
            yield f"{_VOC}/SegmentationClass/{image_id}.png", _palettised(_with_rims(labels))

    everything = sorted((name, index) for index, name in enumerate(names))
    held_out = everything[::4]  # SBD's own val list, unrelated to VOC's

    def sbd_members() -> Iterator[tuple[str, bytes]]:
        for image_id, index in everything:
            image, labels = pascal_scene(seed, index, size)
            yield f"{_SBD}/cls/{image_id}.mat", _sbd_mat(_coarse(labels))
            yield f"{_SBD}/img/{image_id}.jpg", _jpeg(image)
        yield f"{_SBD}/train.txt", _lines([name for name, _ in everything if (name, _) not in held_out])
        yield f"{_SBD}/val.txt", _lines([name for name, _ in held_out])

    _write_tar(target / "VOCtrainval_11-May-2012.tar", voc_members(), compress=False)
    _write_tar(target / "benchmark.tgz", sbd_members(), compress=True)


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

    def labels() -> Iterator[tuple[str, bytes]]:
        for index, folder, stem in stems():
            yield f"gtFine/{folder}/{stem}_gtFine_labelIds.png", encode_mask(street_scene(seed, index, size)[1])

    _write_zip(target / "leftImg8bit_trainvaltest.zip", images())
    _write_zip(target / "gtFine_trainvaltest.zip", labels())


# ---------------------------------------------------------------------------------------------------------- scenes


def pascal_scene(seed: int, index: int, size: tuple[int, int]) -> tuple[UInt8, UInt8]:
    """(H, W, 3) image and (H, W) labels 0 to 20: one to three objects before a grey, uneven background."""
    rng = np.random.default_rng([seed, index])
    height, width = size
    grey = rng.uniform(70, 170) + 35 * _smooth_noise(rng, size)
    image = np.repeat(grey[..., None], 3, axis=2) + rng.uniform(-12, 12, 3)
    labels = np.zeros(size, np.uint8)
    # The first object runs through the classes: even a small set shows every class.
    classes = [1 + index % 20, *rng.integers(1, 21, rng.integers(0, 3))]
    for label in classes:
        radius = rng.uniform(0.16, 0.36) * min(size)
        centre = rng.uniform(0.2, 0.8) * height, rng.uniform(0.2, 0.8) * width
        inside = _shape(int(label), size, centre, radius, rng.uniform(-0.4, 0.4))
        image[inside] = _texture(rng, int(label), 20, size)[inside]
        labels[inside] = label
    return _finish(rng, image), labels


def street_scene(seed: int, index: int, size: tuple[int, int]) -> tuple[UInt8, UInt8]:
    """(H, W, 3) image and (H, W) Cityscapes label ids: bands of stuff, objects before them, and ignored regions."""
    rng = np.random.default_rng([seed, index])
    height, width = size
    horizon, kerb = rng.uniform(0.25, 0.4), rng.uniform(0.55, 0.68)
    rows = np.arange(height)[:, None] / height + 0.03 * _smooth_noise(rng, size)
    ids = np.full(size, 23, np.uint8)  # sky
    ids[rows > horizon] = rng.choice([11, 11, 21])  # building, vegetation
    ids[rows > kerb - 0.08] = rng.choice([8, 22, 12, 13])  # sidewalk, terrain, wall, fence
    ids[rows > kerb] = 7  # road
    for _ in range(rng.integers(2, 5)):  # what stands beside the street
        kind = int(rng.choice([11, 21, 12, 13, 17, 19, 20, 4]))  # 4 is static, ignored
        tall = 0.06 if kind in (17, 19, 20) else rng.uniform(0.1, 0.25)
        top = rng.uniform(0.1, 0.45) * height
        left = rng.uniform(0, 1 - tall) * width
        _rectangle(ids, kind, top, left, kerb * height, left + max(3.0, tall * width))
    things = [24, 25, 26, 27, 28, 31, 32, 33]
    for kind in (things[index % len(things)], *rng.choice(things, rng.integers(1, 4))):
        tall = rng.uniform(0.16, 0.32) * height
        broad = tall * (0.45 if kind in (24, 25, 32, 33) else 1.5)
        bottom, left = rng.uniform(kerb, 0.92) * height, rng.uniform(0, 0.9) * width
        _rectangle(ids, int(kind), bottom - tall, left, bottom, left + broad)
    ids[height - max(2, height // 24) :] = 1  # ego vehicle, ignored
    ids[:, :1] = 3  # out of roi, ignored
    image = np.full((*size, 3), 60.0)
    for label in np.unique(ids):
        if label in _STREET:
            inside = ids == label
            image[inside] = _texture(rng, _STREET[int(label)], len(_STREET), size)[inside]
    return _finish(rng, image), ids


# Evaluated label ids in the order of their train ids; 1-based, as the texture of class 0 is Pascal's background.
_STREET_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_STREET = {label: position + 1 for position, label in enumerate(_STREET_IDS)}


def _rectangle(ids: UInt8, label: int, top: float, left: float, bottom: float, right: float) -> None:
    ids[max(0, int(top)) : max(0, int(bottom)), max(0, int(left)) : max(0, int(right))] = label


def _shape(label: int, size: tuple[int, int], centre: tuple[float, float], radius: float, turn: float) -> NDArray:
    """(H, W) bool: an ellipse, a box, a triangle or a ring, by the class."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    dy, dx = (y - centre[0]) / radius, (x - centre[1]) / radius
    u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    kind = label % 4
    if kind == 0:
        return u**2 + (1.5 * v) ** 2 < 1
    if kind == 1:
        return (np.abs(u) < 0.9) & (np.abs(v) < 0.65)
    if kind == 2:
        return (v > -0.8) & (v < 0.8) & (np.abs(u) < (v + 0.8) / 1.6)
    return (u**2 + v**2 < 1) & (u**2 + v**2 > 0.12)


def _texture(rng: np.random.Generator, label: int, n_classes: int, size: tuple[int, int]) -> NDArray[np.float64]:
    """(H, W, 3): the class's colour under light that changes from image to image, times the class's pattern.

    Classes 2k - 1 and 2k have neighbouring hues; stripes in the one and a checkerboard in the other tell them apart.
    """
    pair, second = divmod(label - 1, 2)
    hue = (pair + 0.22 * second) / ((n_classes + 1) // 2) + rng.normal(0, 0.012)
    saturation = (0.85 if pair % 2 else 0.55) * rng.uniform(0.85, 1.1)
    colour = np.array(colorsys.hsv_to_rgb(hue % 1, min(saturation, 1), rng.uniform(0.6, 0.9))) * 255
    y, x = np.mgrid[: size[0], : size[1]] + rng.uniform(0, 8, 2)[:, None, None]
    period = 5 + pair % 4
    if second:
        pattern = np.sign(np.sin(2 * np.pi * x / period) * np.sin(2 * np.pi * y / period))
    else:
        angle = np.pi * (pair % 5) / 5
        pattern = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
    return colour * (1 + 0.28 * pattern)[..., None]


def _smooth_noise(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float64]:
    """(H, W) in about -1 to 1: eight by eight random values, bilinearly enlarged."""
    small = Image.fromarray(rng.uniform(-1, 1, (8, 8)).astype(np.float32))
    return np.asarray(small.resize((size[1], size[0]), Image.Resampling.BILINEAR), dtype=np.float64)


def _finish(rng: np.random.Generator, image: NDArray[np.float64]) -> UInt8:
    """Change the light, add sensor noise and round."""
    lit = image * rng.uniform(0.8, 1.15) + 14 * _smooth_noise(rng, image.shape[:2])[..., None]
    return np.clip(lit + rng.normal(0, 7, image.shape), 0, 255).round().astype(np.uint8)


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


def _png(image: UInt8) -> bytes:
    return _saved(Image.fromarray(image), "PNG")


def _palettised(labels: UInt8) -> bytes:
    image = Image.fromarray(labels)
    image.putpalette(voc_palette())
    return _saved(image, "PNG")


def _saved(image: Image.Image, kind: str, **options: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _sbd_mat(labels: UInt8) -> bytes:
    """SBD's class file: the struct GTcls with Segmentation (H, W) uint8 and CategoriesPresent."""
    present = np.unique(labels[labels > 0]).astype(np.uint8)[:, None]
    stream: Any = io.BytesIO()  # the stubs know paths only
    scipy.io.savemat(stream, {"GTcls": {"Segmentation": labels, "CategoriesPresent": present}}, do_compression=True)
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
