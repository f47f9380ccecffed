"""L_c (Eq. 4 and 9 to 16) in both readings, with the memory bank it draws from."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from u2pl.components import contrast
from u2pl.components.contrast_released import negatives_of_own_class, positional_banks
from u2pl.components.memory_bank import MemoryBank
from u2pl.components.resize import nearest
from u2pl.ranks.collectives import all_reduce_sum

if TYPE_CHECKING:
    from u2pl.experiments.settings import Contrast


class View(NamedTuple):
    """What the teacher says of a batch, without gradients."""

    labels: Tensor  # int64 (B, H, W), of the unlabelled images
    entropies: Tensor  # nats, (B, H, W), of the unlabelled images
    probs: Tensor  # (2B, C, h, w) at the size of the network's output, labelled images first
    representation: Tensor  # (2B, D, h, w), likewise


class UnreliableContrast(nn.Module):
    """The contrastive term at the size of the network's output, with labels and entropies brought there by nearest
    neighbour.

    channels: D, of the representations.
    """

    def __init__(self, settings: Contrast, n_classes: int, ignore: int, channels: int) -> None:
        super().__init__()
        self.settings, self.n_classes, self.ignore = settings, n_classes, ignore
        capacities = [settings.bank_size_background, *[settings.bank_size] * (n_classes - 1)]
        self.bank = MemoryBank(capacities, channels, saved=settings.bank_in_checkpoint)

    def forward(
        self,
        student: Tensor,
        view: View,
        masks: Tensor,
        reliable: Tensor,
        gamma: Tensor,
        low: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """L_c, unweighted, a scalar, for the student's representations (2B, D, h, w); updates the bank.

        masks: ground truth (B, H, W); reliable: pseudo-labels of Eq. 6 (B, H, W); gamma, low: the percentiles
        100 * (1 - alpha_t) and 100 * alpha_t of the entropies of the global batch.
        """
        settings, n, probs = self.settings, len(masks), view.probs
        if settings.unlabelled_anchor_entropy == "released":
            reliable = torch.where(view.entropies <= low, view.labels, self.ignore)
        selected = contrast.entropy_condition(view.entropies, gamma, low, settings.negatives)
        size = (probs.shape[2], probs.shape[3])
        labels, masks, reliable, selected = (nearest(v, size) for v in (view.labels, masks, reliable, selected))
        # A_c (Eq. 9 to 11), and the same without p > delta_p
        low_entropy = contrast.members(torch.cat([masks, reliable]), self.n_classes)
        anchors = contrast.anchor_pixels(probs, torch.cat([masks, reliable]), settings.delta_p)
        # N_c (Eq. 13 to 16)
        ranks = {"r_low": settings.r_low}
        labelled = contrast.labelled_negatives(probs[:n], masks, self.ignore, **ranks)
        unlabelled = contrast.unlabelled_negatives(probs[n:], selected, r_high=settings.r_high, **ranks)
        negatives = torch.cat([labelled, unlabelled])
        if settings.negative_label_mask == "released":
            own = contrast.members(torch.cat([masks, labels]), self.n_classes)
            negatives = negatives_of_own_class(negatives, own)
        if not settings.bank:
            self.bank.clear()
        present = all_reduce_sum(low_entropy.any(dim=(0, 2, 3)).int()) > 0
        return contrast.contrastive_loss(
            student,
            view.representation,
            anchors,
            negatives,
            self.bank,
            n_anchors=settings.anchors_per_class,
            n_negatives=settings.negatives_per_anchor,
            tau=settings.tau,
            generator=generator,
            centred=low_entropy if settings.positive_filter == "released" else None,
            banks=positional_banks(present) if settings.anchor_class_indexing == "released" else None,
            n_classes=present.sum() if settings.contrastive_normaliser == "released" else None,
        )


@torch.no_grad()
def channels_of(network: nn.Module) -> int:
    """Channels of a network's representation: it is asked, so that any network fits. Eval mode draws nothing."""
    training = network.training
    output = network.eval()(next(network.parameters()).new_zeros(1, 3, 64, 64))
    network.train(training)
    return output["representation"].shape[1]
