"""The four parts of AEL (Hu et al., NeurIPS 2021, Sec. 3), for the methods that are made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from u2pl.components import adaptive_sampling as sampling
from u2pl.components.confidence_bank import ConfidenceBank, one_of
from u2pl.components.copy_paste import component_boxes, copy_paste
from u2pl.components.groups import extent
from u2pl.components.mixing import boxes_for
from u2pl.components.outputs import two_streams
from u2pl.components.pseudo_labels import most_probable, pixel_losses
from u2pl.components.resize import nearest, upsample
from u2pl.components.taught import Truth
from u2pl.components.teacher import Teacher
from u2pl.ranks.collectives import all_gather, share, world_size

if TYPE_CHECKING:
    from u2pl.experiments.settings import Equalised


class Guess(NamedTuple):
    """What the teacher says of images: its most probable class, int64 (B, H, W), and the probability of that."""

    labels: Tensor
    confidence: Tensor


def guess(logits: Tensor, size: tuple[int, int]) -> Guess:
    """Of logits (B, C, h, w), at the `size` of the images."""
    confidence, labels = upsample(logits, size).softmax(dim=1).max(dim=1)
    return Guess(labels, confidence)


class Mixture(NamedTuple):
    """Which pixels each unlabelled image takes, and from where."""

    boxes: Tensor  # bool (B, H, W), True where the partner's go
    partners: Tensor | None  # int64 (B,): images of the global batch; None: the second half of what is mixed

    def __call__(self, values: Tensor) -> Tensor:
        """Values of the unmixed images, (B, ...) or (2B, ...) as `partners` says, mixed: (B, ...).

        Of any size: (h, w) of the last dimensions may be smaller than that of the boxes.
        """
        if self.partners is None:
            own, other = values.chunk(2)
        else:
            own, other = values, all_gather(values)[self.partners]
        inside = self.boxes
        if inside.shape[1:] != values.shape[-2:]:
            inside = nearest(inside, (values.shape[-2], values.shape[-1]))
        return torch.where(inside if values.ndim == 3 else inside[:, None], other, own)


class Equaliser(nn.Module):
    """Copy-Paste, CutMix, sampling and weights, steered by a bank of class confidences.

    images: of the unlabelled list; batch: unlabelled images per step, of all ranks.
    """

    def __init__(self, settings: Equalised, n_classes: int, ignore: int, images: int, batch: int) -> None:
        super().__init__()
        self.settings, self.n_classes, self.ignore = settings, n_classes, ignore
        self.by_bank = "chosen" in settings.streams
        assert batch or not self.by_bank, "the bank chooses for a batch of known size"
        self.bank = ConfidenceBank(n_classes, *((images, batch) if self.by_bank else ()))

    @property
    def wanted(self) -> Tensor | None:
        """The images that the bank has chosen for the next step; None where it chooses none."""
        return self.bank.chosen if self.by_bank else None

    def labelled(self, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The labelled images and masks of a batch, after adaptive Copy-Paste: K classes by Eq. 9 for each image."""
        settings, images, masks = self.settings, batch["image_l"], batch["mask_l"]
        if not settings.ael_copy_paste:
            return images, masks
        shape = 1 + settings.ael_copy_paste_number, len(images) * world_size()
        drawn, *draws = torch.rand(shape, generator=generator, device=images.device)
        rates = sampling.class_rates(self.bank.confidence, settings.ael_copy_paste_classes)
        classes = share(sampling.draw_classes(rates, torch.stack(draws, dim=1)))
        paste = share(drawn < settings.ael_copy_paste_probability)
        return copy_paste(images, masks, batch["image_l2"], batch["mask_l2"], batch["valid_l2"], classes, paste)

    def unlabelled(self, batch: dict[str, Tensor]) -> Tensor:
        """All unmixed unlabelled images: those of the batch, and then those that the bank has chosen for them."""
        return torch.cat([batch["image_u"], batch["image_p"]]) if self.by_bank else batch["image_u"]

    def truth(self, truth: Truth) -> Tensor:
        """That of all unmixed images, as `unlabelled` has them."""
        return torch.cat([truth["truth_u"], truth["truth_p"]]) if self.by_bank else truth["truth_u"]

    def look(
        self, teacher: Teacher, labelled: Tensor, unlabelled: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The teacher's outputs for labelled and for unmixed images; for the labelled ones always in train mode."""
        if self.settings.ael_teacher_mode == "train":
            return two_streams(teacher.training_view, labelled, unlabelled, self.settings.streams_forward)
        return teacher.training_view(labelled), teacher.view(unlabelled)

    def mixture(self, labels: Tensor, batch: dict[str, Tensor], generator: torch.Generator) -> Mixture:
        """Adaptive CutMix: the box of a component of a class drawn by Eq. 9, in an image that holds this class.

        labels: the teacher's of what `unlabelled` gave; the bank notes which classes they show. An image whose partner
        has no large enough component gets a box of half its area, like every image without this part, whose partner is
        then the next of its share.
        """
        settings, n = self.settings, len(batch["image_u"])
        boxes = boxes_for(batch["image_u"], 1.0, generator, "log_uniform_height")
        everyone = torch.arange(n * world_size(), device=labels.device)
        if not settings.ael_cutmix:
            first = everyone // settings.group_size * settings.group_size
            of_share = (len(everyone) - first).clamp(max=settings.group_size)
            return Mixture(boxes, share(first + (everyone - first + 1) % of_share))
        shown = sampling.held_classes(labels, self.n_classes, settings.ael_bank_ratio)
        held = [all_gather(part) for part in shown.split(n)]
        draws = torch.rand(3, len(everyone), generator=generator, device=labels.device)
        partners = None
        if self.by_bank:
            classes, others = self.bank.classes, labels[n:]
            self.bank.note(torch.cat([all_gather(batch["index_u"]), self.bank.chosen]), torch.cat(held))
        else:
            classes = sampling.draw_classes(sampling.class_rates(self.bank.confidence), draws[1])
            another = (everyone[:, None] != everyone) | (len(everyone) == 1)
            holding = held[0].T[classes] & another
            partners = share(one_of(torch.where(holding.any(dim=1, keepdim=True), holding, another), draws[2]))
            others = all_gather(labels)[partners]
        maps = others == share(classes)[:, None, None]
        return Mixture(component_boxes(maps, settings.ael_component_ratio, share(draws[0]), boxes), partners)

    @torch.no_grad()
    def observe(self, logits: Tensor, masks: Tensor) -> None:
        """Eq. 4 and 7, from the student's logits (B, C, h, w) for labelled images and their masks (B, H, W)."""
        settings = self.settings
        size = extent(settings.ael_confidence_groups, settings.group_size, len(masks))
        full = upsample(logits, (masks.shape[1], masks.shape[2]))
        found = sampling.batch_confidence(full, masks, self.ignore, size, settings.ael_absent_class)
        self.bank.update(*found, settings.ael_momentum)

    def choose(self, generator: torch.Generator) -> None:
        """The partners of the next step, where the bank chooses them."""
        if self.by_bank:
            shape = 2, len(self.bank.chosen)
            self.bank.choose(torch.rand(shape, generator=generator, device=self.bank.chosen.device))

    def loss(
        self, logits: Tensor, taught: Guess, generator: torch.Generator, labels: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """L_u of Eq. 12, a scalar, of the student's logits (B, C, h, w) against what the teacher guesses of the images.

        labels: those that are learned, in place of the guess's; where they are `ignore` a pixel adds nothing and keeps
        its weight. counted: bool (B, H, W), pixels that have a weight at all.
        """
        settings, confidence = self.settings, taught.confidence
        full = upsample(logits, (confidence.shape[1], confidence.shape[2]))
        weights = torch.ones_like(confidence)
        if settings.ael_reweighting:
            own = settings.ael_confidence == "student"
            weights = (full.detach().softmax(dim=1).amax(dim=1) if own else confidence) ** settings.ael_gamma
        if settings.ael_sampling:
            classes = most_probable(full.detach()) if settings.ael_keep_by == "student" else taught.labels
            rates = sampling.pixel_rates(self.bank.confidence, settings.ael_beta)
            weights = weights * sampling.kept_pixels(classes, rates, generator)
        if counted is not None:
            weights = weights * counted
        labels = torch.where(
            confidence < settings.ael_threshold, self.ignore, taught.labels if labels is None else labels
        )
        size = extent(settings.ael_weight_normaliser, settings.group_size, len(logits))
        return sampling.weighted_mean(pixel_losses(full, labels, self.ignore), weights.flatten(1), size)
