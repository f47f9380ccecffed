"""The strong view of an image: its colours jittered, and a square cut out (FixMatch's kind, as PseudoSeg takes it)."""

from collections.abc import Callable

import torch
from torch import Tensor

from u2pl.ranks.collectives import share, world_size

STRENGTH = 0.5  # brightness, contrast and saturation are multiplied by 1 - STRENGTH to 1 + STRENGTH
HUE = 0.25  # turns of the colour circle, either way
CROP = 513  # the crop that sizes of the square are given for
GREY = (0.2989, 0.587, 0.114)  # of red, green and blue, as in torchvision
_HUE = 3  # its number among the four changes: brightness, contrast, saturation, hue


def strong_view(
    raw: Tensor,
    valid: Tensor,
    cutout_size: int,
    normalise: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Strong views (B, 3, H, W) of one rank's crops, normalised, and where they show the image: bool (B, H, W).

    raw: uint8 (B, 3, H, W); valid: bool (B, H, W), False where the crop is padded; cutout_size: pixels of a crop of
    513, in other crops in proportion; normalise: from colours on 0 to 255. Padding and what is cut out have the mean
    colour, which is 0 after normalisation. Everything is drawn for the global batch, without a copy to the host.
    """
    images, height, width = len(raw) * world_size(), raw.shape[2], raw.shape[3]
    strengths, order, centres = (
        share(torch.rand(images, n, generator=generator, device=raw.device)) for n in (4, 4, 2)
    )
    amounts = 1 + STRENGTH * (2 * strengths - 1)
    amounts[:, _HUE] = HUE * (2 * strengths[:, _HUE] - 1)
    jittered = colour_jitter(raw.to(dtype) / 255, valid, amounts.to(dtype), order.argsort(dim=1))
    side = max(1, round(cutout_size * height / CROP))
    shown = valid & ~squares(centres, height, width, side)
    return torch.where(shown[:, None], normalise(255 * jittered).to(dtype), 0), shown


def colour_jitter(images: Tensor, valid: Tensor, amounts: Tensor, order: Tensor) -> Tensor:
    """Images (B, 3, H, W) on 0 to 1 with four changes, each image in its own order; torchvision's formulae.

    amounts (B, 4): factors of brightness, contrast and saturation, and the turn of the hue; order int64 (B, 4): which
    of these comes first, second, ... . Contrast is about the mean grey of the pixels that are `valid`.
    """
    inside = valid[:, None].to(images.dtype)
    pixels = inside.sum((2, 3), keepdim=True).clamp(min=1)
    for step in range(order.shape[1]):
        kind = order[:, step].view(-1, 1, 1, 1)
        amount = amounts.gather(1, order[:, step : step + 1]).view(-1, 1, 1, 1)
        grey = _grey(images)
        mean = (grey * inside).sum((2, 3), keepdim=True) / pixels
        towards = torch.where(kind == 0, 0, torch.where(kind == 1, mean, grey))
        blended = (amount * images + (1 - amount) * towards).clamp(0, 1)
        # All changes are computed and one is kept: to branch by image would wait for the device.
        images = torch.where(kind == _HUE, turned_hue(images, amount), blended)
    return images


def _grey(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    red, green, blue = images.split(1, dim=1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


def turned_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Images (B, 3, H, W) on 0 to 1 with their hue turned by `turn` (B, 1, 1, 1) of the circle; value, saturation stay.

    The hue h lies in [0, 6). Of value v and chroma c, channel n in (5, 3, 1) is v - c * clamp(min(k, 4 - k), 0, 1) with
    k = (n + h) mod 6: red, green and blue of the HSV hexcone.
    """
    red, green, blue = images.split(1, dim=1)
    value = images.amax(dim=1, keepdim=True)
    chroma = value - images.amin(dim=1, keepdim=True)
    divisor = torch.where(chroma == 0, 1, chroma)
    hue = torch.where(
        red == value,
        (green - blue) / divisor,
        torch.where(green == value, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    places = [(n + hue + 6 * turn) % 6 for n in (5, 3, 1)]
    return torch.cat([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in places], dim=1)


def squares(centres: Tensor, height: int, width: int, side: int) -> Tensor:
    """Squares of `side` pixels about `centres` (B, 2) in [0, 1)^2, cut off at the border: bool (B, H, W).

    A centre is a pixel, (floor(y * H), floor(x * W)), of which side // 2 pixels of the square lie above and before.
    """
    inside = []
    for length, centre in ((height, centres[:, :1]), (width, centres[:, 1:])):
        start = (centre * length).floor().clamp(max=length - 1) - side // 2
        place = torch.arange(length, device=centres.device)
        inside.append((place >= start) & (place < start + side))
    return inside[0][:, :, None] & inside[1][:, None, :]
