"""GCT: two networks guided by a detector of their flaws (guided collaborative training, Ke et al., ECCV 2020)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from u2pl.components.ensemble import MeanOfNetworks
from u2pl.components.flaws import consistency_targets, flaw_target, handled, means
from u2pl.components.outputs import summed, two_streams
from u2pl.components.progress import Progress
from u2pl.components.rampup import sigmoid_rampup
from u2pl.components.resize import upsample
from u2pl.components.supervised import labelled_loss
from u2pl.components.taught import Taught, unmixed
from u2pl.methods.method import Batch, Losses, Method, Setup
from u2pl.models.flaw_detector import FlawDetector

if TYPE_CHECKING:
    from u2pl.experiments import settings as s
    from u2pl.experiments.schema import Recipe


class GCT(Method):
    """L = sum over networks k of [L_s(k) + w(t) MSE(p_k, t_k) + FC * mean(both_bad * D(x, p_k)^2)] + L_D.

    D(x, p) is the detector's map of flaws, t_k the probabilities of the network with the smaller flaw at each pixel,
    both_bad where both maps exceed xi. L_D compares D's maps of the labelled images with the networks' errors. One
    backward pass serves all: the correction sees a frozen D, and L_D sees detached p_k. Since D is not updated in
    between, it equals the released order of two steps.
    """

    settings: s.GCT

    def __init__(self, settings: s.GCT, setup: Setup) -> None:
        super().__init__(settings, setup)
        # The same encoder weights, and heads of two draws.
        self.first, self.second = setup.network(), setup.network()
        self.detector = FlawDetector(setup.n_classes, settings.gct_detector_width)

    @property
    def evaluated(self) -> nn.Module:
        return MeanOfNetworks([self.first, self.second]) if self.settings.evaluated == "mean" else self.first

    @classmethod
    def new_evaluated(cls, settings: Any, network: Callable[[], nn.Module]) -> nn.Module:
        return MeanOfNetworks([network(), network()]) if settings.evaluated == "mean" else network()

    def optimisers(self, recipe: Recipe) -> list[torch.optim.Optimizer]:
        rate, schedule = self.settings.gct_detector_rate, self.settings.gct_detector_schedule
        group = {"params": list(self.detector.parameters())} | ({"initial_lr": rate} if schedule == "poly" else {})
        adam = torch.optim.Adam([group], lr=rate, betas=(0.9, 0.99))
        return [self.sgd(recipe, self.first, self.second), adam]

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        settings, images_l, images_u, masks = self.settings, batch["image_l"], batch["image_u"], batch["mask_l"]
        n, images, networks = len(masks), torch.cat([images_l, images_u]), (self.first, self.second)

        def outputs(network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            return two_streams(network, images_l, images_u, settings.streams_forward)

        # 0. What each network predicts before it learns, and where the detector sees flaws in it.
        before: list[Tensor] = []
        if settings.gct_prepass == "separate":
            with torch.no_grad():
                before = [probabilities(outputs(network), masks) for network in networks]
        trained = [outputs(network) for network in networks]
        probs = [probabilities(output, masks) for output in trained]
        before = before or [p.detach() for p in probs]
        flaws = [self.detector(images, p) for p in before]
        one, two = (handled(values.detach(), settings.gct_low_maps) for values in flaws)
        targets, both_bad = consistency_targets((before[0], before[1]), (one, two), settings.gct_threshold)

        self.taught = Taught(targets[0][n:], unmixed)  # what the first network learns

        # 1. The networks learn from labels, from each other, and where both are bad from the frozen detector.
        first, second = (labelled_loss(own, masks, self.ignore, settings) for own, _ in trained)
        consistency = means(F.mse_loss(p, t) for p, t in zip(probs, targets, strict=True))
        correction = means(torch.where(both_bad, self.detector.frozen(images, p).square(), 0.0) for p in probs)

        # 2. The detector learns the errors on labelled images.
        errors = [flaw_target(p[:n], masks, self.ignore, settings.gct_mu, settings.gct_nu) for p in before]
        detected = [cleared(f[:n]) if settings.gct_negative_flaws == "cleared" else f[:n] for f in flaws]
        detector = means(F.mse_loss(f, e) for f, e in zip(detected, errors, strict=True)) / 2

        return summed(
            supervised=first + second,
            consistency=self.rampup(progress) * settings.gct_dc_weight * consistency,
            correction=settings.gct_fc_weight * correction,
            detector=settings.gct_fd_weight * detector,
        )

    def rampup(self, progress: Progress) -> float:
        """w(t) without its factor."""
        unit = progress.steps / progress.epochs if self.settings.gct_rampup_unit == "epochs" else progress.steps
        return sigmoid_rampup(progress.step, self.settings.gct_rampup * unit)


def probabilities(output: tuple[dict[str, Tensor], dict[str, Tensor]], masks: Tensor) -> Tensor:
    """The softmax of the outputs on labelled, then unlabelled images, at the size of the masks: (2 B, C, H, W)."""
    logits = torch.cat([part["logits"] for part in output])
    return upsample(logits, (masks.shape[1], masks.shape[2])).softmax(dim=1)


def cleared(flaws: Tensor) -> Tensor:
    """Negative flaws as 0, with the gradient of what was not changed: the released code clears them in `data`."""
    return flaws + (flaws.clamp(min=0) - flaws).detach()
