import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from u2pl.data.augment import LabelResize, WeakAugmentation, centre_crop, normalise

torch.set_num_threads(1)
COLOURS = torch.tensor([[20, 200, 60], [200, 30, 120], [90, 110, 220], [240, 240, 20]], dtype=torch.uint8)
PAD = torch.tensor([124, 116, 104], dtype=torch.uint8)


def painted(height: int, width: int, seed: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """A mask of blocks, and the image that is a function of it."""
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.integers(0, 4, (height // 8 + 1, width // 8 + 1)), np.ones((8, 8)))[:height, :width]
    mask = torch.from_numpy(blocks.astype(np.uint8))
    return tv_tensors.Image(COLOURS[mask.long()].permute(2, 0, 1)), tv_tensors.Mask(mask)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(20, 90),
    st.integers(20, 90),
    st.sampled_from([17, 33, 64]),
    st.integers(0, 2**31),
    st.sampled_from(get_args(LabelResize)),
)
def test_image_and_mask_stay_aligned(height: int, width: int, crop: int, seed: int, label_resize: LabelResize) -> None:
    torch.manual_seed(seed)
    image, mask = WeakAugmentation(crop, label_resize=label_resize)(*painted(height, width, seed))
    assert type(image) is tv_tensors.Image and type(mask) is tv_tensors.Mask
    assert image.shape == (3, crop, crop) and mask.shape == (crop, crop)
    assert image.dtype == mask.dtype == torch.uint8
    padding = mask == 255
    pixels, labels = image.permute(1, 2, 0), mask.long()
    assert (pixels[padding] == PAD).all(), "where the mask is padded, so is the image"
    # Away from the blocks' borders, bilinear interpolation reproduces the colour up to its fixed-point rounding.
    inner = torch.nn.functional.max_pool2d(labels[None].float(), 5, 1, 2)[0] == labels
    inner &= -torch.nn.functional.max_pool2d(-labels[None].float(), 5, 1, 2)[0] == labels
    inner &= ~padding
    # At the crop's edge a sliver of the next block may weigh on the image while no mask pixel falls on it.
    inner &= torch.nn.functional.pad(torch.ones(crop - 4, crop - 4, dtype=torch.bool), (2, 2, 2, 2))
    assert ((pixels[inner].int() - COLOURS[labels[inner]].int()).abs() <= 1).all()
    # On the borders too, the nearest colour is the mask's for most pixels: nothing is shifted by more than half one.
    valid = ~padding
    nearest = torch.cdist(pixels[valid].float(), COLOURS.float()).argmin(1)
    assert (nearest == labels[valid]).float().mean() > (0.75 if label_resize == "centre" else 0.6)


@pytest.mark.parametrize("label_resize", get_args(LabelResize))
def test_a_resized_mask_takes_the_stated_source_pixels(label_resize: LabelResize) -> None:
    """Pixel by pixel, for labels and for boolean masks; single precision is that of torch's nearest rule."""
    offset = 0.0 if label_resize == "floor" else 0.5
    crop, differ = 30, 0
    transform = WeakAugmentation(crop, label_resize=label_resize)
    for seed in range(25):
        rng = np.random.default_rng(seed)
        source = rng.integers(0, 250, (70, 64), dtype=np.uint8)
        mask, odd = tv_tensors.Mask(torch.from_numpy(source)), tv_tensors.Mask(torch.from_numpy(source % 2 == 1))
        torch.manual_seed(seed)
        params = transform.make_params([mask])
        torch.manual_seed(seed)
        found, valid = transform(mask, odd)
        rows, columns = params["size"]
        if params["flip"]:
            found, valid = found.flip(1), valid.flip(1)
        start = max(0, columns - crop) if params["flip"] else 0  # what is cut off at the right was at the left
        for y in range(min(rows, crop)):
            for x in range(min(columns, crop)):
                place = []
                for i, length, size in ((y, params["height"], rows), (x + start, params["width"], columns)):
                    place.append(min(length - 1, int(np.float32(i + offset) * (np.float32(length) / np.float32(size)))))
                    differ += place[-1] != math.floor((i + 0.5 - offset) * length / size)
                expected = source[params["top"] + place[0], params["left"] + place[1]]
                assert found[y, x] == expected and valid[y, x] == expected % 2
    assert differ > 1000, "the other rule takes other pixels"


def test_floor_shifts_labels_and_centre_does_not() -> None:
    """Over many scales: 0.5 / scale source pixels, which is half an output pixel."""
    mask = tv_tensors.Mask(torch.arange(64, dtype=torch.uint8).expand(64, 64).clone())
    for label_resize, expected in (("floor", 0.5), ("centre", 0.0)):
        transform, shifts = WeakAugmentation(32, (0.5, 1.0), label_resize=label_resize), []  # type: ignore[arg-type]
        for seed in range(80):
            torch.manual_seed(seed)
            params = transform.make_params([mask])
            if params["flip"] or params["size"][1] == params["width"]:
                continue
            torch.manual_seed(seed)
            scale = params["size"][1] / params["width"]
            centres = (torch.arange(32) + 0.5) / scale - 0.5 + params["left"]
            shifts.append(float((centres - transform(mask)[0]).mean() * scale))
        assert len(shifts) > 10 and abs(np.mean(shifts) - expected) < 0.1


def test_scales_and_flips_have_the_stated_distribution() -> None:
    torch.manual_seed(0)
    transform = WeakAugmentation(32)
    flat = [tv_tensors.Image(torch.zeros(3, 400, 400, dtype=torch.uint8))]
    drawn = [transform.make_params(flat) for _ in range(2000)]
    scales = np.array([p["size"][0] / p["height"] for p in drawn])
    assert scales.min() > 0.45 and scales.max() < 2.1
    assert abs((scales < 1).mean() - 0.5) < 0.05, "half of them shrink"
    assert abs(np.mean([p["flip"] for p in drawn]) - 0.5) < 0.05
    assert abs(np.median(scales[scales < 0.98]) - 0.75) < 0.04 and abs(np.median(scales[scales > 1.02]) - 1.5) < 0.05
    assert min(p["top"] for p in drawn) == 0 and max(p["top"] + p["height"] for p in drawn) == 400
    assert all(p["size"][0] >= 32 for p in drawn), "a large image never needs padding"
    assert max(p["height"] for p in drawn) <= 64, "no more is resampled than is kept"


def test_nothing_is_mirrored_where_the_recipe_says_so() -> None:
    transform = WeakAugmentation(32, mirror=False)
    flat = [tv_tensors.Image(torch.zeros(3, 40, 40, dtype=torch.uint8))]
    assert not any(transform.make_params(flat)["flip"] for _ in range(64))


def test_fixed_scale_is_a_plain_crop() -> None:
    image, mask = painted(60, 50, 1)
    torch.manual_seed(3)
    out, labels = WeakAugmentation(20, scale_range=(1.0, 1.0))(image, mask)
    windows = image.unfold(1, 20, 1).unfold(2, 20, 1)
    candidates = torch.cat([windows, windows.flip(-1)], dim=1).permute(1, 2, 0, 3, 4)
    assert (candidates == out).flatten(2).all(2).any()
    assert (COLOURS[labels.long()].permute(2, 0, 1) == out).all()


def test_an_image_without_a_mask() -> None:
    torch.manual_seed(5)
    alone = WeakAugmentation(33)(painted(40, 40, 2)[0])
    torch.manual_seed(5)
    assert torch.equal(alone, WeakAugmentation(33)(*painted(40, 40, 2))[0])


@pytest.mark.parametrize("pad_label", [0, 1, 255])
def test_a_boolean_mask_shows_what_is_not_padding(pad_label: int) -> None:
    """The image is of one colour that is not the padding's, so every pixel tells which it is."""
    image, there = tv_tensors.Image(torch.full((3, 30, 44), 200, dtype=torch.uint8)), torch.ones(30, 44).bool()
    areas = set()
    for seed in range(12):
        torch.manual_seed(seed)
        transform = WeakAugmentation(48, pad_label=pad_label)
        out, mask, valid = transform(image, tv_tensors.Mask(there.byte()), tv_tensors.Mask(there))
        assert valid.dtype == torch.bool and torch.equal(valid, (out == 200).all(0))
        assert (out[:, ~valid] == PAD[:, None]).all() and (mask[~valid] == pad_label).all()
        areas.add(int(valid.sum()))
    assert min(areas) < 30 * 44 < max(areas) and len(areas) > 6


@pytest.mark.parametrize(("height", "width"), [(40, 60), (20, 60), (20, 11), (32, 32), (33, 31)])
def test_centre_crop_against_numpy(height: int, width: int) -> None:
    image, mask = painted(height, width, 7)
    out, labels = centre_crop(image, mask, 32)
    top, left = max(0, 32 - height) // 2, max(0, 32 - width) // 2
    padded = np.pad(
        mask.numpy(),
        ((top, max(0, 32 - height) - top), (left, max(0, 32 - width) - left)),
        constant_values=255,
    )
    y, x = (padded.shape[0] - 32) // 2, (padded.shape[1] - 32) // 2
    expected = padded[y : y + 32, x : x + 32]
    np.testing.assert_array_equal(labels.numpy(), expected)
    assert (out.permute(1, 2, 0)[labels == 255] == PAD).all()
    inside = labels != 255
    assert (out.permute(1, 2, 0)[inside] == COLOURS[labels[inside].long()]).all()


def test_centre_crop_takes_int64_masks() -> None:
    mask = torch.ones(4, 4, dtype=torch.int64)
    out = centre_crop(torch.zeros(3, 4, 4, dtype=torch.uint8), mask, 6)[1]
    assert out.dtype == torch.int64 and (out == 255).sum() == 20


def test_normalise_against_numpy() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 3, 5, 4), dtype=np.uint8)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    expected = (images - mean[:, None, None]) / std[:, None, None]
    out = normalise(torch.from_numpy(images), mean.tolist(), std.tolist())
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-6)
