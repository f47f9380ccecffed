"""Mean Teacher: the student learns the teacher's labels on every pixel of the unlabelled images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from u2pl.components.groups import extent
from u2pl.components.outputs import halves, summed
from u2pl.components.progress import Progress
from u2pl.components.pseudo_labels import unsupervised_loss
from u2pl.components.resize import upsample
from u2pl.components.supervised import labelled_loss
from u2pl.components.taught import Taught, unmixed
from u2pl.components.teacher import Teacher
from u2pl.methods.method import Batch, Losses, Method, Setup

if TYPE_CHECKING:
    from u2pl.experiments import settings as s


class MeanTeacher(Method):
    """L_s + eta * cross-entropy against the arg max of the teacher (eval mode) on the unlabelled images.

    During the warm-up only L_s is in force.
    """

    settings: s.MeanTeacher

    def __init__(self, settings: s.MeanTeacher, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.student = setup.network()
        self.teacher = Teacher(self.student, settings)

    @property
    def evaluated(self) -> nn.Module:
        return self.teacher.network

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        settings, images_l, masks = self.settings, batch["image_l"], batch["mask_l"]
        n, size = len(images_l), (masks.shape[1], masks.shape[2])

        if progress.epoch < settings.warmup_epochs:
            self.teacher.observe(images_l)
            labelled, _ = halves(self.student(images_l), n)
            return summed(supervised=labelled_loss(labelled, masks, self.ignore, settings))

        images_u = batch["image_u"]
        labels = self.teacher.labels(images_u)
        self.taught = Taught(labels, unmixed)
        images = torch.cat([images_l, images_u])
        self.teacher.observe(images)

        labelled, unlabelled = halves(self.student(images), n)
        logits, group = upsample(unlabelled["logits"], size), extent(settings.loss_groups, settings.group_size, n)
        return summed(
            supervised=labelled_loss(labelled, masks, self.ignore, settings),
            unsupervised=unsupervised_loss(logits, labels, settings.eta, self.ignore, group),
        )

    def after_step(self, progress: Progress) -> None:
        self.teacher.follow(self.student, progress)
