"""SupOnly: the supervised loss on the labelled images alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from u2pl.components.outputs import halves, summed
from u2pl.components.progress import Progress
from u2pl.components.supervised import labelled_loss
from u2pl.methods.method import Batch, Losses, Method, Setup

if TYPE_CHECKING:
    from u2pl.experiments import settings as s


class SupOnly(Method):
    """L_s (Eq. 2): "loss" and "supervised" are the same."""

    settings: s.SupOnly

    def __init__(self, settings: s.SupOnly, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.student = setup.network()

    @property
    def evaluated(self) -> nn.Module:
        return self.student

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        images, masks = batch["image_l"], batch["mask_l"]
        labelled, _ = halves(self.student(images), len(images))
        return summed(supervised=labelled_loss(labelled, masks, self.ignore, self.settings))
