"""Scenes to draw in place of photographs: an image and its labels, each from a generator of its own.

Every class has a colour, a texture and, for Pascal, a shape. Classes come in pairs of close colours that differ in
texture, so that a weak network confuses them: there are unreliable pixels to learn from. In the textured scenes colour
says nothing, and the two of a pair differ in wavelength alone.
"""

import colorsys

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from u2pl.data.images import UInt8

SIMPLE = (1, 5, 9, 13, 17)


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


def textured_scene(seed: int, index: int, size: tuple[int, int]) -> tuple[UInt8, UInt8]:
    """(H, W, 3) image and (H, W) labels 0 to 6: three striped objects, of which only the stripes tell the class.

    Classes 2k + 1 and 2k + 2 have the angle k * 60 degrees; 8 pixels are the wavelength of the one, 13 of the other.
    Colours are drawn and say nothing. A mirrored or resized image would show other classes: train on neither.
    """
    rng = np.random.default_rng([seed, index, 1])  # not the numbers of the plain scene
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float64)
    image = np.ones((*size, 3)) * (rng.uniform(0.35, 0.75) + rng.uniform(-0.08, 0.08, 3))
    labels = np.zeros(size, np.uint8)
    # The first class cycles, so that any run of images is stratified; later objects lie before earlier ones.
    for label in (1 + index % 6, *rng.integers(1, 7, 2)):
        centre = rng.uniform(0.15, 0.85, 2) * size
        dy, dx = ((a - c) / half for a, c, half in zip((y, x), centre, rng.uniform(14, 24, 2), strict=True))
        inside = np.maximum(abs(dy), abs(dx)) < 1 if rng.uniform() < 0.5 else dy**2 + dx**2 < 1
        image[inside] = _stripes(rng, int(label), y[inside], x[inside])
        labels[inside] = label
    slope = rng.uniform(-0.2, 0.2, 2)
    light = rng.uniform(0.85, 1.15) * (1 + slope[0] * (y / height - 0.5) + slope[1] * (x / width - 0.5))
    image = image * light[..., None] + rng.normal(0, 0.05, image.shape)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8), labels


def _stripes(rng: np.random.Generator, label: int, y: NDArray, x: NDArray) -> NDArray[np.float64]:
    """(N, 3) in about 0 to 2: a sinusoid of the class's angle and wavelength over a colour that is anything."""
    pair, second = divmod(label - 1, 2)
    angle = pair * np.pi / 3 + rng.normal(0, 0.08)
    wavelength = (13.0 if second else 8.0) * (1 + rng.normal(0, 0.08))
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / wavelength + rng.uniform(0, 2 * np.pi))
    colour = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.2, 0.9), rng.uniform(0.45, 0.9))
    return np.array(colour) * (1 + rng.uniform(0.45, 0.9) * wave)[..., None]


def simple_scene(seed: int, index: int, size: tuple[int, int]) -> tuple[UInt8, UInt8]:
    """As `pascal_scene`, but learned in a hundred steps: large objects of the five classes SIMPLE, far apart in hue."""
    rng = np.random.default_rng([seed, index, 3])  # not the numbers of the other scenes
    height, width = size
    grey = rng.uniform(70, 170) + 35 * _smooth_noise(rng, size)
    image = np.repeat(grey[..., None], 3, axis=2) + rng.uniform(-12, 12, 3)
    labels = np.zeros(size, np.uint8)
    for label in (SIMPLE[index % len(SIMPLE)], *rng.choice(SIMPLE, rng.integers(1, 3))):
        radius = rng.uniform(0.3, 0.45) * min(size)
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
