"""Which unlabelled pixels teach, and how much: Eq. 2, 3 and 5 to 8."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from u2pl.ranks.collectives import all_reduce_sum, world_size


def entropy(probs: Tensor) -> Tensor:
    """Eq. 5: per-pixel entropy in nats of `probs` (B, C, H, W); returns (B, H, W). 0 log 0 counts as 0."""
    return torch.special.entr(probs).sum(dim=1)


def alpha_t(alpha_0: float, epoch: int, epochs: int, *, dynamic: bool = True) -> float:
    """Eq. 7: the share of unreliable pixels in `epoch` (from 0) of `epochs`; not `dynamic`: alpha_0 throughout."""
    return alpha_0 * (1 - epoch / epochs) if dynamic else alpha_0


def percentile(values: Tensor, q: float) -> Tensor:
    """`np.percentile(values.flatten(), q)` with linear interpolation, as a scalar tensor on the same device.

    `q` is in percent, 0 to 100. One selection and a pass replace sorting everything, for any number of values (a
    batch of 32 crops of 769 pixels has 19 M; releases of `torch.quantile` with a limit stop at 16 M). Raises
    ValueError for no values or a `q` out of range.
    """
    if values.numel() == 0 or not 0 <= q <= 100:
        raise ValueError(f"percentile {q} of {values.numel()} values")
    flat = values.flatten()
    position = (flat.numel() - 1) * (q / 100)
    below = math.floor(position)
    low = flat.kthvalue(below + 1).values
    if position == below:
        return low
    # The next order statistic: `low` again if more values than `below` + 1 are no larger, else the least of the others.
    higher = torch.where(flat > low, flat, math.inf).min()
    high = torch.where((flat <= low).sum() > below + 1, low, higher)
    return torch.lerp(low, high, position - below)


def entropy_threshold(entropies: Tensor, alpha: float) -> Tensor:
    """gamma_t below Eq. 6: the percentile 100 * (1 - alpha) of all entropies (any shape); a scalar tensor."""
    return percentile(entropies, 100 * (1 - alpha))


def pseudo_labels(probs: Tensor, gamma_t: Tensor | float, ignore: int) -> Tensor:
    """Eq. 6: the most probable class where the entropy is below gamma_t, `ignore` elsewhere.

    `probs` is (B, C, H, W); returns int64 (B, H, W).
    """
    return drop_unreliable(probs.argmax(dim=1), entropy(probs), gamma_t, ignore)


def drop_unreliable(labels: Tensor, entropies: Tensor, gamma_t: Tensor | float, ignore: int) -> Tensor:
    """The second line of Eq. 6 for labels and entropies of two teacher views; all (B, H, W)."""
    return torch.where(entropies < gamma_t, labels, ignore)


def supervised_loss(logits: Tensor, labels: Tensor, ignore: int) -> Tensor:
    """Eq. 2: mean cross-entropy of `logits` (B, C, H, W) over the pixels of `labels` (B, H, W) that are not `ignore`.

    The mean is over the images of all ranks. Without a single labelled pixel it is 0 with zero gradients, not NaN.
    """
    # the sum and the count separately: the built-in mean divides 0 by 0 when everything is ignored
    # and one row a pixel: on CUDA the loss over (B, C, H, W) has no deterministic kernel
    rows = logits.movedim(1, -1).flatten(0, -2)
    losses = F.cross_entropy(rows, labels.flatten(), ignore_index=ignore, reduction="sum")
    return all_reduce_sum(losses) / all_reduce_sum((labels != ignore).sum()).clamp(min=1)


def unsupervised_weight(labels: Tensor, eta: float, ignore: int) -> Tensor:
    """Eq. 8: lambda_u = eta * |B_u| * H * W / (pixels of `labels` that are not `ignore`); 0 if none.

    `labels` are one rank's, and the images those of all ranks.
    """
    reliable = all_reduce_sum((labels != ignore).sum())
    return torch.where(reliable > 0, eta * world_size() * labels.numel() / reliable.clamp(min=1), 0.0)


def unsupervised_loss(logits: Tensor, labels: Tensor, eta: float, ignore: int) -> Tensor:
    """lambda_u * L_u of Eq. 1 for `logits` (B, C, H, W) and pseudo-labels (B, H, W).

    L_u (Eq. 3) is the mean cross-entropy over the reliable pixels, as in the released code; the paper does not say over
    which pixels its cross-entropy is taken. lambda_u (Eq. 8, `unsupervised_weight`) comes on top of that. Without a
    reliable pixel the product is 0.
    """
    return unsupervised_weight(labels, eta, ignore) * supervised_loss(logits, labels, ignore)
