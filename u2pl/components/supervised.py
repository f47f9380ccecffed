"""L_s (Eq. 2) of a network's heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from u2pl.components.groups import extent
from u2pl.components.ohem import ohem_loss
from u2pl.components.pseudo_labels import supervised_loss
from u2pl.components.resize import upsample

if TYPE_CHECKING:
    from u2pl.experiments.settings import Training

AUXILIARY_WEIGHT = 0.4


def labelled_loss(output: dict[str, Tensor], masks: Tensor, ignore: int, settings: Training) -> Tensor:
    """L_s for the output on labelled images, plus 0.4 times that of the auxiliary head where there is one; a scalar.

    output: "logits" and perhaps "auxiliary", both (B, C, h, w); masks: (B, H, W). With `ohem_auxiliary` both heads
    learn from their hard pixels only (see `ohem_loss`). A share is one of `settings.supervised_group` images.
    """
    share, n, size = settings.supervised_group, len(masks), (masks.shape[1], masks.shape[2])
    group = extent(settings.loss_groups, share, n)

    def loss(logits: Tensor) -> Tensor:
        full = upsample(logits, size)
        if settings.cityscapes_loss == "cross_entropy":
            return supervised_loss(full, masks, ignore, group)
        return ohem_loss(full, masks, ignore, group, extent(settings.ohem_groups, share, n))

    auxiliary = output.get("auxiliary")
    main = loss(output["logits"])
    return main if auxiliary is None else main + AUXILIARY_WEIGHT * loss(auxiliary)
