"""CCT: auxiliary decoders on perturbed features learn the main decoder's prediction (Ouali et al., CVPR 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from u2pl.components.feature_perturbations import Perturbations
from u2pl.components.outputs import channels_of, summed, two_streams
from u2pl.components.precision import at_least_float32
from u2pl.components.progress import Progress
from u2pl.components.pseudo_labels import most_probable
from u2pl.components.rampup import sigmoid_rampup
from u2pl.components.resize import upsample
from u2pl.components.supervised import labelled_loss
from u2pl.components.taught import Taught, unmixed
from u2pl.methods.method import Batch, Losses, Method, Setup
from u2pl.models.deeplab import head
from u2pl.ranks.collectives import all_reduce_sum, world_size

if TYPE_CHECKING:
    from u2pl.experiments import settings as s


class CCT(Method):
    """L_s + w(t) * mean over k of |softmax g_k(perturbed_k(z)) - softmax g(z)|^2 on the unlabelled images.

    g is the network's own decoder, whose prediction is a constant there; the square is a mean over images, classes and
    pixels. So g learns from L_s, and what makes z from both terms. w(t) rises in the first steps.

    Also logged: "consistency", the unweighted mean.
    """

    settings: s.CCT

    def __init__(self, settings: s.CCT, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.student = setup.network()
        self.auxiliary = nn.ModuleList(self.new_decoders(len(settings.perturbations)))

    def new_decoders(self, number: int) -> list[nn.Module]:
        """Decoders like the last part of the network's own, drawn afresh: features to logits (B, n_classes, h, w)."""
        channels = channels_of(self.student, "decoded")
        if self.settings.cct_decoder == "classifier":
            return [nn.Conv2d(channels, self.n_classes, 1) for _ in range(number)]
        inputs = channels_of(self.student, "features")
        dropout = next((m.p for m in self.student.modules() if isinstance(m, nn.Dropout2d)), 0.0)
        return [head(inputs, channels, self.n_classes, dropout) for _ in range(number)]

    @property
    def evaluated(self) -> nn.Module:
        return self.student

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        settings, masks = self.settings, batch["mask_l"]
        streams = batch["image_l"], batch["image_u"]
        labelled, unlabelled = two_streams(self.student, *streams, settings.streams_forward)
        supervised = labelled_loss(labelled, masks, self.ignore, settings)

        # The main prediction p teaches; where its class is not the background, there are objects.
        size = (masks.shape[1], masks.shape[2])
        prediction = self.probabilities(unlabelled["logits"].detach(), size)
        self.taught = Taught(prediction, unmixed)
        foreground = torch.ones_like(prediction[:, 0], dtype=torch.bool)
        if settings.cct_background == "class_0":
            foreground = most_probable(prediction) != 0

        # Each auxiliary decoder sees a perturbation of its own.
        features = unlabelled["decoded" if settings.cct_decoder == "classifier" else "features"]
        perturbations = Perturbations(features, foreground, size[0], settings.cct_vat_radius, progress.generator)
        errors = []
        for kind, decoder in zip(settings.perturbations, self.auxiliary, strict=True):
            probs = self.probabilities(perturbations.logits(kind, decoder), size)
            errors.append((probs - prediction).square().mean())
        consistency = all_reduce_sum(torch.stack(errors).mean()) / world_size()  # every rank has as many images

        weight = settings.cct_weight * sigmoid_rampup(progress.step, settings.cct_rampup * progress.steps)
        losses = summed(supervised=supervised, unsupervised=weight * consistency)
        return losses | {"consistency": consistency.detach()}

    def probabilities(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Softmax of logits (B, C, h, w), brought to `size` before where crops are compared."""
        full = self.settings.cct_resolution == "crop"
        return (upsample(logits, size) if full else at_least_float32(logits)).softmax(dim=1)
