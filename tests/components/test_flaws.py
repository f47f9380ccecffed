"""Flaw maps against scipy and straight-line NumPy."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from u2pl.components.flaws import blur, consistency_targets, flaw_target, gaussian, handled, min_max, odd
from u2pl.components.rampup import sigmoid_rampup

IGNORE = 255
CPU = torch.device("cpu")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blurred(values: np.ndarray, size: int) -> np.ndarray:
    """A 2D kernel that is scipy's blur of an impulse, over an image mirrored at its borders."""
    impulse = np.zeros((size, size))
    impulse[size // 2, size // 2] = 1
    kernel = scipy.ndimage.gaussian_filter(impulse, 0.3 * ((size - 1) / 2 - 1) + 0.8)
    return scipy.ndimage.correlate(values, kernel, mode="mirror")


def stretched(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min() + 1e-9)


def test_the_kernels_of_the_papers_crops() -> None:
    assert [odd(513 // part) for part in (16, 8, 4)] == [33, 65, 129]
    assert [odd(769 // part) for part in (16, 8, 4)] == [49, 97, 193]


@pytest.mark.parametrize("size", [1, 3, 5, 9, 33, 193])
def test_taps_are_scipys_blur_of_an_impulse(size: int) -> None:
    impulse = np.zeros(size)
    impulse[size // 2] = 1
    expected = scipy.ndimage.gaussian_filter1d(impulse, 0.3 * ((size - 1) / 2 - 1) + 0.8)
    np.testing.assert_allclose(gaussian(size, torch.float64, CPU).numpy(), expected, atol=1e-15)


@pytest.mark.parametrize("size", [1, 3, 9, 33])
def test_the_blur_is_that_of_a_two_dimensional_kernel(size: int) -> None:
    values = draw(2, 1, 40, 51)
    found = blur(values, size).numpy()
    for image in (0, 1):
        np.testing.assert_allclose(found[image, 0], blurred(values[image, 0].numpy(), size), atol=1e-12)


def test_the_blur_keeps_float32_under_autocast() -> None:
    values = draw(1, 1, 40, 40).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = blur(values, 9)
    assert torch.equal(found, blur(values, 9)) and found.dtype == torch.float32


def test_min_max_is_of_each_image_and_a_flat_map_is_zero() -> None:
    values = draw(3, 1, 8, 9)
    values[1] = 0.7 + 1e-7 * values[1]
    found = min_max(values)
    for image in (0, 2):
        np.testing.assert_allclose(found[image].numpy(), stretched(values[image].numpy()))
    assert (found[1] == 0).all() and found.amin() == 0 and found.amax() <= 1


def test_handled_maps_are_without_negative_flaws_blurred_and_stretched() -> None:
    values = 2 * draw(2, 1, 48, 48) - 0.8
    found = handled(values).numpy()
    for image in (0, 1):
        expected = stretched(blurred(np.maximum(values[image, 0].numpy(), 0), 3))
        np.testing.assert_allclose(found[image, 0], expected, atol=1e-12)


def test_a_map_that_is_nowhere_above_a_tenth_is_zero_or_shifted_as_released() -> None:
    values = 0.1 * draw(2, 1, 48, 48)
    values[1] *= 20
    loud = blurred(values[1, 0].numpy(), 3)
    for low_maps in ("zero", "shifted"):
        found = handled(values, low_maps).numpy()  # type: ignore[arg-type]
        np.testing.assert_allclose(found[1, 0], stretched(loud), atol=1e-12)
        quiet = blurred(values[0, 0].numpy(), 3)
        expected = 0.0 if low_maps == "zero" else -quiet.min() / (quiet.max() - quiet.min() + 1e-9)
        np.testing.assert_allclose(found[0, 0], np.full((48, 48), expected), atol=1e-6)
        assert (expected < 0) == (low_maps == "shifted")


def test_the_threshold_is_on_the_blurred_maximum() -> None:
    values = draw(2, 1, 48, 48)
    peaks = [blurred(values[image, 0].numpy(), 3).max() for image in (0, 1)]
    values = torch.stack([values[0] * 0.0999 / peaks[0], values[1] * 0.1001 / peaks[1]])
    assert values.amax() > 0.11
    found = handled(values)
    assert (found[0] == 0).all() and found[1].amax() > 0.99


def test_targets_come_from_the_network_with_the_smaller_flaw() -> None:
    probs = draw(2, 2, 3, 4, 4)
    maps = draw(2, 2, 1, 4, 4, seed=1)
    maps[1, 0, 0, 0, 0] = maps[0, 0, 0, 0, 0]  # a tie: each keeps its own
    targets, both_bad = consistency_targets((probs[0], probs[1]), (maps[0], maps[1]), 0.6)
    p, f = probs.numpy(), maps.numpy()
    seen = set()
    for b, i, j in np.ndindex(2, 4, 4):
        one, two = (1.0 if f[k, b, 0, i, j] > 0.6 else f[k, b, 0, i, j] for k in (0, 1))
        first, second = (0, 1) if one == two else ((0, 0) if one < two else (1, 1))
        np.testing.assert_array_equal(targets[0].numpy()[b, :, i, j], p[first, b, :, i, j])
        np.testing.assert_array_equal(targets[1].numpy()[b, :, i, j], p[second, b, :, i, j])
        assert both_bad[b, 0, i, j] == (one == two == 1)
        seen.add((first, second))
    assert seen == {(0, 1), (0, 0), (1, 1)} and both_bad.any()


def test_equal_flaws_leave_each_network_its_own() -> None:
    probs, maps = draw(2, 2, 3, 4, 4), draw(2, 1, 4, 4)
    (one, two), _ = consistency_targets((probs[0], probs[1]), (maps, maps), 0.6)
    assert torch.equal(one, probs[0]) and torch.equal(two, probs[1])


@pytest.mark.parametrize("nu", [0, 1, 2])
def test_the_detectors_target_is_that_of_straight_line_numpy(nu: int) -> None:
    probs = draw(2, 5, 40, 40).softmax(dim=1)
    masks = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (2, 40, 40)))
    masks[0, :9] = IGNORE
    found = flaw_target(probs, masks, IGNORE, 0.5, nu).numpy()
    for image in (0, 1):
        one_hot = np.stack([masks[image].numpy() == c for c in range(5)]).astype(float)
        errors = 0.5 * np.abs(one_hot - probs[image].numpy()).sum(axis=0)
        errors = blurred(errors, 5)
        for _ in range(nu):
            errors = blurred(scipy.ndimage.grey_dilation(errors, size=3, mode="mirror"), 11)
        np.testing.assert_allclose(found[image, 0], stretched(errors), atol=1e-9)


def test_a_perfect_prediction_has_no_flaws_and_an_image_without_labels_is_flat() -> None:
    masks = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (2, 33, 33)))
    probs = torch.nn.functional.one_hot(masks, 5).movedim(-1, 1).float()
    assert (flaw_target(probs, masks, IGNORE, 0.5, 1) == 0).all()
    any_probs = draw(2, 5, 33, 33).float().softmax(dim=1)
    assert (flaw_target(any_probs, torch.full_like(masks, IGNORE), IGNORE, 0.5, 1) == 0).all()
    assert (flaw_target(any_probs, masks, IGNORE, 0.5, 1).amax((1, 2, 3)) > 0.99).all()


def test_the_ramp_is_the_closed_form() -> None:
    assert sigmoid_rampup(0, 10) == pytest.approx(math.exp(-5))
    assert sigmoid_rampup(4, 10) == pytest.approx(math.exp(-5 * 0.36))
    assert [sigmoid_rampup(10, 10), sigmoid_rampup(99, 10), sigmoid_rampup(0, 0)] == [1, 1, 1]
