"""Where an image shows its classes: class activation maps, refined by self-attention (PseudoSeg, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from u2pl.components.groups import group_mean
from u2pl.components.precision import at_least_float32


def image_labels(masks: Tensor, n_classes: int) -> Tensor:
    """The classes but the background, 0, that masks (B, H, W) show: bool (B, C - 1)."""
    return torch.stack([(masks == c).flatten(1).any(dim=1) for c in range(1, n_classes)], dim=1)


def image_label_loss(logits: Tensor, present: Tensor, known: Tensor, group: int | None = None) -> Tensor:
    """Sigmoid cross-entropy of `logits` (B, C - 1) against bool `present`, a scalar.

    The mean over the classes of the images that are `known` (B,), of each `group` as in `supervised_loss`: an image
    without a labelled pixel says nothing of its classes. Without any the loss is 0.
    """
    logits = at_least_float32(logits)
    losses = F.binary_cross_entropy_with_logits(logits, present.to(logits.dtype), reduction="none")
    counted = known[:, None].expand_as(losses)
    return group_mean(torch.where(counted, losses, 0), counted, group)


def class_activation(features: Tensor, weight: Tensor, present: Tensor) -> Tensor:
    """Class activation maps (B, C - 1, h, w) in [0, 1], without gradients.

    features: (B, D, h, w); weight (C - 1, D): of a linear classifier of their mean, for which Grad-CAM is this map up
    to a factor. Negative evidence counts as 0. The maximum of a class that is `present` (bool (B, C - 1)) is 1 if there
    is any evidence; a class that is not present has 0 everywhere.
    """
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        maps = F.conv2d(at_least_float32(features), weight[:, :, None, None])
        maps = maps.relu() * present[:, :, None, None]
        highest = maps.amax((2, 3), keepdim=True)
        return maps / torch.where(highest > 0, highest, 1)


def coarse(features: Tensor, image_height: int, stride: int) -> Tensor:
    """Features (B, D, h, w) of images of that height, averaged over squares down to about an output `stride`.

    Those that are as coarse stay as they are.
    """
    factor = max(1, round(features.shape[2] / -(-image_height // stride)))
    return F.avg_pool2d(features, factor, ceil_mode=True, count_include_pad=False) if factor > 1 else features


class SelfAttention(nn.Module):
    """Refines class activation maps by the similarity of pixels: logits = norm([2 - max_c s_c, s]), s = A v + v.

    A = softmax(q k / sqrt(d)), query and key being 1x1 convolutions of the features to d channels; v are the maps; norm
    is a 1x1 convolution from C to C channels with batch norm. Features and maps get no gradient.

    channels: of the features; dim: d. The memory is that of a (tokens, tokens) matrix per image.
    """

    def __init__(self, channels: int, n_classes: int, dim: int) -> None:
        super().__init__()
        self.query, self.key = (nn.Conv2d(channels, dim, 1, bias=False) for _ in range(2))
        self.norm = nn.Sequential(nn.Conv2d(n_classes, n_classes, 1, bias=False), nn.BatchNorm2d(n_classes))

    def forward(self, features: Tensor, maps: Tensor, valid: Tensor) -> Tensor:
        """Logits (B, C, h, w) for features (B, D, h, w), maps (B, C - 1, h, w) and valid, bool (B, h, w).

        Nothing attends to pixels that are not valid: padding. Every image needs one that is.
        """
        with torch.autocast(features.device.type, enabled=False):
            features, maps = at_least_float32(features.detach()), at_least_float32(maps.detach())
            query, key = self.query(features).flatten(2), self.key(features).flatten(2)
            similarity = torch.bmm(query.transpose(1, 2), key) / query.shape[1] ** 0.5
            attention = similarity.masked_fill(~valid.flatten(1)[:, None], -torch.inf).softmax(dim=2)
            refined = torch.bmm(maps.flatten(2), attention.transpose(1, 2)).view_as(maps) + maps
            background = 2 - refined.amax(dim=1, keepdim=True)
            logits: Tensor = self.norm(torch.cat([background, refined], dim=1))
        return logits
