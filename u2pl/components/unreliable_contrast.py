"""L_c (Eq. 4 and 9 to 16) in both readings, with the memory bank it draws from."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from u2pl.components import contrast
from u2pl.components.contrast_released import negatives_of_own_class, positional_banks, stacked_members
from u2pl.components.groups import extent
from u2pl.components.memory_bank import MemoryBank
from u2pl.components.resize import nearest
from u2pl.components.taught import NewKeys
from u2pl.ranks.collectives import all_gather, share

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
        gamma: Tensor,
        low: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """L_c, unweighted, a scalar, for the student's representations (2B, D, h, w); updates the bank.

        masks: ground truth (B, H, W); gamma, low: the percentiles 100 * (1 - alpha_t) and 100 * alpha_t of the
        entropies, (B, 1, 1) by image.
        """
        settings, size = self.settings, (view.probs.shape[2], view.probs.shape[3])
        paper = settings.unlabelled_anchor_entropy == "paper"
        reliable = view.entropies < gamma if paper else view.entropies <= low
        selected = contrast.entropy_condition(view.entropies, gamma, low, settings.negatives)
        known = masks != self.ignore
        negatives = torch.ones_like(known) if settings.ignored_negatives else known
        labels = [nearest(values, size) for values in (masks, view.labels)]
        trusted = [nearest(values, size) for values in (known, reliable)]
        candidates = [nearest(values, size) for values in (negatives, selected)]
        return self.term(student, view, torch.cat(labels), torch.cat(trusted), torch.cat(candidates), generator)

    def term(
        self,
        student: Tensor,
        view: View,
        labels: Tensor,
        trusted: Tensor,
        candidates: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """The same, from what is at the size of the output, (2B, h, w) with labelled images first.

        labels: the masks, and the mixed pseudo-labels before Eq. 6 drops any; trusted: bool, pixels that may be
        anchors; candidates: bool, those that may be negatives.
        """
        settings, n, probs = self.settings, len(labels) // 2, view.probs
        group = extent(settings.contrastive_groups, settings.group_size, n)
        own = torch.cat([self.members(labels[:n]), self.members(labels[n:])])
        # A_c (Eq. 9 to 11), and the same without p > delta_p
        low_entropy = own & trusted[:, None]
        anchors = low_entropy & (probs > settings.delta_p)
        # N_c (Eq. 13 to 16)
        below, low, high = (settings.r_low, settings.r_low, settings.r_high)
        if not settings.prt:
            below, low, high = self.n_classes, 0, self.n_classes
        labelled = contrast.labelled_negatives(probs[:n], own[:n], candidates[:n], r_low=below)
        unlabelled = contrast.unlabelled_negatives(probs[n:], candidates[n:], r_low=low, r_high=high)
        negatives = torch.cat([labelled, unlabelled])
        if settings.negative_label_mask == "released":
            negatives = negatives_of_own_class(negatives, own)
        if not settings.bank:
            self.bank.clear()
        present = contrast.presence(low_entropy, group)
        per_image = 2 * group if settings.anchors_drawn == "per_image" else 1
        return contrast.contrastive_loss(
            student,
            view.representation,
            anchors,
            negatives,
            self.bank,
            n_anchors=settings.anchors_per_class * per_image,
            n_negatives=settings.negatives_per_anchor,
            tau=settings.tau,
            generator=generator,
            group=group,
            replacement=settings.replacement,
            centred=low_entropy if settings.positive_filter == "released" else None,
            banks=positional_banks(present) if settings.anchor_class_indexing == "released" else None,
            present=present if settings.contrastive_normaliser == "released" else None,
        )

    def new_keys(self, view: View, masks: Tensor) -> NewKeys:
        """What the bank took in the last step, of these."""
        return NewKeys(*self.bank.newest, masks, (view.probs.shape[2], view.probs.shape[3]))

    def members(self, labels: Tensor) -> Tensor:
        """The classes of a stream's labels (B, h, w) at each pixel: bool (B, C, h, w)."""
        if self.settings.label_stacking == "paper":
            return contrast.members(labels, self.n_classes)
        return share(stacked_members(all_gather(labels), self.n_classes, self.ignore, self.settings.group_size))
