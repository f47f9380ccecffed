"""AEL: what is learned badly is shown, sampled and weighted more (Hu et al., NeurIPS 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from u2pl.components.equaliser import Equaliser, Guess, guess
from u2pl.components.outputs import summed, two_streams
from u2pl.components.progress import Progress
from u2pl.components.supervised import labelled_loss
from u2pl.components.taught import Taught
from u2pl.components.teacher import Teacher
from u2pl.methods.method import Batch, Losses, Method, Setup

if TYPE_CHECKING:
    from u2pl.experiments import settings as s


class AEL(Method):
    """L_s + alpha L_u, alpha = `eta`; in the warm-up L_s alone, on which the bank learns as well.

    A bank of class confidences says what is pasted into labelled images (ACP), what is mixed into unlabelled ones
    (ACM), and which pixels of these count (AES) how much (DRW): see `Equaliser`.
    """

    settings: s.AEL

    def __init__(self, settings: s.AEL, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.student = setup.network()
        self.teacher = Teacher(self.student, settings)
        sizes = setup.n_classes, setup.ignore, setup.unlabelled, setup.batch
        self.equaliser = Equaliser(settings, *sizes)

    @property
    def evaluated(self) -> nn.Module:
        return self.teacher.network

    @property
    def wanted(self) -> Tensor | None:
        return self.equaliser.wanted

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        settings, equaliser, generator = self.settings, self.equaliser, progress.generator
        images_l, masks = equaliser.labelled(batch, generator)  # ACP
        size = masks.shape[1], masks.shape[2]

        if progress.epoch < settings.warmup_epochs:
            self.teacher.observe(images_l)
            labelled = self.student(images_l)
            equaliser.observe(labelled["logits"], masks)
            return summed(supervised=labelled_loss(labelled, masks, self.ignore, settings))

        # The teacher labels the unmixed images, and its labels are mixed like these (ACM).
        images_u = equaliser.unlabelled(batch)
        of_labelled, of_unlabelled = equaliser.look(self.teacher, images_l, images_u)
        unmixed = guess(of_unlabelled["logits"], size)
        mix = equaliser.mixture(unmixed.labels, batch, generator)
        mixed, taught = mix(images_u), Guess(mix(unmixed.labels), mix(unmixed.confidence))
        kept = taught.confidence >= settings.ael_threshold if settings.ael_threshold > 0 else None
        self.taught = Taught(taught.labels, lambda truth: mix(equaliser.truth(truth)), kept)
        if settings.ael_teacher_mode == "eval":
            self.teacher.observe(mixed)

        labelled, unlabelled = two_streams(self.student, images_l, mixed, settings.streams_forward)

        # The bank (Eq. 4 and 7) before its use in AES, as in the released code.
        equaliser.observe(labelled["logits"], masks)
        terms = {"supervised": labelled_loss(labelled, masks, self.ignore, settings)}
        terms["unsupervised"] = settings.eta * equaliser.loss(unlabelled["logits"], taught, generator)
        if settings.ael_labelled_consistency:
            of_labels = guess(of_labelled["logits"], size)
            terms["consistency"] = settings.eta * equaliser.loss(labelled["logits"], of_labels, generator)
        equaliser.choose(generator)
        return summed(**terms)

    def after_step(self, progress: Progress) -> None:
        self.teacher.follow(self.student, progress)
