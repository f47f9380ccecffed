"""What the released code's contrastive term does otherwise than Eq. 4 and 9 to 16: one function each.

The rest of its differences are other arguments of the functions in `contrast`; docs/fidelity.md lists them all.
"""

import torch
from torch import Tensor

from u2pl.components.contrast import members


def stacked_members(labels: Tensor, n_classes: int, ignore: int, group: int) -> Tensor:
    """The released one-hot stack of a stream's labels (images of all ranks, h, w): bool (images, C, h, w).

    Written along the wrong dimension, it fills the place of the first image of each `group` alone, with the union of
    the classes that the group's images have at a pixel. An ignored pixel counts as class 0, but those that the first
    image itself ignores are cleared. The other images have no class anywhere.
    """
    own = members(torch.where(labels == ignore, 0, labels), n_classes)
    stacked = torch.zeros_like(own)
    for first, part in zip(range(0, len(labels), group), own.split(group), strict=True):
        stacked[first] = part.any(dim=0) & (labels[first] != ignore)
    return stacked


def positional_banks(present: Tensor) -> Tensor:
    """The class whose bank the anchors of each class are compared with: int64 (..., C), -1 for none.

    `present` is bool (..., C). The released lists of anchors and of prototypes have an entry for every class of the
    data set, but are read with the position k of a class in the list of present classes: the anchors *of class k* meet
    the bank of the k-th present class. With {0, 7, 12, 15} present, anchors of 0, 1, 2 and 3 meet the banks of 0, 7, 12
    and 15, and 1, 2 and 3 have no anchors. Where the classes from 0 on are present, this changes nothing.
    """
    in_order = torch.argsort((~present).byte(), dim=-1, stable=True)  # the present classes first
    position = torch.arange(present.shape[-1], device=present.device)
    return torch.where(position < present.sum(dim=-1, keepdim=True), in_order, -1)


def negatives_of_own_class(negatives: Tensor, own: Tensor) -> Tensor:
    """The negatives (Eq. 13) that are members of the very class they are negatives of; all bool (B, C, h, w).

    `own` holds the classes of the masks and of the mixed pseudo-labels, before Eq. 6 drops any. That contradicts y != c
    of Eq. 14: labelled pixels are never left. Of the unlabelled ones it leaves, where `own` is right, those that the
    view that ranks the classes puts at r_l or worse though the view of the pseudo-label put them first: next to none.
    Where `own` is `stacked_members`, it leaves the pixels of each group's first image that another image's label at
    the same place makes members of c: over a thousand in a step.
    """
    return negatives & own
