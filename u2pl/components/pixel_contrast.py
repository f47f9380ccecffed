"""Consistency and contrast of the pixels of two views, after the abstract of PC2Seg (Zhong et al., ICCV 2021)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from u2pl.components.contrast import sample_pixels, uniform
from u2pl.components.groups import group_mean
from u2pl.components.precision import at_least_float32
from u2pl.ranks.collectives import all_gather, all_reduce_sum, rank, share, world_size

Sampling = Literal["uniform", "other_image", "debiased", "other_image_debiased"]


def squared_distance(logits: Tensor, target: Tensor, counted: Tensor, group: int | None = None) -> Tensor:
    """Mean of sum_c (softmax(logits)_c - target_c)^2 over the pixels that are `counted`, a scalar.

    logits and target, probabilities: (B, C, h, w); counted: bool (B, h, w). Of each `group` as in `supervised_loss`.
    """
    losses = (at_least_float32(logits).softmax(dim=1) - target).square().sum(dim=1)
    return group_mean(torch.where(counted, losses, 0).flatten(1), counted, group)


def pixel_contrast(
    strong: Tensor,
    weak: Tensor,
    probs: Tensor,
    shown: Tensor,
    valid: Tensor,
    *,
    anchors: int,
    negatives: int,
    tau: float,
    sampling: Sampling,
    generator: torch.Generator,
) -> Tensor:
    """Mean over anchors i of -log [e_ii / (e_ii + sum_n w_in e_in)] with e_in = exp(cos(z_i, z_n) / tau), a scalar.

    z_i is a pixel of `strong` (B, D, h, w), of which each image gives so many that are `shown` (bool (B, h, w)); its
    positive is the same pixel of `weak`. The negatives, so many for the batch of all ranks, are pixels of `weak` that
    are `valid`; w_in is `negative_weights`, by `probs` (B, C, h, w) of the weak views. Only `strong` gets gradients.
    Draws are with replacement and for the global batch; an image without a pixel to draw gives no anchor.
    """
    with torch.autocast(strong.device.type, enabled=False):
        strong, weak = at_least_float32(strong), at_least_float32(weak.detach())
        probs, n, device = at_least_float32(probs.detach()), len(strong), strong.device
        places = sample_pixels(
            shown.flatten(1), share(uniform((n * world_size(), anchors), generator, device))
        )  # (B, A)
        drawn = shown.flatten(1).gather(1, places)
        own = _pixels(strong, places), _pixels(weak, places), _pixels(probs, places)

        everywhere = all_gather(valid).flatten()[None]
        index = sample_pixels(everywhere, uniform((1, negatives), generator, device))[0]  # (N,)
        images = torch.div(index, valid[0].numel(), rounding_mode="floor")
        keys, key_probs = (_rows(values, images, index % valid[0].numel()) for values in (weak, probs))

        anchor_images = (rank() * n + torch.arange(n, device=device)).repeat_interleave(anchors)
        weights = negative_weights(own[2], key_probs, anchor_images, images, sampling) * everywhere[0, index]
        losses = contrast_terms(own[0], own[1], keys, weights, tau)
        return group_mean(torch.where(drawn, losses.view_as(drawn), 0), drawn, None)


def negative_weights(
    anchors: Tensor, keys: Tensor, anchor_images: Tensor, key_images: Tensor, sampling: Sampling
) -> Tensor:
    """What each of N keys weighs for each of A anchors: (A, N) in [0, 1].

    anchors (A, C) and keys (N, C): class probabilities; the image of each: (A,), (N,). `other_image`: 0 for a key of
    the anchor's image; `debiased`: 1 - sum_c p_c q_c, the probability that the two are of different classes.
    """
    weights = anchors.new_ones(len(anchors), len(keys))
    if "other_image" in sampling:
        weights = weights * (anchor_images[:, None] != key_images)
    if "debiased" in sampling:
        weights = weights * (1 - anchors @ keys.T).clamp(min=0)
    return weights


def contrast_terms(anchors: Tensor, positives: Tensor, keys: Tensor, weights: Tensor, tau: float) -> Tensor:
    """-log [e_ii / (e_ii + sum_n w_in e_in)] of each anchor, see `pixel_contrast`: (A,).

    anchors and positives (A, D), keys (N, D) of any length; weights (A, N).
    """
    unit = F.normalize(anchors, dim=1)
    positive = (unit * F.normalize(positives, dim=1)).sum(dim=1, keepdim=True) / tau
    negative = unit @ F.normalize(keys, dim=1).T / tau + weights.log()
    return torch.cat([positive, negative], dim=1).logsumexp(dim=1) - positive[:, 0]


def _pixels(values: Tensor, places: Tensor) -> Tensor:
    """Pixels of (B, D, h, w) at (B, A) places of each image: (B * A, D)."""
    image = torch.arange(len(values), device=values.device)[:, None]
    return values.flatten(2)[image, :, places].flatten(0, 1)


def _rows(values: Tensor, images: Tensor, pixels: Tensor) -> Tensor:
    """Pixels of all ranks' (B, D, h, w) at the global numbers of their images and places in these: (N, D)."""
    local = images - rank() * len(values)
    own = (local >= 0) & (local < len(values))
    found = values.flatten(2)[local.clamp(0, len(values) - 1), :, pixels]
    return all_reduce_sum(torch.where(own[:, None], found, 0))
