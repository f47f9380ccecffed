"""U2PL (w/ AEL): AEL, and the contrast of U2PL on the pixels that its teacher is unsure of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from u2pl.components.equaliser import Equaliser, Guess, guess
from u2pl.components.groups import extent, of_images
from u2pl.components.outputs import channels_of, summed, two_streams
from u2pl.components.precision import at_least_float32
from u2pl.components.progress import Progress
from u2pl.components.pseudo_labels import alpha_t, drop_unreliable, entropy, group_percentiles, unsupervised_loss
from u2pl.components.resize import upsample
from u2pl.components.supervised import labelled_loss
from u2pl.components.taught import Taught
from u2pl.components.teacher import Teacher
from u2pl.components.unreliable_contrast import UnreliableContrast, View
from u2pl.methods.method import Batch, Losses, Method, Setup
from u2pl.ranks.collectives import all_gather

if TYPE_CHECKING:
    from u2pl.experiments import settings as s


class U2PLAEL(Method):
    """L_s + L_u + lambda_c L_c: U2PL's Eq. 1 with AEL's images, teacher and weights; in the warm-up L_s alone.

    Also logged, from `contrast_start_epoch` on: "contrastive" (unweighted L_c).
    """

    settings: s.U2PLAEL

    def __init__(self, settings: s.U2PLAEL, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.student = setup.network()
        self.teacher = Teacher(self.student, settings)
        sizes = setup.n_classes, setup.ignore, setup.unlabelled, setup.batch
        self.equaliser = Equaliser(settings, *sizes)
        self.contrast = UnreliableContrast(settings, setup.n_classes, setup.ignore, channels_of(self.student))

    @property
    def evaluated(self) -> nn.Module:
        return self.teacher.network

    @property
    def wanted(self) -> Tensor | None:
        return self.equaliser.wanted

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        settings, equaliser, generator = self.settings, self.equaliser, progress.generator
        images_l, masks = equaliser.labelled(batch, generator)  # ACP
        n, size = len(images_l), (masks.shape[1], masks.shape[2])

        if progress.epoch < settings.warmup_epochs:
            self.teacher.observe(images_l)
            labelled = self.student(images_l)
            equaliser.observe(labelled["logits"], masks)
            return summed(supervised=labelled_loss(labelled, masks, self.ignore, settings))

        # The teacher labels the unmixed images, and what it says is mixed like these (ACM).
        images_u = equaliser.unlabelled(batch)
        of_labelled, of_unlabelled = equaliser.look(self.teacher, images_l, images_u)
        unmixed = guess(of_unlabelled["logits"], size)
        mix = equaliser.mixture(unmixed.labels, batch, generator)
        mixed, taught = mix(images_u), Guess(mix(unmixed.labels), mix(unmixed.confidence))
        entropies = mix(entropy(upsample(of_unlabelled["logits"], size).softmax(dim=1)))

        contrasting = settings.contrastive_weight > 0 and progress.epoch >= settings.contrast_start_epoch
        representation = None
        if contrasting and settings.teacher_view == "released":
            representation = self.teacher.training_view(mixed)["representation"]
        elif settings.ael_teacher_mode == "eval":
            self.teacher.observe(mixed)

        labelled, unlabelled = two_streams(self.student, images_l, mixed, settings.streams_forward)

        # gamma_t (U2PL, Eq. 6 and 7) and the lower percentile, of the mixed entropies.
        everywhere, group = all_gather(entropies), extent(settings.threshold_groups, settings.group_size, n)

        def percentile(share: float) -> Tensor:
            return of_images(group_percentiles(everywhere, 100 * share, group), n, group)

        counting = settings.alpha_0, progress.epoch, progress.epochs, settings.alpha_epochs, settings.warmup_epochs
        alpha = alpha_t(*counting, dynamic=settings.dpa)
        gamma, labels = percentile(1 - alpha), taught.labels
        if settings.confident_drop == "released":  # the wrong end of the scale, and alpha_t even without `dpa`
            labels = torch.where(entropies < percentile(alpha_t(*counting)), self.ignore, labels)
        kept = self.kept(taught, labels, entropies, gamma)
        self.taught = Taught(taught.labels, lambda truth: mix(equaliser.truth(truth)), kept)

        # The bank (AEL, Eq. 4 and 7) before its use in AES.
        equaliser.observe(labelled["logits"], masks)
        terms = {"supervised": labelled_loss(labelled, masks, self.ignore, settings)}
        terms["unsupervised"] = self.unsupervised(unlabelled["logits"], taught, labels, entropies, gamma, generator)
        if settings.ael_labelled_consistency:
            of_labels = guess(of_labelled["logits"], size)
            terms["consistency"] = settings.eta * equaliser.loss(labelled["logits"], of_labels, generator)
        equaliser.choose(generator)
        losses = summed(**terms)

        # lambda_c L_c (U2PL, Eq. 4 and 9 to 16).
        if contrasting:
            if representation is None:
                representation = mix(of_unlabelled["representation"])
            probs = [at_least_float32(output["logits"]).softmax(dim=1) for output in (of_labelled, of_unlabelled)]
            dense = torch.cat([probs[0], mix(probs[1])]), torch.cat([of_labelled["representation"], representation])
            own = torch.cat([output["representation"] for output in (labelled, unlabelled)])
            view = View(labels, entropies, *dense)
            contrastive = self.contrast(own, view, masks, gamma, percentile(alpha), generator)
            self.taught = self.taught._replace(keys=self.contrast.new_keys(view, masks))
            weight = settings.contrastive_weight / settings.contrastive_world_size
            losses |= {"loss": losses["loss"] + weight * contrastive, "contrastive": contrastive.detach()}
        return losses

    def unsupervised(
        self, logits: Tensor, taught: Guess, labels: Tensor, entropies: Tensor, gamma: Tensor,
        generator: torch.Generator,
    ) -> Tensor:  # fmt: skip
        """AEL's L_u, over all pixels or the reliable ones; or U2PL's lambda_u L_u."""
        settings, size = self.settings, (labels.shape[1], labels.shape[2])
        if settings.unsupervised_term == "equalised":
            return settings.eta * self.equaliser.loss(logits, taught, generator, labels)
        if settings.unsupervised_term == "both":
            return settings.eta * self.equaliser.loss(logits, taught, generator, labels, entropies < gamma)
        reliable = drop_unreliable(labels, entropies, gamma, self.ignore)
        groups = [extent(o, settings.group_size, len(labels)) for o in (settings.loss_groups, settings.weight_groups)]
        return unsupervised_loss(upsample(logits, size), reliable, settings.eta, self.ignore, *groups)

    def kept(self, taught: Guess, labels: Tensor, entropies: Tensor, gamma: Tensor) -> Tensor:
        """The pixels whose labels `unsupervised` may count: bool (B, H, W)."""
        kept = labels != self.ignore
        if self.settings.unsupervised_term != "equalised":
            kept = kept & (entropies < gamma)
        if self.settings.unsupervised_term != "reliable":
            kept = kept & (taught.confidence >= self.settings.ael_threshold)
        return kept

    def after_step(self, progress: Progress) -> None:
        self.teacher.follow(self.student, progress)
