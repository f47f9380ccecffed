"""The scenes of textures: what a class is, and that nothing else tells it; and the simple ones."""

import numpy as np
import pytest

from u2pl.data.synthetic.scenes import SIMPLE, simple_scene, textured_scene

SIZE = (88, 88)


def test_a_scene_has_objects_and_is_the_same_again() -> None:
    for index in range(40):
        image, labels = textured_scene(3, index, SIZE)
        assert image.shape == (*SIZE, 3) and image.dtype == labels.dtype == np.uint8
        assert 0 in labels and 1 <= len(set(np.unique(labels)) - {0}) <= 3
        again = textured_scene(3, index, SIZE)
        assert np.array_equal(image, again[0]) and np.array_equal(labels, again[1])
    assert not np.array_equal(textured_scene(3, 0, SIZE)[0], textured_scene(4, 0, SIZE)[0])


def test_any_run_of_images_shows_every_class() -> None:
    """The first object's class cycles; it can be covered, so two turns of six and not one."""
    shown = [set(np.unique(textured_scene(0, index, SIZE)[1])) for index in range(60)]
    for start in range(49):
        assert set().union(*shown[start : start + 12]) == set(range(7))


def patches(n: int, side: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """(N, side, side, 3) windows of one class each, and their classes."""
    windows, classes = [], []
    for index in range(n):
        image, labels = textured_scene(1, index, SIZE)
        views = np.lib.stride_tricks.sliding_window_view(labels, (side, side))[::4, ::4]
        pure = (views == views[..., :1, :1]).all((2, 3)) & (views[..., 0, 0] > 0)
        for y, x in np.argwhere(pure)[:3]:
            windows.append(image[4 * y : 4 * y + side, 4 * x : 4 * x + side])
            classes.append(views[y, x, 0, 0])
    return np.array(windows, float), np.array(classes)


def test_the_spectrum_tells_angle_and_wavelength() -> None:
    """The strongest frequency of every window, by an FFT: its length tells a pair's two apart, its angle the pairs."""
    windows, classes = patches(150)
    side, padded = windows.shape[1], 192
    grey = windows.mean(3) - windows.mean((1, 2, 3))[:, None, None]
    weighted = grey * np.hanning(side)[:, None] * np.hanning(side)
    power = np.abs(np.fft.fft2(weighted, s=(padded, padded))) ** 2
    frequency = np.fft.fftfreq(padded)
    fy, fx = np.meshgrid(frequency, frequency, indexing="ij")
    power[:, np.hypot(fy, fx) < 0.055] = 0
    top = power.reshape(len(power), -1).argmax(1)
    fy, fx = fy.ravel()[top], fx.ravel()[top]
    wavelength, angle = 1 / np.hypot(fy, fx), np.degrees(np.arctan2(fy, fx)) % 180
    found = 1 + 2 * (np.round(angle / 60).astype(int) % 3) + (wavelength > 10.2)
    assert len(classes) > 200 and set(classes) == set(range(1, 7))
    assert (found == classes).mean() > 0.9
    assert np.median(wavelength[classes % 2 == 1]) == pytest.approx(8, abs=0.5)
    assert np.median(wavelength[classes % 2 == 0]) == pytest.approx(13, abs=0.8)


def test_colour_does_not_tell_the_class() -> None:
    """The nearest mean colour of half of the windows is right on the other half as often as a guess is."""
    windows, classes = patches(400)
    colours = windows.mean((1, 2))
    half = np.arange(len(classes)) < len(classes) // 2
    means = np.array([colours[half & (classes == label)].mean(0) for label in range(1, 7)])
    found = 1 + np.linalg.norm(colours[~half, None] - means, axis=2).argmin(1)
    n = (~half).sum()
    # three windows of an object share its colour: a third of them are independent
    assert abs((found == classes[~half]).mean() - 1 / 6) < 4 * (1 / 6 * 5 / 6 / (n / 3)) ** 0.5


def test_a_simple_scene_has_every_simple_class_in_few_images_and_is_the_same_again() -> None:
    scenes = [simple_scene(3, index, SIZE) for index in range(2 * len(SIMPLE))]
    for index, (image, labels) in enumerate(scenes):
        assert image.shape == (*SIZE, 3) and image.dtype == labels.dtype == np.uint8
        again = simple_scene(3, index, SIZE)
        assert np.array_equal(image, again[0]) and np.array_equal(labels, again[1])
    assert set(np.unique([labels for _, labels in scenes])) == {0, *SIMPLE}
