"""A fixed batch, and a network that says of it what a half-trained one would: the ground of `u2pl fidelity measure`.

Channel 0 of an image holds its true classes, channels 1 and 2 smooth fields of which all noise is a function. CutMix
therefore mixes truth and noise like pixels, and the truth of every pixel stays known.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from u2pl.components.resize import upsample

C, IGNORE, IMAGES, SIDE = 21, 255, 16, 161  # images per stream; SIDE / 4 rounded up is the output's
# Strength of the noise on the logits: pseudo-labels are right in about 85 to 90 and 65 to 75 % of pixels.
NOISE = {"moderate": 1.0, "strong": 1.5}
EVIDENCE, CONFUSED, FIELDS = 6.0, 0.5, 4
TURN = 0.15  # radians between the noise of the train-mode and the eval-mode view


def batch(images: int = IMAGES, side: int = SIDE, seed: int = 0) -> dict[str, Tensor]:
    """`images` labelled and as many unlabelled scenes: two to four boxes and ellipses of skewed classes on background.

    mask_l has an ignored band at borders, as VOC's masks have.
    """
    generator = torch.Generator().manual_seed(seed)
    frequency = 1 / torch.arange(1, C).float() ** 0.7
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    truth = torch.zeros(2 * images, side, side)
    for labels in truth:
        for _ in range(int(torch.randint(2, 5, (), generator=generator))):
            label = 1 + torch.multinomial(frequency, 1, generator=generator)
            top, left, height, width, ellipse = torch.rand(5, generator=generator)
            dy, dx = (y - 0.15 - 0.7 * top) / (0.1 + 0.25 * height), (x - 0.15 - 0.7 * left) / (0.1 + 0.25 * width)
            inside = dy**2 + dx**2 < 1 if ellipse < 0.5 else torch.maximum(dy.abs(), dx.abs()) < 0.9
            labels[inside] = label.float()
    fields = upsample(torch.randn(2 * images, 2, 14, 14, generator=generator), (side, side))
    scenes = torch.cat([truth[:, None], fields], dim=1)
    masks = truth[:images].long()
    largest, least = (F.max_pool2d(sign * truth[:images, None], 5, 1, 2)[:, 0] for sign in (1, -1))
    masks[largest != -least] = IGNORE
    return {"image_l": scenes[:images], "image_u": scenes[images:], "mask_l": masks}


class HalfTrained(nn.Module):
    """Logits from the blurred truth, a confusable class and noise; train mode has other noise than eval mode.

    The first C channels of the representation are one-hot in the true class, beside probabilities and noise.
    """

    directions: Tensor
    phases: Tensor

    def __init__(self, noise: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.noise = noise
        self.scale = nn.Parameter(torch.ones(()))  # so that gradients flow
        self.register_buffer("directions", 2 * torch.randn(2, C + 1, FIELDS, 2, generator=generator))
        self.register_buffer("phases", 2 * math.pi * torch.rand(2, C + 1, FIELDS, generator=generator))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) as `batch` draws them: "logits" and "representation" at a quarter of the size."""
        places = images[:, :, ::4, ::4]  # where upsampling with aligned corners puts the output's pixels
        truth, fields = places[:, 0].long(), places[:, 1:].movedim(1, -1)
        noise = self.noise_of(fields)
        own = F.one_hot(truth, C).movedim(-1, 1).float()
        blurred = F.avg_pool2d(own, 5, 1, 2, count_include_pad=False)
        # Each class is confused with the one before it; background with none.
        confused = torch.cat([blurred[:, :1], blurred[:, 1:].roll(1, 1)], dim=1)
        evidence = EVIDENCE * (0.8 + 0.2 * noise[:, C:])
        logits = evidence * (blurred + CONFUSED * confused) + self.noise * noise[:, :C]
        representation = torch.cat([own, logits.softmax(dim=1), 0.3 * noise[:, :8]], dim=1)
        return {"logits": self.scale * logits, "representation": self.scale * representation}

    def noise_of(self, fields: Tensor) -> Tensor:
        """C + 1 noises of about unit variance for (B, h, w, 2) fields: (B, C + 1, h, w)."""
        angles = torch.einsum("bhwk,scfk->bschwf", fields, self.directions) + self.phases[:, :, None, None]
        steady, other = (math.sqrt(2 / FIELDS) * angles.sin().sum(dim=-1)).unbind(dim=1)
        turn = TURN if self.training else 0.0
        return math.cos(turn) * steady + math.sin(turn) * other


def true_classes(representation: Tensor) -> Tensor:
    """The truth of vectors (..., D) of `HalfTrained`, of any length: int64 (...)."""
    return representation[..., :C].argmax(dim=-1)
