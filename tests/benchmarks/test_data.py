"""Augmentation and loading against whole images resized in floating point and a loop over files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made import PREPARED
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from u2pl.data.augment import WeakAugmentation
from u2pl.data.batches import TrainBatches, seeded
from u2pl.experiments import load_suite
from u2pl.files import write_json

CROP, SIZE, DRAWS = 321, (375, 500), 12
Pair = tuple[Tensor, Tensor]


def picture(seed: int) -> Pair:
    """A smooth image, uint8 (3, H, W), and a mask of large regions, uint8 (H, W)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 8, generator=generator)
    image = F.interpolate(coarse, SIZE, mode="bicubic", align_corners=True)[0].clamp(0, 1) * 255
    regions = torch.randint(21, (1, 1, 6, 8), generator=generator).float()
    return image.byte(), F.interpolate(regions, SIZE)[0, 0].byte()


def plain_augmentation(image: Tensor, mask: Tensor, scale: float, y: float, x: float, flip: bool) -> Pair:
    """Resize all of the image, flip it, pad it, cut the crop: floats until the last line."""
    size = [round(side * scale) for side in SIZE]
    large = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True, align_corners=False)[0]
    labels = F.interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0]
    top, left = (int(scale * place) for place in (y, x))
    large, labels = large[:, top : top + CROP, left : left + CROP], labels[top : top + CROP, left : left + CROP]
    if flip:
        large, labels = large.flip(2), labels.flip(1)
    missing = (0, CROP - labels.shape[1], 0, CROP - labels.shape[0])
    return F.pad(large, missing, value=116).round().byte(), F.pad(labels, missing, value=255).byte()


@pytest.mark.benchmark(group="data")
def test_augmentation(compare_time: Any) -> None:
    """Both with the same draws; the plain crop may start a fraction of a pixel beside ours."""
    image, mask = picture(0)
    augment = WeakAugmentation(CROP, mean=(116, 116, 116), label_resize="centre")
    draws = []
    for i in range(DRAWS):
        with seeded(i):
            p = augment.make_params([tv_tensors.Image(image)])
        draws.append((p["size"][0] / p["height"], p["top"], p["left"], p["flip"]))

    def suite() -> list[Pair]:
        out = []
        for i in range(DRAWS):
            with seeded(i):
                out.append(augment(tv_tensors.Image(image), tv_tensors.Mask(mask)))
        return out

    def straight_line() -> list[Pair]:
        return [plain_augmentation(image, mask, *draw) for draw in draws]

    for (ours, labels), (plain, expected) in zip(suite(), straight_line(), strict=True):
        assert (ours.float() - plain.float()).abs().mean() < 3
        assert (labels != expected).float().mean() < 0.05
    compare_time(suite, straight_line)


def folder(root: Path, n: int) -> list[str]:
    """A prepared folder of `n` images with masks."""
    ids = [f"image{i}" for i in range(n)]
    for name in ("images", "masks"):
        (root / name).mkdir()
    for i, name in enumerate(ids):
        image, mask = picture(i)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / "images" / f"{name}.jpg", quality=95)
        Image.fromarray(mask.numpy()).save(root / "masks" / f"{name}.png")
    write_json(root / "manifest.json", PREPARED | {"suffix": ".jpg"})
    return ids


def plain_sample(root: Path, name: str) -> Pair:
    image = torch.from_numpy(np.array(Image.open(root / "images" / f"{name}.jpg"))).permute(2, 0, 1)
    mask = torch.from_numpy(np.array(Image.open(root / "masks" / f"{name}.png")))
    scale, y, x = np.random.uniform(0.5, 1) if np.random.rand() < 0.5 else np.random.uniform(1, 2), 0.0, 0.0
    return plain_augmentation(image, mask, scale, y, x, np.random.rand() < 0.5)


@pytest.mark.benchmark(group="data")
def test_truth_loading(compare_time: Any, tmp_path: Path) -> None:
    """The masks of an observed step's unlabelled images against its batch: below 2 % where one step of 16 is."""
    ids = folder(tmp_path, 16)
    spec = load_suite("demo").runs["pascal_blender-6-u2pl-seed0"]
    recipe = spec.recipe.model_copy(update={"crop": CROP, "batch": 8, "workers": 0})
    batches = TrainBatches(tmp_path, ids[:8], ids[8:], spec.dataset, recipe, spec.settings, seed=0)
    steps = batches._steps
    transform, masks = steps.transforms["unlabelled"], steps.unlabelled

    def truth() -> list[Tensor]:
        found = []
        for i in range(8):
            with seeded(i):
                found.append(transform(masks.truth(i, SIZE)))
        return found

    compare_time(truth, lambda: list(batches.epoch(0)), limit=16 * 0.02)


@pytest.mark.benchmark(group="data")
def test_batch_loading(compare_time: Any, tmp_path: Path) -> None:
    """An epoch of labelled and unlabelled images in this process, to uint8 batches."""
    ids = folder(tmp_path, 16)
    spec = load_suite("demo").runs["pascal_blender-6-u2pl-seed0"]
    recipe = spec.recipe.model_copy(update={"crop": CROP, "batch": 4, "workers": 0})
    batches = TrainBatches(tmp_path, ids[:8], ids[8:], spec.dataset, recipe, spec.settings, seed=0)

    def suite() -> list[dict[str, Tensor]]:
        return list(batches.epoch(0))

    def straight_line() -> list[dict[str, Tensor]]:
        out = []
        for first in (0, 4):
            pairs = [plain_sample(tmp_path, name) for name in ids[first : first + 4]]
            images = [plain_sample(tmp_path, name)[0] for name in ids[8 + first : 12 + first]]
            labelled, masks = zip(*pairs, strict=True)
            batch = {"image_l": torch.stack(labelled), "mask_l": torch.stack(masks).long()}
            out.append(batch | {"image_u": torch.stack(images)})
        return out

    described: Callable[[list[dict[str, Tensor]]], Any] = lambda epoch: [  # noqa: E731
        {name: (value.shape, value.dtype) for name, value in batch.items()} for batch in epoch
    ]
    assert described(suite()) == described(straight_line())
    compare_time(suite, straight_line)
