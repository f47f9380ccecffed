"""Flaw maps of GCT (Ke et al., ECCV 2020): where a network errs, and what follows from two such maps.

Maps are (B, 1, H, W). Each is blurred and normalised for itself, so ranks need not exchange anything. The kernels'
sizes follow the crop's height H; sizes, sigma and thresholds are those of the authors' code (`ZHKKKe/PixelSSL`).
"""

import functools
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from u2pl.ranks.collectives import all_reduce_sum, world_size

QUIET = 0.1  # a map that is nowhere higher shows no flaw
# A narrower range is rounding, which min-max would blow up to all of 0 to 1: in an image without a label, say.
FLAT = 1e-5


def odd(size: int) -> int:
    """`size`, or the next number if it is even."""
    return size + 1 - size % 2


@functools.cache
def gaussian(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The Gaussian of an odd number of taps, (size,), of sigma 0.3 ((size - 1) / 2 - 1) + 0.8; it sums to 1.

    What lies beyond the taps, up to 4 sigma, is folded back at the ends: the authors blur an impulse with scipy.
    """
    sigma = 0.3 * ((size - 1) / 2 - 1) + 0.8
    reach = int(4 * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-offsets.double().square() / (2 * sigma**2))
    places = (size // 2 + offsets) % (2 * size)
    places = torch.where(places < size, places, 2 * size - 1 - places)
    taps = (weights * (places == torch.arange(size)[:, None])).sum(dim=1) / weights.sum()
    return taps.to(dtype).to(device)


def blur(maps: Tensor, size: int) -> Tensor:
    """Gaussian blur of an odd `size`, mirrored at the borders, which are not repeated: (B, 1, H, W), size < 2 H."""
    kernel, reach = gaussian(size, maps.dtype, maps.device), size // 2
    with torch.autocast(maps.device.type, enabled=False):  # half precision has steps that min-max would show
        padded = F.pad(maps, (reach, reach, reach, reach), mode="reflect")
        return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))


def min_max(maps: Tensor) -> Tensor:
    """Each map of (B, 1, H, W) stretched to 0 to 1; 0 where it is flat."""
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    return torch.where(high - low > FLAT, (maps - low) / (high - low + 1e-9), 0.0)


@torch.no_grad()
def handled(flaws: Tensor, low_maps: Literal["zero", "shifted"] = "zero") -> Tensor:
    """What the detector says, (B, 1, H, W), as maps to compare: negative flaws are none, then blur and min-max.

    A blurred map that is nowhere above `QUIET` becomes 0. The authors' code subtracts the minimum from this 0 and
    divides by the range, too ("shifted"): of two such maps the one with the larger minimum / range is the better one
    everywhere.
    """
    maps = blur(flaws.clamp(min=0), odd(flaws.shape[2] // 16))
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    quiet = -low / (high - low + 1e-9) if low_maps == "shifted" else 0.0
    return torch.where(high > QUIET, min_max(maps), quiet)


@torch.no_grad()
def consistency_targets(
    probs: tuple[Tensor, Tensor], maps: tuple[Tensor, Tensor], threshold: float
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """What each network is to predict, and where both are bad: two of (B, C, H, W), bool (B, 1, H, W).

    Maps (B, 1, H, W) above the threshold count as 1. A network keeps its own `probs` (B, C, H, W) where its map is at
    most the other's, and takes the other's elsewhere.
    """
    bad = [values > threshold for values in maps]
    one, two = (torch.where(above, 1.0, values) for above, values in zip(bad, maps, strict=True))
    first, second = probs
    targets = torch.where(one <= two, first, second), torch.where(two <= one, second, first)
    return targets, bad[0] & bad[1]


@torch.no_grad()
def flaw_target(probs: Tensor, masks: Tensor, ignore: int, mu: float, nu: int) -> Tensor:
    """What the detector is to say of `probs` (B, C, H, W) for masks (B, H, W): (B, 1, H, W), each map from 0 to 1.

    mu times the sum over classes of |one-hot - probs|, of a one-hot of zeros where the mask is `ignore`; blurred; nu
    times dilated by 3 x 3 and blurred; min-max.
    """
    known, total = (masks != ignore)[:, None], probs.sum(dim=1, keepdim=True)
    true = probs.gather(1, torch.where(known, masks[:, None], 0))
    # |1 - p_y| and the other classes' p; without a one-hot of C maps
    errors = mu * torch.where(known, 1 + total - 2 * true, total)
    errors = blur(errors, odd(masks.shape[1] // 8))
    for _ in range(nu):
        errors = blur(F.max_pool2d(errors, 3, stride=1, padding=1), odd(masks.shape[1] // 4))
    return min_max(errors)


def means(losses: Iterable[Tensor]) -> Tensor:
    """The sum of the means of several losses of any shape, over the pixels of all ranks, which hold equally many."""
    return all_reduce_sum(torch.stack([values.mean() for values in losses]).sum()) / world_size()
