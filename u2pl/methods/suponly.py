"""SupOnly: cross-entropy on the labelled images alone; the other methods build on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from u2pl.components.ohem import ohem_loss
from u2pl.components.precision import at_least_float32
from u2pl.components.pseudo_labels import supervised_loss
from u2pl.methods.progress import Progress

if TYPE_CHECKING:
    from u2pl.experiments.settings import Training

AUXILIARY_WEIGHT = 0.4


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear to `size` (H, W) with aligned corners, in float32 whatever the autocast type."""
    return F.interpolate(at_least_float32(logits), size=size, mode="bilinear", align_corners=True)


class SupOnly(nn.Module):
    """The supervised loss L_s (Eq. 2), plus 0.4 times that of the auxiliary head where the network has one.

    With `cityscapes_loss: ohem_auxiliary` both heads learn from their hard pixels only (see `ohem_loss`). The released
    code finds these in each process by itself, here they are of the global batch.
    `student(images)` returns {"logits" (B, C, h, w), "representation" (B, D, h, w), optionally "auxiliary"}.
    `teacher` is None: the student is what is evaluated.
    """

    teacher: nn.Module | None

    def __init__(self, settings: Training, student: nn.Module, n_classes: int, ignore_label: int) -> None:
        super().__init__()
        self.settings, self.n_classes, self.ignore_label = settings, n_classes, ignore_label
        self.student = student
        self.teacher = None

    def forward(self, batch: dict[str, Tensor], progress: Progress) -> dict[str, Tensor]:
        """The losses of one step: "loss" to minimise and its parts, scalars.

        `batch` holds image_l float (B, 3, H, W), mask_l int64 (B, H, W) and, for the semi-supervised methods, image_u
        like image_l; images are normalised. Of several ranks each gets its share of the global batch, and all return
        the losses of the whole.
        """
        return self.supervised(batch)

    def after_step(self, progress: Progress) -> None:
        """To be called after the optimiser's step; `progress` is the one the step's forward got."""

    def supervised(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The step in which only labelled images take part."""
        loss = self.labelled_loss(self.student(batch["image_l"]), batch["mask_l"])
        return {"loss": loss, "supervised": loss.detach()}

    def labelled_loss(self, output: dict[str, Tensor], masks: Tensor) -> Tensor:
        """L_s for the first len(masks) images of a student output."""
        criterion = ohem_loss if self.settings.cityscapes_loss == "ohem_auxiliary" else supervised_loss
        heads = {"logits": 1.0, "auxiliary": AUXILIARY_WEIGHT}
        size = (masks.shape[1], masks.shape[2])
        losses = [
            weight * criterion(upsample(output[head][: len(masks)], size), masks, self.ignore_label)
            for head, weight in heads.items()
            if head in output
        ]
        return sum(losses[1:], losses[0])
