"""Cross-entropy with online hard example mining, the released code's supervised loss on Cityscapes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from u2pl.ranks.collectives import all_gather, all_reduce_sum

THRESHOLD = 0.7
MIN_KEPT = 100_000


def ohem_loss(
    logits: Tensor, labels: Tensor, ignore: int, *, threshold: float = THRESHOLD, min_kept: int = MIN_KEPT
) -> Tensor:
    """Mean cross-entropy of `logits` (B, C, H, W) over the hard pixels of `labels` (B, H, W).

    A pixel is hard where the probability of its true class is at most max(threshold, that of the `min_kept`-th hardest
    pixel of the batch): at least `min_kept` are kept, and all that are labelled if there are fewer. Ignored pixels
    never count; without a labelled pixel the loss is 0 with zero gradients. The batch is that of all ranks. Raises
    ValueError for `min_kept` < 1.
    """
    if min_kept < 1:
        raise ValueError(f"min_kept {min_kept}: expected at least 1")
    # one row a pixel: on CUDA the loss over (B, C, H, W) has no deterministic kernel
    rows, truth = logits.movedim(1, -1).flatten(0, -2), labels.flatten()
    losses = F.cross_entropy(rows, truth, ignore_index=ignore, reduction="none")
    # ignored pixels last, behind a probability of 1; counting the others would wait for the device
    probs = torch.where(truth != ignore, losses.detach().neg().exp(), 2.0)
    everywhere = all_gather(probs)
    hardest = everywhere.kthvalue(min(min_kept, len(everywhere))).values
    kept = (truth != ignore) & (probs <= hardest.clamp(min=threshold))
    return all_reduce_sum(torch.where(kept, losses, 0.0).sum()) / all_reduce_sum(kept.sum()).clamp(min=1)
