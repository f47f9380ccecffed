"""CPS: two networks learn each other's labels (cross pseudo supervision, Chen et al., CVPR 2021)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from u2pl.components.ensemble import MeanOfNetworks
from u2pl.components.groups import extent
from u2pl.components.mixing import boxes_for, cutmix, three_boxes_for
from u2pl.components.outputs import summed, two_streams
from u2pl.components.progress import Progress
from u2pl.components.pseudo_labels import most_probable, supervised_loss
from u2pl.components.resize import upsample
from u2pl.components.supervised import labelled_loss
from u2pl.components.taught import Taught, Truth
from u2pl.methods.method import Batch, Losses, Method, Setup

if TYPE_CHECKING:
    from u2pl.experiments import settings as s


class CPS(Method):
    """L_s(1) + L_s(2) + lambda * [CE(p_1, y_2) + CE(p_2, y_1)], y_k the arg max of network k, over all pixels.

    Without mixing the labels come from the passes that are trained. With it they come from passes of their own over
    the unmixed images, and are mixed like these.
    """

    settings: s.CPS

    def __init__(self, settings: s.CPS, setup: Setup) -> None:
        super().__init__(settings, setup)
        # The same encoder weights, and heads of two draws.
        self.first, self.second = setup.network(), setup.network()

    @property
    def evaluated(self) -> nn.Module:
        return MeanOfNetworks([self.first, self.second]) if self.settings.evaluated == "mean" else self.first

    @classmethod
    def new_evaluated(cls, settings: Any, network: Callable[[], nn.Module]) -> nn.Module:
        return MeanOfNetworks([network(), network()]) if settings.evaluated == "mean" else network()

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        settings, images_l, images_u, masks = self.settings, batch["image_l"], batch["image_u"], batch["mask_l"]
        n, size, networks = len(images_l), (masks.shape[1], masks.shape[2]), (self.first, self.second)

        labels: list[Tensor] = []
        mask: Tensor | None = None
        if settings.cps_mixing == "cutmix":
            mask = self.mask(images_u, progress.generator)
            partner = batch.get("image_u2")
            labels = [self.mixed(self.labels(k, images_u), self.labels(k, partner), mask) for k in networks]
            images_u = self.mixed(images_u, partner, mask)

        outputs = [two_streams(network, images_l, images_u, settings.streams_forward) for network in networks]
        logits = [upsample(unlabelled["logits"], size) for _, unlabelled in outputs]
        labels = labels or [most_probable(values.detach()) for values in logits]
        self.taught = Taught(labels[1], lambda truth: self.truth(truth, mask))  # what the first network learns
        if settings.cps_labelled:
            also = [upsample(labelled["logits"], size) for labelled, _ in outputs]
            found = [most_probable(values.detach()) for values in also]
            labels = [torch.cat(both) for both in zip(found, labels, strict=True)]
            logits = [torch.cat(both) for both in zip(also, logits, strict=True)]

        first, second = (labelled_loss(own, masks, self.ignore, settings) for own, _ in outputs)
        group = extent(settings.loss_groups, settings.group_size, n)
        one, other = (supervised_loss(logits[k], labels[1 - k], self.ignore, group) for k in (0, 1))
        return summed(supervised=first + second, cross=settings.cps_weight * (one + other))

    def mask(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Where images (B, 3, H, W) take their partners' pixels: bool (B, H, W)."""
        if self.settings.cps_masks == "three_boxes":
            return three_boxes_for(images, generator)
        return boxes_for(images, 1.0, generator)

    def truth(self, truth: Truth, mask: Tensor | None) -> Tensor:
        """Of the images as they are learned."""
        return truth["truth_u"] if mask is None else self.mixed(truth["truth_u"], truth.get("truth_u2"), mask)

    @torch.no_grad()
    def labels(self, network: nn.Module, images: Tensor | None) -> Tensor | None:
        """The network's most probable class for unmixed images: int64 (B, H, W).

        In train mode its batch-norm statistics move, as in the released code.
        """
        if images is None:
            return None
        logits = network.train(self.settings.cps_label_mode == "train")(images)["logits"]
        network.train()
        return most_probable(upsample(logits, (images.shape[2], images.shape[3])))

    def mixed(self, values: Any, partner: Tensor | None, mask: Tensor) -> Tensor:
        """Images (B, 3, H, W) or labels (B, H, W) with those of the second batch, or of the same, inside the mask."""
        if partner is None:
            return cutmix(values, mask, self.settings.group_size)
        return torch.where(mask if values.ndim == 3 else mask[:, None], partner, values)
