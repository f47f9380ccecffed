"""Perturbations of a feature map: what the auxiliary decoders of CCT see (Ouali et al., CVPR 2020).

Random numbers come in as `draws`, uniform in [0, 1). Where nothing else is said, constants are those of the authors'
code.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from u2pl.components.precision import at_least_float32
from u2pl.components.resize import nearest
from u2pl.ranks.collectives import share, world_size

POINTS = 50  # of an object's outline, in pixels of the image; smaller objects stay whole
OBJECTS = 64  # of an image with draws of their own; the next ones repeat them


def drop_channels(features: Tensor, draws: Tensor) -> Tensor:
    """Dropout2d of half of the channels, the others doubled; features (B, C, h, w), draws (B, C)."""
    return features * (2 * (draws < 0.5)).to(features.dtype)[:, :, None, None]


def drop_salient(features: Tensor, draw: Tensor) -> Tensor:
    """F-Drop: zero where the mean over channels is at least gamma times its maximum over the image.

    gamma = 0.7 + 0.2 * `draw`, a scalar for the whole batch: uniform in [0.7, 0.9].
    """
    attention = features.detach().mean(dim=1, dtype=torch.promote_types(features.dtype, torch.float32))
    return keep(features, attention < (0.7 + 0.2 * draw) * attention.amax(dim=(1, 2), keepdim=True))


def add_noise(features: Tensor, draws: Tensor) -> Tensor:
    """F-Noise: z (1 + N), N = 0.6 * draws - 0.3, uniform in [-0.3, 0.3]; draws (C, h, w), the same for all images."""
    return features * (0.7 + 0.6 * draws).to(features.dtype)


def keep(features: Tensor, mask: Tensor) -> Tensor:
    """Features (B, C, h, w) where the bool mask (B, h, w) is True, 0 elsewhere."""
    return features * mask[:, None].to(features.dtype)


def find_objects(foreground: Tensor, least: float) -> Tensor:
    """Bounding boxes of the connected parts of `foreground`, bool (B, H, W): int64 (B, n, 4) on its device.

    A box is (top, left, bottom, right), all inside; n is the most that an image has, and empty places are 0. As in
    external contours, parts are connected through corners, too, and their holes are filled, with what lies in them. A
    part counts if more than `least` of its pixels border on the outside; beyond the image is outside. Copies the mask
    to the host, and so waits for the device once.
    """
    from scipy import ndimage  # only who uses this needs it beside torch

    found: list[list[list[int]]] = []
    for mask in foreground.cpu().numpy():
        filled = ndimage.binary_fill_holes(mask)
        parts, number = ndimage.label(filled, structure=np.ones((3, 3)))
        lengths = np.bincount(parts[filled & ~ndimage.binary_erosion(filled)], minlength=number + 1)[1:]
        slices = [box for box, length in zip(ndimage.find_objects(parts), lengths, strict=True) if length > least]
        found.append([[y.start, x.start, y.stop - 1, x.stop - 1] for y, x in slices])
    boxes = torch.zeros(len(found), max(map(len, found)), 4, dtype=torch.int64)
    for own, image in zip(boxes, found, strict=True):
        own[: len(image)] = torch.tensor(image, dtype=torch.int64).view(-1, 4)
    return boxes.to(foreground.device)


def cut_boxes(objects: Tensor, draws: Tensor, height: int, width: int) -> Tensor:
    """G-Cut: bool (B, H, W), True in a rectangle inside each of the objects (B, n, 4) of `find_objects`.

    Its sides are 2/5 of the distances of the object's first and last row and column, rounded down; its offset is a
    uniform integer from 0 to 3/5 of them. draws (B, OBJECTS, 2): object i has those of i modulo OBJECTS.
    """
    number = torch.arange(objects.shape[1], device=objects.device) % draws.shape[1]
    first, extent = objects[..., :2], objects[..., 2:] - objects[..., :2]
    start = first + (draws[:, number] * (extent * 3 // 5 + 1)).floor().long()
    end = start + extent * 2 // 5
    y, x = torch.arange(height, device=objects.device), torch.arange(width, device=objects.device)
    rows = (y >= start[..., :1]) & (y < end[..., :1])
    columns = (x >= start[..., 1:]) & (x < end[..., 1:])
    return (rows[..., :, None] & columns[..., None, :]).any(dim=1)


def adversarial_step(decoder: Callable[[Tensor], Tensor], features: Tensor, draws: Tensor) -> Tensor:
    """I-VAT's r (B, C, h, w) of length 1 per image, where KL(p(z) || p(z + r)), p = softmax(decoder(z)), grows most.

    One power iteration from d = draws - 1/2, scaled to length 1 per image: r ~ J' (diag p - p p') J d, with J the
    decoder's Jacobian at z. This is the direction of the KL's gradient at z + xi d as xi goes to 0; the authors'
    finite xi of 1e-6 is lost in rounding beside z in single precision. Features and draws are float32 or float64.
    No parameter gets a gradient. Where p does not depend on z, r is 0.
    """
    point = features.detach().requires_grad_()
    with torch.no_grad():
        start = _unit(draws - 0.5).to(point.dtype)
        along: Tensor = torch.func.jvp(decoder, (point.detach(),), (start,))[1]
    with torch.enable_grad():
        logits = decoder(point)
    probs = logits.detach().softmax(dim=1)
    curved = probs * (along - (probs * along).sum(dim=1, keepdim=True))
    (direction,) = torch.autograd.grad(logits, point, curved)
    return _unit(direction)


def adversarial_logits(decoder: nn.Module, features: Tensor, draws: Tensor, radius: float) -> Tensor:
    """I-VAT: the decoder's logits for z + radius * r, r of `adversarial_step`; draws like the features (B, C, h, w).

    The step is sought in eval mode: it moves no batch-norm statistics, drops nothing and exchanges nothing between
    ranks. In half precision r would vanish beside z, so that the decoder computes in single.
    """
    with torch.autocast(features.device.type, enabled=False):
        features, training = at_least_float32(features), decoder.training
        step = radius * adversarial_step(decoder.eval(), features, draws)
        logits: Tensor = decoder.train(training)(features + step)
    return logits


def _unit(values: Tensor) -> Tensor:
    """Length 1 per image (B, ...); zeros stay zeros."""
    lengths = values.flatten(1).norm(dim=1).clamp(min=torch.finfo(values.dtype).tiny)
    return values / lengths.view(-1, *(1,) * (values.ndim - 1))


class Perturbations:
    """All perturbations of a rank's unlabelled images, with draws of the global batch.

    features: z (B, C, h, w); foreground: bool (B, H, W), what the main prediction takes for objects, at any size;
    height: of the images; radius: of the adversarial step; generator: equal on all ranks, on the features' device.
    """

    def __init__(
        self, features: Tensor, foreground: Tensor, height: int, radius: float, generator: torch.Generator
    ) -> None:
        self.features, self.foreground, self.generator = features, foreground, generator
        self.height, self.radius = height, radius
        self.images, self.channels, *size = features.shape
        self.size = (size[0], size[1])

    def logits(self, kind: str, decoder: nn.Module) -> Tensor:
        """The decoder's output for a new perturbation of a kind. Raises ValueError for an unknown kind."""
        logits: Tensor
        if kind == "vat":
            draws = self.per_image(self.channels, *self.size)
            logits = adversarial_logits(decoder, self.features, draws, self.radius)
        else:
            logits = decoder(self.view(kind))
        return logits

    def view(self, kind: str) -> Tensor:
        """Perturbed features, for every kind but the one that asks the decoder, I-VAT."""
        match kind:
            case "drop":
                return drop_channels(self.features, self.per_image(self.channels))
            case "cut":
                cut = cut_boxes(self.objects, self.per_image(OBJECTS, 2), *self.foreground.shape[1:])
                return keep(self.features, ~nearest(cut, self.size))
            case "context":
                return self.without_background
            case "object":
                return self.without_foreground
            case "feature_drop":
                return drop_salient(self.features, self.common())
            case "noise":
                return add_noise(self.features, self.common(self.channels, *self.size))
        raise ValueError(f"perturbation {kind!r}")

    def common(self, *shape: int) -> Tensor:
        """Draws for all images at once."""
        return torch.rand(shape, generator=self.generator, device=self.features.device)

    def per_image(self, *shape: int) -> Tensor:
        """Draws for each image: (B, *shape), a rank's share of those of the global batch."""
        return share(self.common(self.images * world_size(), *shape))

    # What does not change from one decoder to the next.

    @cached_property
    def objects(self) -> Tensor:
        return find_objects(self.foreground, POINTS * self.foreground.shape[1] / self.height)

    @cached_property
    def without_background(self) -> Tensor:
        return keep(self.features, nearest(self.foreground, self.size))

    @cached_property
    def without_foreground(self) -> Tensor:
        return keep(self.features, ~nearest(self.foreground, self.size))
