"""Every method on images whose classes are textures, with few labels: mIoU beside SupOnly's.

    .venv/bin/python -m tests.scene --labelled 36 --seeds 3

A small network and 600 steps, so that eleven methods take minutes on a CPU. Classes come in pairs that differ in
wavelength alone, and colour says nothing. It answers one question: does a method learn from images without labels, or
at least lose nothing? The order of the methods on real data is no part of it.
"""

import argparse
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from tests.small import Encoder, settings_for
from u2pl.components.progress import Progress
from u2pl.engine.evaluate import confusion_matrix
from u2pl.engine.optimisers import poly, set_rates
from u2pl.experiments.schema import Recipe
from u2pl.methods import METHODS, Setup, build_method

C, IGNORE, SIDE = 7, 255, 40
TRAIN, VAL, BATCH, EPOCHS, STEPS = 420, 150, 8, 30, 600
WARMUP = 10  # epochs, of methods with a teacher
SETTINGS: dict[str, Any] = {
    "warmup_epochs": WARMUP,
    "teacher_first_epoch": "averaged",
    "decoder_lr_multiplier": 1.0,
    "r_low": 2,
    "bank_size": 2000,
    "bank_size_background": 2000,
    "gct_detector_width": 8,
}
ESTIMATE = {"supervised_step": 1, "semi_supervised_step": 1, "validation": 1, "weights_mb": 1}
RECIPE = Recipe.model_validate(
    {"network": {"encoder": "resnet18"}, "lr": 0.05, "weight_decay": 1e-4, "epochs": EPOCHS, "batch": BATCH}
    | {"crop": SIDE, "estimate": ESTIMATE}
)


class Network(nn.Module):
    """Six convolutions; outputs at half of the resolution."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [(3, 16, 1, 1), (16, 24, 2, 1), (24, 24, 1, 1), (24, 24, 1, 2), (24, 24, 1, 4)]
        layers: list[nn.Module] = []
        for inputs, outputs, stride, dilation in shapes:
            conv = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.encoder = Encoder(*layers)
        self.segment = nn.Sequential(nn.Identity(), nn.Conv2d(24, C, 1))
        self.represent = nn.Conv2d(24, 24, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        stages = self.encoder(images)
        features = stages["layer4"]
        output = {"logits": self.segment(features), "representation": self.represent(features), **stages}
        return output | {"features": features, "decoded": features}


def picture(number: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One image, float (3, SIDE, SIDE) in [0, 1], and its labels: three textured objects, later ones on top.

    Class 1 + 2 a + w has stripes at 60 a degrees, 4 (w = 0) or 6.5 (w = 1) pixels apart.
    """
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    image = np.repeat(random.uniform(0.35, 0.65) + random.uniform(-0.05, 0.05, (3, 1, 1)), SIDE, 1).repeat(SIDE, 2)
    labels = np.zeros((SIDE, SIDE), dtype=np.int64)
    for place in range(3):
        label = 1 + (number % (C - 1) if place == 0 else int(random.integers(C - 1)))
        angle = np.pi / 3 * ((label - 1) // 2) + random.normal(0, 0.08)
        wave = (4.0, 6.5)[(label - 1) % 2] * (1 + random.normal(0, 0.08))
        phase = 2 * np.pi * ((x * np.cos(angle) + y * np.sin(angle)) / wave + random.random())
        hue, saturation, value = random.random(), random.uniform(0.2, 0.9), random.uniform(0.45, 0.9)
        channel = (np.arange(3) / 3 + hue) % 1
        colour = value * (1 - saturation * (0.5 + 0.5 * np.cos(2 * np.pi * channel)))
        texture = (1 + random.uniform(0.45, 0.9) * np.sin(phase)) / 1.5
        high, wide = random.uniform(7, 12, 2)
        top, left = random.uniform(6, SIDE - 6, 2)
        far = np.abs((y - top) / high), np.abs((x - left) / wide)
        inside = far[0] ** 2 + far[1] ** 2 <= 1 if random.random() < 0.5 else np.maximum(*far) <= 1
        image[:, inside] = (colour[:, None, None] * texture)[:, inside]
        labels[inside] = label
    slope = random.uniform(-0.15, 0.15, 2)
    light = random.uniform(0.85, 1.15) + slope[0] * (y / SIDE - 0.5) + slope[1] * (x / SIDE - 0.5)
    return np.clip(image * light + random.normal(0, 0.05, image.shape), 0, 1), labels


@cache
def scene(seed: int) -> tuple[Tensor, Tensor]:
    """Training and validation images, uint8 (N, 3, SIDE, SIDE), and their labels."""
    random = np.random.default_rng(seed)
    images, labels = zip(*(picture(number, random) for number in range(TRAIN + VAL)), strict=True)
    return torch.from_numpy((255 * np.stack(images)).round().astype(np.uint8)), torch.from_numpy(np.stack(labels))


def normalise(images: Tensor) -> Tensor:
    return (images.float() / 255 - 0.5) / 0.25


def rolled(seed: int, step: int, name: str, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The augmentation: each image shifted by up to four pixels. Mirroring would exchange two classes."""
    random = np.random.default_rng([seed, step, sum(name.encode())])
    shifts = [tuple(int(v) for v in random.integers(-4, 5, 2)) for _ in images]
    moved = [image.roll(shift, (1, 2)) for image, shift in zip(images, shifts, strict=True)]
    return torch.stack(moved), torch.stack([m.roll(shift, (0, 1)) for m, shift in zip(labels, shifts, strict=True)])


def batch_of(method: Any, seed: int, step: int, labelled: int) -> dict[str, Tensor]:
    """All that a method may ask for; the unlabelled list is everything behind the labelled images."""
    images, labels = scene(seed)
    random = np.random.default_rng([seed, step])
    out: dict[str, Tensor] = {}
    for name, low, high in (("l", 0, labelled), ("l2", 0, labelled), ("u", labelled, TRAIN), ("u2", labelled, TRAIN)):
        chosen = torch.from_numpy(random.integers(low, high, BATCH))
        raw, masks = rolled(seed, step, name, images[chosen], labels[chosen])
        out |= {f"image_{name}": normalise(raw), f"valid_{name}": torch.ones_like(masks, dtype=torch.bool)}
        out |= {f"mask_{name}": masks} if name.startswith("l") else {}
        out |= {"index_u": chosen - labelled, "raw_u": raw} if name == "u" else {}
    if method.wanted is not None:
        partners = method.wanted + labelled
        out["image_p"] = normalise(rolled(seed, step, "p", images[partners], labels[partners])[0])
    return out


def trained(name: str, labelled: int, seed: int, changes: dict[str, Any]) -> float:
    """mIoU in percent after the last step, with `changes` to the settings."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    setup = Setup(Network, C, IGNORE, unlabelled=TRAIN - labelled, batch=BATCH, normalise=normalise)
    method = build_method(name, settings_for(name, **(SETTINGS | changes)), setup).train()
    optimisers, generator = method.optimisers(RECIPE), torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        progress = Progress(step * EPOCHS // STEPS, EPOCHS, step, STEPS, generator)
        set_rates(optimisers, poly(step, STEPS, 0.9))
        loss = method(batch_of(method, seed, step, labelled), progress)["loss"]
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        method.after_step(progress)
    images, labels = (values[TRAIN:] for values in scene(seed))
    with torch.inference_mode():
        logits = method.evaluated.eval()(normalise(images))["logits"]
    prediction = nn.functional.interpolate(logits, (SIDE, SIDE), mode="bilinear", align_corners=True).argmax(1)
    matrix = confusion_matrix(prediction, labels, C, IGNORE).double()
    union = matrix.sum(0) + matrix.sum(1) - matrix.diag()
    return float(100 * (matrix.diag() / union).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelled", type=int, default=36)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--set", nargs="*", default=[], metavar="SETTING=VALUE", help="settings, values as in YAML")
    arguments = parser.parse_args()
    changes = {key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in arguments.set)}
    print(f"| method | mIoU, %, with {arguments.labelled} of {TRAIN} labelled | standard deviation | per seed |")
    print("|---|---|---|---|")
    with ProcessPoolExecutor(2) as pool:
        runs = {
            name: [pool.submit(trained, name, arguments.labelled, seed, changes) for seed in range(arguments.seeds)]
            for name in arguments.methods
        }
        for name, futures in runs.items():
            found = [future.result() for future in futures]
            spread = f"{statistics.stdev(found):.1f}" if len(found) > 1 else "-"
            each = ", ".join(f"{value:.1f}" for value in found)
            print(f"| {name} | {statistics.mean(found):.1f} | {spread} | {each} |", flush=True)


if __name__ == "__main__":
    main()
