"""Which unlabelled pixels teach, and how much: Eq. 2, 3 and 5 to 8."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from u2pl.components.groups import group_mean, group_sums, of_images
from u2pl.ranks.collectives import world_size


def entropy(probs: Tensor) -> Tensor:
    """Eq. 5: per-pixel entropy in nats of `probs` (B, C, H, W); returns (B, H, W). 0 log 0 counts as 0."""
    return torch.special.entr(probs).sum(dim=1)


def most_probable(scores: Tensor) -> Tensor:
    """The class of the highest score at each pixel, the first of equal ones: (B, C, H, W) -> int64 (B, H, W).

    `argmax` gives the same, but on CPUs it is several times slower over a dimension that is not the last.
    """
    return scores.max(dim=1).indices


def alpha_t(
    alpha_0: float, epoch: int, epochs: int, counted: str = "from_0", warmup: int = 0, *, dynamic: bool = True
) -> float:
    """Eq. 7: the share of unreliable pixels in `epoch` (from 0) of `epochs`; not `dynamic`: alpha_0 throughout.

    t is `counted` "from_0", "from_1", or "after_warmup": then neither t nor the total has the `warmup` epochs.
    """
    first = warmup if counted == "after_warmup" else 0
    t = epoch - first + (counted == "from_1")
    return alpha_0 * (1 - t / (epochs - first)) if dynamic else alpha_0


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


def group_percentiles(everywhere: Tensor, q: float, size: int) -> Tensor:
    """The percentile of each group of `size` images of `everywhere` (images of all ranks, H, W): (groups,)."""
    return torch.stack([percentile(part, q) for part in everywhere.split(size)])


def pseudo_labels(probs: Tensor, gamma_t: Tensor | float, ignore: int) -> Tensor:
    """Eq. 6: the most probable class where the entropy is below gamma_t, `ignore` elsewhere.

    `probs` is (B, C, H, W); returns int64 (B, H, W).
    """
    return drop_unreliable(most_probable(probs), entropy(probs), gamma_t, ignore)


def drop_unreliable(labels: Tensor, entropies: Tensor, gamma_t: Tensor | float, ignore: int) -> Tensor:
    """The second line of Eq. 6 for labels and entropies of two teacher views, (B, H, W); gamma_t one or (B, 1, 1)."""
    return torch.where(entropies < gamma_t, labels, ignore)


def supervised_loss(logits: Tensor, labels: Tensor, ignore: int, group: int | None = None) -> Tensor:
    """Eq. 2: mean cross-entropy of `logits` (B, C, H, W) over the pixels of `labels` (B, H, W) that are not `ignore`.

    Over those of each `group` of so many images, then over the groups; None: over the images of all ranks at once. Of a
    group without a labelled pixel the mean is 0 with zero gradients, not NaN.
    """
    return group_mean(pixel_losses(logits, labels, ignore), labels != ignore, group)


def unsupervised_weight(labels: Tensor, eta: float, ignore: int, group: int | None = None) -> Tensor:
    """Eq. 8: lambda_u = eta * |B_u| * H * W / (pixels of `labels` that are not `ignore`), 0 if there are none: (B,).

    `labels` (B, H, W) are one rank's; counted are those of each image's `group`, None: of all ranks.
    """
    group = group or len(labels) * world_size()
    counts = torch.stack([(labels != ignore).sum((1, 2)), torch.ones_like(labels).sum((1, 2))], dim=1)
    reliable, pixels = group_sums(counts, group).double().T  # a quotient of integers would be of single precision
    weights = torch.where(reliable > 0, eta * pixels / reliable.clamp(min=1), 0.0)
    return of_images(weights, len(labels), group).flatten()


def unsupervised_loss(
    logits: Tensor,
    labels: Tensor,
    eta: float,
    ignore: int,
    group: int | None = None,
    weight_group: int | None = None,
) -> Tensor:
    """lambda_u * L_u of Eq. 1 for `logits` (B, C, H, W) and pseudo-labels (B, H, W).

    L_u (Eq. 3) is the mean cross-entropy over the reliable pixels of each `group`, as in the released code; the paper
    does not say over which pixels its cross-entropy is taken. lambda_u (Eq. 8, `unsupervised_weight`), of each
    `weight_group`, comes on top of that. Without a reliable pixel the product is 0.
    """
    losses = pixel_losses(logits, labels, ignore)
    weights = unsupervised_weight(labels, eta, ignore, weight_group)[:, None]
    return group_mean(losses * weights.to(losses.dtype), labels != ignore, group)


def pixel_losses(logits: Tensor, labels: Tensor, ignore: int) -> Tensor:
    """Cross-entropy of each pixel of `logits` (B, C, H, W), 0 where `labels` (B, H, W) are `ignore`: (B, H * W)."""
    # one row a pixel: on CUDA the loss over (B, C, H, W) has no deterministic kernel
    rows = logits.movedim(1, -1).flatten(0, -2)
    return F.cross_entropy(rows, labels.flatten(), ignore_index=ignore, reduction="none").view(len(labels), -1)
