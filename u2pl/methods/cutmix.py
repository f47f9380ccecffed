"""CutMix: the student learns the teacher's labels on mixed unlabelled images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from u2pl.components.groups import extent
from u2pl.components.mixing import boxes_for, cutmix
from u2pl.components.outputs import halves, summed
from u2pl.components.progress import Progress
from u2pl.components.pseudo_labels import unsupervised_loss
from u2pl.components.resize import upsample
from u2pl.components.supervised import labelled_loss
from u2pl.components.taught import Taught
from u2pl.components.teacher import Teacher
from u2pl.methods.method import Batch, Losses, Method, Setup

if TYPE_CHECKING:
    from u2pl.experiments import settings as s


class CutMix(Method):
    """L_s + eta * cross-entropy against the teacher's labels: made on the unmixed images, mixed by the same boxes.

    With `pseudo_label: after_mix` the teacher labels the mixed images instead. During the warm-up only L_s is in force.
    With `oracle` the true labels are learned, mixed alike, by the same code: an upper bound.
    """

    settings: s.CutMix

    def __init__(self, settings: s.CutMix, setup: Setup) -> None:
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
        boxes = boxes_for(images_u, settings.cutmix_probability, progress.generator, settings.cutmix_box)
        mixed = cutmix(images_u, boxes, settings.group_size)
        if settings.oracle:
            labels = cutmix(batch["mask_u"], boxes, settings.group_size)
        elif settings.pseudo_label == "before_mix":
            labels = cutmix(self.teacher.labels(images_u), boxes, settings.group_size)
        else:
            labels = self.teacher.labels(mixed)
        self.taught = Taught(labels, lambda truth: cutmix(truth["truth_u"], boxes, settings.group_size))
        images = torch.cat([images_l, mixed])
        self.teacher.observe(images)

        labelled, unlabelled = halves(self.student(images), n)
        logits, group = upsample(unlabelled["logits"], size), extent(settings.loss_groups, settings.group_size, n)
        return summed(
            supervised=labelled_loss(labelled, masks, self.ignore, settings),
            unsupervised=unsupervised_loss(logits, labels, settings.eta, self.ignore, group),
        )

    def after_step(self, progress: Progress) -> None:
        self.teacher.follow(self.student, progress)
