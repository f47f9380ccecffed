"""U2PL: Algorithm 1 of the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from u2pl.components import contrast
from u2pl.components.memory_bank import MemoryBank
from u2pl.components.pseudo_labels import alpha_t, drop_unreliable, entropy, entropy_threshold, percentile
from u2pl.methods.cutmix import CutMix
from u2pl.methods.progress import Progress
from u2pl.methods.suponly import upsample

if TYPE_CHECKING:
    from u2pl.experiments.schema import MethodSettings


class U2PL(CutMix):
    """L_s + lambda_u L_u + lambda_c L_c (Eq. 1), on the mixed unlabelled images.

    The teacher looks twice. In eval mode at the unmixed images: their arg max is the pseudo-label, mixed afterwards.
    In train mode at labelled and mixed images: entropy, probabilities, ranks and representations. Entropies are taken
    at the size of the images, the contrastive loss at the size of the network's output, with labels and entropies
    brought there by nearest neighbour.
    """

    def __init__(self, settings: MethodSettings, student: nn.Module, n_classes: int, ignore_label: int) -> None:
        super().__init__(settings, student, n_classes, ignore_label)
        capacities = [settings.bank_size_background, *[settings.bank_size] * (n_classes - 1)]
        self.bank = MemoryBank(capacities, self._channels())

    @torch.no_grad()
    def _channels(self) -> int:
        """Channels of the representation: the network is asked, so that any network fits. Eval mode draws nothing."""
        weights = next(self.teacher.parameters())
        output = self.teacher.eval()(weights.new_zeros(1, 3, 64, 64))
        self.teacher.train()
        return output["representation"].shape[1]

    def losses(
        self, masks: Tensor, labels: Tensor, output: dict[str, Tensor], view: dict[str, Tensor], progress: Progress
    ) -> dict[str, Tensor]:
        """See `MeanTeacher.losses`; adds "contrastive" (unweighted L_c), "threshold" (gamma_t, nats) and "reliable"."""
        size = (labels.shape[1], labels.shape[2])
        settings = self.settings
        alpha = alpha_t(settings.alpha_0, progress.epoch, progress.epochs, dynamic=settings.dpa)
        entropies = entropy(upsample(view["logits"][len(masks) :], size).softmax(dim=1))
        gamma = entropy_threshold(entropies, alpha)
        labels = drop_unreliable(labels, entropies, gamma, self.ignore_label)
        parts = super().losses(masks, labels, output, view, progress)
        parts["threshold"] = gamma
        parts["reliable"] = (labels != self.ignore_label).float().mean()
        if settings.contrastive_weight > 0:
            low = percentile(entropies, 100 * alpha)
            selected = contrast.entropy_condition(entropies, gamma, low, settings.negatives)
            loss = self.contrastive(masks, labels, selected, output, view, progress)
            parts["loss"] = parts["loss"] + settings.contrastive_weight * loss
            parts["contrastive"] = loss.detach()
        return parts

    def contrastive(
        self,
        masks: Tensor,
        labels: Tensor,
        selected: Tensor,
        output: dict[str, Tensor],
        view: dict[str, Tensor],
        progress: Progress,
    ) -> Tensor:
        """L_c, unweighted; masks, pseudo-labels and selected pixels are (B, H, W) at the size of the images."""
        settings, n = self.settings, len(masks)
        probs = view["logits"].float().softmax(dim=1)
        size = (probs.shape[2], probs.shape[3])
        masks, labels, selected = (nearest(each, size) for each in (masks, labels, selected))
        anchors = contrast.anchor_pixels(probs, torch.cat([masks, labels]), settings.delta_p)
        ranks = {"r_low": settings.r_low}
        negatives = torch.cat(
            [
                contrast.labelled_negatives(probs[:n], masks, self.ignore_label, **ranks),
                contrast.unlabelled_negatives(probs[n:], selected, r_high=settings.r_high, **ranks),
            ]
        )
        if not settings.bank:
            self.bank.clear()
        return contrast.contrastive_loss(
            output["representation"],
            view["representation"],
            anchors,
            negatives,
            self.bank,
            n_anchors=settings.anchors_per_class,
            n_negatives=settings.negatives_per_anchor,
            tau=settings.tau,
            generator=progress.generator,
        )


def nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W) of any type to (B, *size) by nearest neighbour, as `F.interpolate(mode="nearest")` does for floats."""
    rows, columns = (
        torch.arange(new, device=values.device) * old // new for new, old in zip(size, values.shape[1:], strict=True)
    )
    return values[:, rows[:, None], columns]
