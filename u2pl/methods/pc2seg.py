"""PC2Seg: two views of an image agree pixel by pixel, and pixels of other classes differ.

After the abstract of Zhong et al., ICCV 2021: there is no public code. docs/fidelity.md says what is chosen here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from u2pl.components.groups import extent
from u2pl.components.outputs import channels_of, summed, two_streams
from u2pl.components.pixel_contrast import pixel_contrast, squared_distance
from u2pl.components.precision import at_least_float32
from u2pl.components.progress import Progress
from u2pl.components.resize import nearest
from u2pl.components.strong_view import strong_view
from u2pl.components.supervised import labelled_loss
from u2pl.components.taught import Taught, unmixed
from u2pl.methods.method import Batch, Losses, Method, Setup

if TYPE_CHECKING:
    from u2pl.experiments import settings as s


class PC2Seg(Method):
    """L_s + w_1 |p_strong - p_weak|^2 + w_2 L_contrast; nothing is learnt through the weak view.

    "contrast" is not logged where its weight is 0.
    """

    settings: s.PC2Seg

    def __init__(self, settings: s.PC2Seg, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.student, self.normalise = setup.network(), setup.normalise
        self.projection: nn.Module | None = None
        if settings.pc2seg_projection == "projection" and settings.pc2seg_contrast_weight > 0:
            channels, dim = channels_of(self.student, "features"), settings.pc2seg_dim
            self.projection = nn.Sequential(nn.Conv2d(channels, dim, 1), nn.ReLU(), nn.Conv2d(dim, dim, 1))

    @property
    def evaluated(self) -> nn.Module:
        return self.student

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        settings, images_l, images_u, masks = self.settings, batch["image_l"], batch["image_u"], batch["mask_l"]
        group = extent(settings.loss_groups, settings.group_size, len(masks))

        # The weak view predicts, the strong view learns.
        with torch.no_grad():
            weak = self.student(images_u)
        view = batch["raw_u"], batch["valid_u"], settings.cutout_size, self.normalise
        strong, shown = strong_view(*view, progress.generator, images_u.dtype)
        labelled, unlabelled = two_streams(self.student, images_l, strong, settings.streams_forward)

        # L2 consistency of the predictions, at the size of the output.
        size = weak["logits"].shape[2], weak["logits"].shape[3]
        probs = at_least_float32(weak["logits"]).softmax(dim=1)
        self.taught = Taught(probs, unmixed)
        shown, valid = nearest(shown, size), nearest(batch["valid_u"], size)
        terms = {
            "supervised": labelled_loss(labelled, masks, self.ignore, settings),
            "consistency": settings.pc2seg_consistency_weight
            * squared_distance(unlabelled["logits"], probs, shown, group),
        }

        # A strong pixel is near the same weak pixel, and far from weak pixels of other classes.
        if settings.pc2seg_contrast_weight > 0:
            with torch.no_grad():
                target = self.projected(weak)
            terms["contrast"] = settings.pc2seg_contrast_weight * pixel_contrast(
                self.projected(unlabelled),
                target,
                probs,
                shown,
                valid,
                anchors=settings.pc2seg_anchors,
                negatives=settings.pc2seg_negatives,
                tau=settings.pc2seg_tau,
                sampling=settings.pc2seg_sampling,
                generator=progress.generator,
            )
        return summed(**terms)

    def projected(self, output: dict[str, torch.Tensor]) -> torch.Tensor:
        """What is contrasted of a network's output: (B, D, h, w)."""
        return output["representation"] if self.projection is None else self.projection(output["features"])
