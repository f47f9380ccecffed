"""What a step taught on its unlabelled images, for the diagnostics of an epoch: training uses nothing of it."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

# uint8 (B, H, W): truth_u, and truth_u2 and truth_p where the batch has image_u2 and image_p
Truth = dict[str, Tensor]


class NewKeys(NamedTuple):
    """What a memory bank took in a step."""

    kept: Tensor  # bool (C, n): of the pixels of all ranks those whose vectors class c took and still holds
    places: Tensor  # int64 (n,): where these pixels lie among all, labelled images first, see `all_gather`
    masks: Tensor  # (B, H, W): of this rank's labelled images
    size: tuple[int, int]  # (h, w): pixels are those of the network's output


class Taught(NamedTuple):
    """The pseudo-labels of one rank's images.

    A method leaves the tensors as they are: what is counted in them, and whether anything is, is the engine's.
    """

    labels: Tensor  # before any is dropped, int64 (B, h, w); or scores (B, C, h, w), of which the highest is the label
    truth: Callable[[Truth], Tensor]  # the truth of the images, mixed as the labels are: (B, H, W)
    reliable: Tensor | None = None  # bool (B, h, w): the labels that are learned; None: no label is dropped
    keys: NewKeys | None = None


def unmixed(truth: Truth) -> Tensor:
    """`Taught.truth` of labels that lie where those of `image_u` do."""
    return truth["truth_u"]
