"""Mean Teacher: the student learns the teacher's labels on every pixel of the unlabelled images."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from u2pl.components.ema import ema_update
from u2pl.components.pseudo_labels import unsupervised_loss
from u2pl.methods.progress import Progress
from u2pl.methods.suponly import SupOnly, upsample

if TYPE_CHECKING:
    from u2pl.experiments.schema import MethodSettings


class MeanTeacher(SupOnly):
    """L_s + eta * cross-entropy against the arg max of the teacher (eval mode) on the unlabelled images.

    The teacher also sees the student's images in train mode, without gradients: it has no other way to keep
    batch-norm statistics that fit its averaged weights. During the warm-up only L_s is in force, and the teacher
    follows the student exactly.
    """

    teacher: nn.Module

    def __init__(self, settings: MethodSettings, student: nn.Module, n_classes: int, ignore_label: int) -> None:
        super().__init__(settings, student, n_classes, ignore_label)
        self.teacher = copy.deepcopy(student).requires_grad_(False)

    def forward(self, batch: dict[str, Tensor], progress: Progress) -> dict[str, Tensor]:
        """See `SupOnly.forward`; adds "unsupervised" after the warm-up."""
        if progress.warming_up:
            self.teacher_view(batch["image_l"])
            return self.supervised(batch)
        images, labels = self.unlabelled(batch["image_u"], progress)
        both = torch.cat([batch["image_l"], images])
        view = self.teacher_view(both)
        return self.losses(batch["mask_l"], labels, self.student(both), view, progress)

    def losses(
        self, masks: Tensor, labels: Tensor, output: dict[str, Tensor], view: dict[str, Tensor], progress: Progress
    ) -> dict[str, Tensor]:
        """The step's losses from ground truth and pseudo-labels (B, H, W), and both networks' outputs on all images."""
        supervised = self.labelled_loss(output, masks)
        logits = upsample(output["logits"][len(masks) :], (labels.shape[1], labels.shape[2]))
        unsupervised = unsupervised_loss(logits, labels, self.settings.eta, self.ignore_label)
        return {
            "loss": supervised + unsupervised,
            "supervised": supervised.detach(),
            "unsupervised": unsupervised.detach(),
        }

    def after_step(self, progress: Progress) -> None:
        """Move the teacher towards the student; during the warm-up copy it, so that it starts from there."""
        decay = 0.0 if progress.warming_up else self.settings.ema_decay
        ema_update(self.teacher, self.student, decay, progress.steps_since_warmup)

    def unlabelled(self, images: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        """The images the student gets and their pseudo-labels (B, H, W)."""
        return images, self.teacher_labels(images)

    @torch.no_grad()
    def teacher_labels(self, images: Tensor) -> Tensor:
        """The most probable class by the teacher in eval mode, at the size of the images: int64 (B, H, W)."""
        self.teacher.eval()
        logits = self.teacher(images)["logits"]
        return upsample(logits, (images.shape[2], images.shape[3])).argmax(dim=1)

    @torch.no_grad()
    def teacher_view(self, images: Tensor) -> dict[str, Tensor]:
        """The teacher's output in train mode: batch statistics and dropout, as the student sees the images."""
        self.teacher.train()
        return self.teacher(images)
