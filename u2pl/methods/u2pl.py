"""U2PL: Algorithm 1 of the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from u2pl.components import contrast
from u2pl.components.collectives import gather, total
from u2pl.components.contrast_released import negatives_of_own_class, positional_banks
from u2pl.components.memory_bank import MemoryBank
from u2pl.components.mixing import cutmix
from u2pl.components.precision import at_least_float32
from u2pl.components.pseudo_labels import alpha_t, drop_unreliable, entropy, entropy_threshold, percentile
from u2pl.methods.cutmix import CutMix
from u2pl.methods.progress import Progress
from u2pl.methods.suponly import upsample

if TYPE_CHECKING:
    from u2pl.experiments.settings import U2PL as Settings


class U2PL(CutMix):
    """L_s + lambda_u L_u + lambda_c L_c (Eq. 1), on the mixed unlabelled images.

    The teacher's view (`teach`) is in two readings; entropies are taken at the size of the images, the contrastive loss
    at the size of the network's output, with labels and entropies brought there by nearest neighbour.
    """

    settings: Settings

    def __init__(self, settings: Settings, student: nn.Module, n_classes: int, ignore_label: int) -> None:
        super().__init__(settings, student, n_classes, ignore_label)
        capacities = [settings.bank_size_background, *[settings.bank_size] * (n_classes - 1)]
        self.bank = MemoryBank(capacities, self._channels(), saved=settings.bank_in_checkpoint)

    @torch.no_grad()
    def _channels(self) -> int:
        """Channels of the representation: the network is asked, so that any network fits. Eval mode draws nothing."""
        weights = next(self.teacher.parameters())
        output = self.teacher.eval()(weights.new_zeros(1, 3, 64, 64))
        self.teacher.train()
        return output["representation"].shape[1]

    def teach(self, labelled: Tensor, unlabelled: Tensor, progress: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        """The unlabelled images as the student gets them, and what the teacher says of both.

        At the size of the images, unlabelled only: "labels" and "entropies" (B, H, W). At that of the network's output,
        labelled first: "probs" (2B, C, h, w) and "representation" (2B, D, h, w).
        """
        if self.settings.teacher_view == "paper":
            return self.one_view(labelled, unlabelled, progress)
        return self.two_views(labelled, unlabelled, progress)

    @torch.no_grad()
    def one_view(self, labelled: Tensor, unlabelled: Tensor, progress: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        """The paper: one prediction gives p, its entropy, pseudo-label and ranks, and the representations.

        The paper names neither the mode of that pass nor a mixed image. Chosen: eval mode, as for the pseudo-labels of
        the released code, on the labelled and the unmixed images. Then everything is mixed by the boxes of the
        student's images: labels and entropies at full size (so gamma_t is the percentile over the mixed batch),
        probabilities and representations at the output's size by the nearest pixels of the same boxes. A train-mode
        pass is left only where the teacher's batch-norm statistics need it; nothing of it is used.
        """
        n, boxes = len(labelled), self.boxes(unlabelled, progress)
        images = cutmix(unlabelled, boxes)
        before_mix = self.settings.pseudo_label == "before_mix"
        output = self.teacher.eval()(torch.cat([labelled, unlabelled if before_mix else images]))
        full = upsample(output["logits"][n:], (images.shape[2], images.shape[3])).softmax(dim=1)
        view = {"labels": full.argmax(dim=1), "entropies": entropy(full)}
        dense = {"probs": at_least_float32(output["logits"]).softmax(dim=1), "representation": output["representation"]}
        if before_mix:
            view = {name: cutmix(values, boxes) for name, values in view.items()}
            for name, values in dense.items():
                small = nearest(boxes, (values.shape[2], values.shape[3]))
                dense[name] = torch.cat([values[:n], cutmix(values[n:], small)])
        self.move_statistics(torch.cat([labelled, images]))
        return images, view | dense

    @torch.no_grad()
    def two_views(self, labelled: Tensor, unlabelled: Tensor, progress: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        """The released code: pseudo-labels in eval mode, all else in train mode.

        The first view is of the unmixed images and its arg max is mixed afterwards; the second, of labelled and mixed
        images, gives entropies, probabilities, ranks and representations.
        """
        images, labels = self.unlabelled(unlabelled, progress)
        output = self.training_pass(torch.cat([labelled, images]))
        full = upsample(output["logits"][len(labelled) :], (images.shape[2], images.shape[3])).softmax(dim=1)
        probs = at_least_float32(output["logits"]).softmax(dim=1)
        view = {"labels": labels, "entropies": entropy(full), "probs": probs}
        return images, view | {"representation": output["representation"]}

    def losses(
        self, masks: Tensor, output: dict[str, Tensor], view: dict[str, Tensor], progress: Progress
    ) -> dict[str, Tensor]:
        """See `MeanTeacher.losses`; adds "contrastive" (unweighted L_c), "threshold" (gamma_t, nats) and "reliable"."""
        settings, entropies = self.settings, view["entropies"]
        alpha = alpha_t(settings.alpha_0, progress.epoch, progress.epochs, dynamic=settings.dpa)
        everywhere = gather(entropies)  # thresholds are those of the global batch
        gamma = entropy_threshold(everywhere, alpha)
        reliable = drop_unreliable(view["labels"], entropies, gamma, self.ignore_label)
        parts = super().losses(masks, output, view | {"labels": reliable}, progress)
        parts["threshold"] = gamma
        parts["reliable"] = total((reliable != self.ignore_label).sum()) / everywhere.numel()
        if settings.contrastive_weight > 0:
            low = percentile(everywhere, 100 * alpha)
            if settings.unlabelled_anchor_entropy == "released":
                reliable = torch.where(entropies <= low, view["labels"], self.ignore_label)
            selected = contrast.entropy_condition(entropies, gamma, low, settings.negatives)
            loss = self.contrastive(masks, reliable, selected, output["representation"], view, progress)
            parts["loss"] = parts["loss"] + settings.contrastive_weight / settings.contrastive_world_size * loss
            parts["contrastive"] = loss.detach()
        return parts

    def contrastive(
        self,
        masks: Tensor,
        reliable: Tensor,
        selected: Tensor,
        student: Tensor,
        view: dict[str, Tensor],
        progress: Progress,
    ) -> Tensor:
        """L_c, unweighted, for the student's representations (2B, D, h, w).

        masks: ground truth; reliable: the pseudo-labels that may make anchors, others ignored; selected: the unlabelled
        pixels that may be negatives; all (B, H, W) at the size of the images.
        """
        settings, n, probs = self.settings, len(masks), view["probs"]
        size = (probs.shape[2], probs.shape[3])
        labels, masks, reliable, selected = (nearest(v, size) for v in (view["labels"], masks, reliable, selected))
        # A_c (Eq. 9 to 11), and the same without p > delta_p
        low_entropy = contrast.members(torch.cat([masks, reliable]), self.n_classes)
        anchors = contrast.anchor_pixels(probs, torch.cat([masks, reliable]), settings.delta_p)
        # N_c (Eq. 13 to 16)
        ranks = {"r_low": settings.r_low}
        labelled = contrast.labelled_negatives(probs[:n], masks, self.ignore_label, **ranks)
        unlabelled = contrast.unlabelled_negatives(probs[n:], selected, r_high=settings.r_high, **ranks)
        negatives = torch.cat([labelled, unlabelled])
        if settings.negative_label_mask == "released":
            own = contrast.members(torch.cat([masks, labels]), self.n_classes)
            negatives = negatives_of_own_class(negatives, own)
        if not settings.bank:
            self.bank.clear()
        present = total(low_entropy.any(dim=(0, 2, 3)).int()) > 0
        return contrast.contrastive_loss(
            student,
            view["representation"],
            anchors,
            negatives,
            self.bank,
            n_anchors=settings.anchors_per_class,
            n_negatives=settings.negatives_per_anchor,
            tau=settings.tau,
            generator=progress.generator,
            centred=low_entropy if settings.positive_filter == "released" else None,
            banks=positional_banks(present) if settings.anchor_class_indexing == "released" else None,
            n_classes=present.sum() if settings.contrastive_normaliser == "released" else None,
        )


def nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W) of any type to (B, *size) by nearest neighbour, as `F.interpolate(mode="nearest")` does for floats."""
    rows, columns = (
        torch.arange(new, device=values.device) * old // new for new, old in zip(size, values.shape[1:], strict=True)
    )
    return values[:, rows[:, None], columns]
