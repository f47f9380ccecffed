"""CutMix: Mean Teacher in which the student's unlabelled images are mixed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from u2pl.components.collectives import share, world_size
from u2pl.components.mixing import cutmix, cutmix_boxes
from u2pl.methods.mean_teacher import MeanTeacher
from u2pl.methods.progress import Progress


class CutMix(MeanTeacher):
    """Pseudo-labels are made on the unmixed images, then images and labels are mixed by the same boxes.

    With `pseudo_label: after_mix` the teacher labels the mixed images instead.
    """

    settings: Any  # CutMix, or what has its fields

    def unlabelled(self, images: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        """The mixed images and their pseudo-labels (B, H, W)."""
        boxes = self.boxes(images, progress)
        mixed = cutmix(images, boxes)
        if self.settings.pseudo_label == "after_mix":
            return mixed, self.teacher_labels(mixed)
        return mixed, cutmix(self.teacher_labels(images), boxes)

    def boxes(self, images: Tensor, progress: Progress) -> Tensor:
        """Where this step's images (B, 3, H, W) take their partner's pixels: bool (B, H, W)."""
        size = (len(images) * world_size(), images.shape[2], images.shape[3])
        probability = self.settings.cutmix_probability
        boxes = cutmix_boxes(*size, probability=probability, generator=progress.generator, device=images.device)
        return share(boxes)
