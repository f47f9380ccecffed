"""What the released code's contrastive term does otherwise than Eq. 4 and 9 to 16: one function each.

The rest of its differences are other arguments of the functions in `contrast`; docs/fidelity.md lists them all.
"""

import torch
from torch import Tensor


def positional_banks(present: Tensor) -> Tensor:
    """The class whose bank the anchors of each class are compared with: int64 (C,), -1 for none.

    `present` is bool (C,). The released lists of anchors and of prototypes have an entry for every class of the data
    set, but are read with the position k of a class in the list of present classes: the anchors *of class k* meet the
    bank of the k-th present class. With {0, 7, 12, 15} present, anchors of 0, 1, 2 and 3 meet the banks of 0, 7, 12
    and 15, and 1, 2 and 3 have no anchors. Where the classes from 0 on are present, this changes nothing.
    """
    in_order = torch.argsort((~present).byte(), stable=True)  # the present classes first
    position = torch.arange(len(present), device=present.device)
    return torch.where(position < present.sum(), in_order, -1)


def negatives_of_own_class(negatives: Tensor, members: Tensor) -> Tensor:
    """The negatives (Eq. 13) whose label is the very class they are negatives of; all bool (B, C, h, w).

    `members` is True where the label, for unlabelled pixels the mixed pseudo-label before Eq. 6 drops any, is c. That
    contradicts y != c of Eq. 14: labelled pixels are never left. An unlabelled one is left where the view that ranks
    the classes puts c at r_l or worse, though the view that gave the pseudo-label put it first.
    """
    return negatives & members
