"""CutMix: Mean Teacher in which the student's unlabelled images are mixed."""

from __future__ import annotations

from torch import Tensor

from u2pl.components.mixing import cutmix, cutmix_boxes
from u2pl.methods.mean_teacher import MeanTeacher
from u2pl.methods.progress import Progress


class CutMix(MeanTeacher):
    """Pseudo-labels are made on the unmixed images, then images and labels are mixed by the same boxes."""

    def unlabelled(self, images: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        """The mixed images and their mixed pseudo-labels (B, H, W)."""
        labels = self.teacher_labels(images)
        boxes = cutmix_boxes(
            *labels.shape,
            probability=self.settings.cutmix_probability,
            generator=progress.generator,
            device=images.device,
        )
        return cutmix(images, boxes), cutmix(labels, boxes)
