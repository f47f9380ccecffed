"""Mean Teacher: the student learns the teacher's labels on every pixel of the unlabelled images."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from u2pl.components.ema import ema_update
from u2pl.components.pseudo_labels import unsupervised_loss
from u2pl.methods.progress import Progress
from u2pl.methods.suponly import SupOnly, upsample

if TYPE_CHECKING:
    from u2pl.experiments.settings import Averaging


class MeanTeacher(SupOnly):
    """L_s + eta * cross-entropy against the arg max of the teacher (eval mode) on the unlabelled images.

    With `teacher_buffers: own` the teacher also sees the student's images in train mode, without gradients: that is
    where its batch-norm statistics come from. With `averaged` they follow the student's like the parameters.

    During the warm-up only L_s is in force. The teacher is then a copy of the student after every step, where the
    released code copies once at the end: the parameters are the same from the first semi-supervised step on, and the
    teacher can be evaluated before; its own batch-norm statistics differ, they fit the parameters here.
    """

    settings: Averaging
    teacher: nn.Module

    def __init__(self, settings: Averaging, student: nn.Module, n_classes: int, ignore_label: int) -> None:
        super().__init__(settings, student, n_classes, ignore_label)
        self.teacher = copy.deepcopy(student).requires_grad_(False)

    def forward(self, batch: dict[str, Tensor], progress: Progress) -> dict[str, Tensor]:
        """See `SupOnly.forward`; adds "unsupervised" after the warm-up."""
        labelled, unlabelled = batch["image_l"], batch["image_u"]
        if progress.warming_up:
            self.move_statistics(labelled)
            return self.supervised(batch)
        images, view = self.teach(labelled, unlabelled, progress)
        output = self.student(torch.cat([labelled, images]))
        return self.losses(batch["mask_l"], output, view, progress)

    def teach(self, labelled: Tensor, unlabelled: Tensor, progress: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        """The unlabelled images as the student gets them, and what the teacher says: "labels", (B, H, W)."""
        images, labels = self.unlabelled(unlabelled, progress)
        self.move_statistics(torch.cat([labelled, images]))
        return images, {"labels": labels}

    def losses(
        self, masks: Tensor, output: dict[str, Tensor], view: dict[str, Tensor], progress: Progress
    ) -> dict[str, Tensor]:
        """The step's losses from ground truth, the student's output on all images, and `teach`'s view of them."""
        labels = view["labels"]
        supervised = self.labelled_loss(output, masks)
        logits = upsample(output["logits"][len(masks) :], (labels.shape[1], labels.shape[2]))
        unsupervised = unsupervised_loss(logits, labels, self.settings.eta, self.ignore_label)
        return {
            "loss": supervised + unsupervised,
            "supervised": supervised.detach(),
            "unsupervised": unsupervised.detach(),
        }

    def after_step(self, progress: Progress) -> None:
        """Move the teacher towards the student; where it is to equal the student, copy it."""
        settings = self.settings
        first_epoch = progress.epoch == progress.warmup_epochs and settings.teacher_first_epoch == "shared"
        decay = 0.0 if progress.warming_up or first_epoch else settings.ema_decay
        averaged = settings.teacher_buffers == "averaged"
        step = progress.steps_since_warmup
        ema_update(self.teacher, self.student, decay, step, warmup=settings.ema_warmup, buffers=averaged)

    def unlabelled(self, images: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        """The images the student gets and their pseudo-labels (B, H, W)."""
        return images, self.teacher_labels(images)

    @torch.no_grad()
    def teacher_labels(self, images: Tensor) -> Tensor:
        """The most probable class by the teacher in eval mode, at the size of the images: int64 (B, H, W)."""
        logits = self.teacher.eval()(images)["logits"]
        return upsample(logits, (images.shape[2], images.shape[3])).argmax(dim=1)

    @torch.no_grad()
    def training_pass(self, images: Tensor) -> dict[str, Tensor]:
        """The teacher's output in train mode: batch statistics and dropout, as the student sees the images."""
        self.teacher.train()
        if self.settings.teacher_buffers == "own":
            return self.teacher(images)
        unmoved = {name: buffer.clone() for name, buffer in self.teacher.named_buffers()}
        return functional_call(self.teacher, unmoved, (images,))

    def move_statistics(self, images: Tensor) -> None:
        """Let the teacher's own batch-norm statistics see the images, where they are its own."""
        if self.settings.teacher_buffers == "own":
            self.training_pass(images)
