"""PseudoSeg: a calibrated fusion of two predictions labels a strong view (Zou et al., ICLR 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from u2pl.components.calibrated_fusion import calibrated_fusion, soft_cross_entropy
from u2pl.components.class_activation import SelfAttention, class_activation, coarse, image_label_loss, image_labels
from u2pl.components.groups import extent
from u2pl.components.outputs import channels_of, summed, two_streams
from u2pl.components.progress import Progress
from u2pl.components.pseudo_labels import supervised_loss
from u2pl.components.resize import nearest, upsample
from u2pl.components.strong_view import strong_view
from u2pl.components.supervised import labelled_loss
from u2pl.components.taught import Taught, unmixed
from u2pl.methods.method import Batch, Losses, Method, Setup

if TYPE_CHECKING:
    from u2pl.experiments import settings as s

STRIDES = {"os16": 16, "os8": 8}


class PseudoSeg(Method):
    """L_s + L_strong + L_classes + L_maps: one network, with a classifier of images and a self-attention of maps.

    The weak view's soft label is the sharpened mean of the decoder's prediction and of class activation maps that the
    attention refines; the strong view learns it by soft cross-entropy. Classifier and attention learn from labelled
    images alone.
    """

    settings: s.PseudoSeg

    def __init__(self, settings: s.PseudoSeg, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.student, self.normalise = setup.network(), setup.normalise
        depth = [channels_of(self.student, stage) for stage in ("layer3", "layer4")]
        self.classifier = nn.Linear(depth[1], setup.n_classes - 1)  # of all classes but the background
        self.attention = SelfAttention(sum(depth), setup.n_classes, settings.pseudoseg_attention_dim)

    @property
    def evaluated(self) -> nn.Module:
        return self.student

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        settings, images_l, images_u, masks = self.settings, batch["image_l"], batch["image_u"], batch["mask_l"]
        size, group = (masks.shape[1], masks.shape[2]), extent(settings.loss_groups, settings.group_size, len(masks))

        # The weak view labels, the strong view learns.
        target = self.soft_labels(images_u, batch["valid_u"])
        self.taught = Taught(target, unmixed)
        view = batch["raw_u"], batch["valid_u"], settings.cutout_size, self.normalise
        strong, shown = strong_view(*view, progress.generator, images_u.dtype)
        labelled, unlabelled = two_streams(self.student, images_l, strong, settings.streams_forward)
        shown = nearest(shown, (target.shape[2], target.shape[3]))
        consistency = soft_cross_entropy(unlabelled["logits"], target, shown, group)

        # The masks say which classes an image shows, and the refined maps are to agree with the masks.
        present, known = image_labels(masks, self.n_classes), (masks != self.ignore).flatten(1).any(dim=1)
        classes = image_label_loss(self.image_logits(labelled), present, known, group)
        maps = upsample(self.refined(labelled, present, batch["valid_l"]), size)

        return summed(
            supervised=labelled_loss(labelled, masks, self.ignore, settings),
            consistency=settings.pseudoseg_weight * consistency,
            classes=settings.pseudoseg_classifier_weight * classes,
            maps=settings.pseudoseg_attention_weight * supervised_loss(maps, masks, self.ignore, group),
        )

    @torch.no_grad()
    def soft_labels(self, images: Tensor, valid: Tensor) -> Tensor:
        """Calibrated fusion for weak views (B, 3, H, W) at the size of the decoder's output: (B, C, h, w).

        Batch-norm statistics move by the decoder's pass.
        """
        settings = self.settings
        output = stages = self.student(images)
        if settings.pseudoseg_cam_mode == "eval":
            encoder = self.student.get_submodule("encoder")
            stages = encoder.eval()(images)
            encoder.train()
        found = self.image_logits(stages) >= 0  # a probability of at least 1/2
        logits = output["logits"]
        return calibrated_fusion(
            logits,
            upsample(self.refined(stages, found, valid), (logits.shape[2], logits.shape[3])),
            weight=settings.pseudoseg_fusion,
            temperature=settings.pseudoseg_temperature,
            normaliser=settings.pseudoseg_normaliser,
            over=settings.pseudoseg_norm,
            share=settings.group_size,
        )

    def image_logits(self, stages: dict[str, Tensor]) -> Tensor:
        """Of each class but the background, from the mean of the last stage: (B, C - 1)."""
        logits: Tensor = self.classifier(stages["layer4"].mean((2, 3)))
        return logits

    def refined(self, stages: dict[str, Tensor], present: Tensor, valid: Tensor) -> Tensor:
        """Logits (B, C, h, w) of refined activation maps of the classes that are `present`, on the grid of attention.

        valid: bool (B, H, W), False where the image is padded. Only the attention gets gradients.
        """
        grid = valid.shape[1], STRIDES[self.settings.pseudoseg_grid]
        last, before = (coarse(stages[stage].detach(), *grid) for stage in ("layer4", "layer3"))
        maps = class_activation(last, self.classifier.weight.detach(), present)
        before = upsample(before, (last.shape[2], last.shape[3]))
        refined: Tensor = self.attention(
            torch.cat([before.to(last.dtype), last], dim=1), maps, nearest(valid, (last.shape[2], last.shape[3]))
        )
        return refined
