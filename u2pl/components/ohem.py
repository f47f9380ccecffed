"""Cross-entropy with online hard example mining, the released code's supervised loss on Cityscapes."""

import torch
from torch import Tensor

from u2pl.components.groups import group_mean, of_images
from u2pl.components.pseudo_labels import pixel_losses
from u2pl.ranks.collectives import all_gather, world_size

THRESHOLD = 0.7
MIN_KEPT = 100_000


def ohem_loss(
    logits: Tensor,
    labels: Tensor,
    ignore: int,
    group: int | None = None,
    kept_group: int | None = None,
    *,
    threshold: float = THRESHOLD,
    min_kept: int = MIN_KEPT,
) -> Tensor:
    """Mean cross-entropy of `logits` (B, C, H, W) over the hard pixels of `labels` (B, H, W).

    A pixel is hard where the probability of its true class is at most max(threshold, that of the `min_kept`-th hardest
    pixel of its `kept_group` of so many images): each keeps at least `min_kept`, and all that are labelled if there are
    fewer. The mean is over those of each `group`, then over the groups; None: the images of all ranks are one. Ignored
    pixels never count; without a labelled pixel the loss is 0 with zero gradients. ValueError for `min_kept` < 1.
    """
    if min_kept < 1:
        raise ValueError(f"min_kept {min_kept}: expected at least 1")
    kept_group = kept_group or len(labels) * world_size()
    losses, known = pixel_losses(logits, labels, ignore), (labels != ignore).flatten(1)
    # ignored pixels last, behind a probability of 1; counting the others would wait for the device
    probs = torch.where(known, losses.detach().neg().exp(), 2.0)
    parts = [part.flatten() for part in all_gather(probs).split(kept_group)]
    hardest = torch.stack([part.kthvalue(min(min_kept, len(part))).values for part in parts])
    kept = known & (probs <= of_images(hardest.clamp(min=threshold), len(labels), kept_group).flatten(1))
    return group_mean(torch.where(kept, losses, 0.0), kept, group)
