"""U2PL: Algorithm 1 of the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from u2pl.components.groups import extent, of_images
from u2pl.components.mixing import boxes_for, cutmix
from u2pl.components.outputs import channels_of, halves, summed
from u2pl.components.precision import at_least_float32
from u2pl.components.progress import Progress
from u2pl.components.pseudo_labels import (
    alpha_t,
    drop_unreliable,
    entropy,
    group_percentiles,
    most_probable,
    unsupervised_loss,
)
from u2pl.components.resize import nearest, upsample
from u2pl.components.supervised import labelled_loss
from u2pl.components.taught import Taught
from u2pl.components.teacher import Teacher
from u2pl.components.unreliable_contrast import UnreliableContrast, View
from u2pl.methods.method import Batch, Losses, Method, Setup
from u2pl.ranks.collectives import all_gather, all_reduce_sum

if TYPE_CHECKING:
    from u2pl.experiments import settings as s


class U2PL(Method):
    """L_s + lambda_u L_u + lambda_c L_c (Eq. 1), on the mixed unlabelled images; in the warm-up L_s alone.

    Also logged: "contrastive" (unweighted L_c), "threshold" (gamma_t, nats) and "reliable" (share of pixels).
    """

    settings: s.U2PL

    def __init__(self, settings: s.U2PL, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.student = setup.network()
        self.teacher = Teacher(self.student, settings)
        self.contrast = UnreliableContrast(settings, setup.n_classes, setup.ignore, channels_of(self.student))

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

        # The student sees labelled and mixed images, the teacher says what it thinks of them (Eq. 5).
        boxes = boxes_for(batch["image_u"], settings.cutmix_probability, progress.generator, settings.cutmix_box)
        mixed = cutmix(batch["image_u"], boxes, settings.group_size)
        look = self.one_view if settings.teacher_view == "paper" else self.two_views
        view = look(images_l, batch["image_u"], mixed, boxes)
        output = self.student(torch.cat([images_l, mixed]))
        labelled, unlabelled = halves(output, n)

        # gamma_t parts reliable from unreliable pixels (Eq. 6 and 7).
        counting = settings.alpha_epochs, settings.warmup_epochs
        alpha = alpha_t(settings.alpha_0, progress.epoch, progress.epochs, *counting, dynamic=settings.dpa)
        group = extent(settings.threshold_groups, settings.group_size, n)
        everywhere = all_gather(view.entropies)
        thresholds = group_percentiles(everywhere, 100 * (1 - alpha), group)
        gamma = of_images(thresholds, n, group)
        reliable = drop_unreliable(view.labels, view.entropies, gamma, self.ignore)

        # L_s (Eq. 2), and lambda_u L_u on the reliable pixels (Eq. 3 and 8).
        logits = upsample(unlabelled["logits"], size)
        means, weights = (extent(o, settings.group_size, n) for o in (settings.loss_groups, settings.weight_groups))
        losses = summed(
            supervised=labelled_loss(labelled, masks, self.ignore, settings),
            unsupervised=unsupervised_loss(logits, reliable, settings.eta, self.ignore, means, weights),
        )
        losses["threshold"] = thresholds.mean()
        kept = reliable != self.ignore
        losses["reliable"] = all_reduce_sum(kept.sum()) / everywhere.numel()
        taught = Taught(view.labels, lambda truth: cutmix(truth["truth_u"], boxes, settings.group_size), kept)

        # lambda_c L_c: the unreliable pixels are negatives of the classes they are not of (Eq. 4 and 9 to 16).
        if settings.contrastive_weight > 0:
            low = of_images(group_percentiles(everywhere, 100 * alpha, group), n, group)
            contrastive = self.contrast(output["representation"], view, masks, gamma, low, progress.generator)
            weight = settings.contrastive_weight / settings.contrastive_world_size
            losses["loss"] = losses["loss"] + weight * contrastive  # Eq. 1
            losses["contrastive"] = contrastive.detach()
            taught = taught._replace(keys=self.contrast.new_keys(view, masks))
        self.taught = taught
        return losses

    def after_step(self, progress: Progress) -> None:
        self.teacher.follow(self.student, progress)

    def one_view(self, labelled: Tensor, unlabelled: Tensor, mixed: Tensor, boxes: Tensor) -> View:
        """The paper: one prediction gives p, its entropy, pseudo-label and ranks, and the representations.

        The paper names neither the mode of that pass nor a mixed image. Chosen: eval mode, as for the pseudo-labels of
        the released code, on the labelled and the unmixed images. Then everything is mixed by the boxes of the
        student's images: labels and entropies at full size (so gamma_t is the percentile over the mixed batch),
        probabilities and representations at the output's size by the nearest pixels of the same boxes. A train-mode
        pass is left only where the teacher's batch-norm statistics need it; nothing of it is used.
        """
        n, group, before_mix = len(labelled), self.settings.group_size, self.settings.pseudo_label == "before_mix"
        output = self.teacher.view(torch.cat([labelled, unlabelled if before_mix else mixed]))
        full = upsample(output["logits"][n:], (mixed.shape[2], mixed.shape[3])).softmax(dim=1)
        probs, representation = at_least_float32(output["logits"]).softmax(dim=1), output["representation"]
        view = View(most_probable(full), entropy(full), probs, representation)
        if before_mix:
            small = nearest(boxes, (probs.shape[2], probs.shape[3]))
            dense = [torch.cat([values[:n], cutmix(values[n:], small, group)]) for values in (probs, representation)]
            view = View(cutmix(view.labels, boxes, group), cutmix(view.entropies, boxes, group), *dense)
        self.teacher.observe(torch.cat([labelled, mixed]))
        return view

    def two_views(self, labelled: Tensor, unlabelled: Tensor, mixed: Tensor, boxes: Tensor) -> View:
        """The released code: pseudo-labels in eval mode, all else in train mode.

        The first view is of the unmixed images and its arg max is mixed afterwards (`before_mix`); the second, of
        labelled and mixed images, gives entropies, probabilities, ranks and representations.
        """
        group, before_mix = self.settings.group_size, self.settings.pseudo_label == "before_mix"
        labels = cutmix(self.teacher.labels(unlabelled), boxes, group) if before_mix else self.teacher.labels(mixed)
        output = self.teacher.training_view(torch.cat([labelled, mixed]))
        full = upsample(output["logits"][len(labelled) :], (mixed.shape[2], mixed.shape[3])).softmax(dim=1)
        probs = at_least_float32(output["logits"]).softmax(dim=1)
        return View(labels, entropy(full), probs, output["representation"])
