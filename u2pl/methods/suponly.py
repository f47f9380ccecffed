"""SupOnly: the supervised loss on the labelled images alone."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import nn

from u2pl.components.ema import ema_update
from u2pl.components.outputs import halves, summed
from u2pl.components.progress import Progress
from u2pl.components.supervised import labelled_loss
from u2pl.methods.method import Batch, Losses, Method, Setup

if TYPE_CHECKING:
    from u2pl.experiments import settings as s


DECAY = 0.99  # of the average, with batch-norm statistics: what `ema_decay` is for teachers


class SupOnly(Method):
    """L_s (Eq. 2): "loss" and "supervised" are the same.

    Whatever averages weights gains by it. To compare a teacher with SupOnly, evaluate SupOnly's average, too.
    """

    settings: s.SupOnly

    def __init__(self, settings: s.SupOnly, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.student = setup.network()
        if settings.suponly_evaluated == "average":
            self.average = copy.deepcopy(self.student).requires_grad_(False)

    @property
    def evaluated(self) -> nn.Module:
        return self.student if self.settings.suponly_evaluated == "student" else self.average

    def after_step(self, progress: Progress) -> None:
        if self.settings.suponly_evaluated == "average":
            ema_update(self.average, self.student, DECAY, progress.step, buffers=True)

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        images, masks = batch["image_l"], batch["mask_l"]
        labelled, _ = halves(self.student(images), len(images))
        return summed(supervised=labelled_loss(labelled, masks, self.ignore, self.settings))
