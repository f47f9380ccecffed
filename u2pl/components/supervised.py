"""L_s (Eq. 2) of a network's heads."""

from torch import Tensor

from u2pl.components.ohem import ohem_loss
from u2pl.components.pseudo_labels import supervised_loss
from u2pl.components.resize import upsample

AUXILIARY_WEIGHT = 0.4


def labelled_loss(output: dict[str, Tensor], masks: Tensor, ignore: int, cityscapes_loss: str) -> Tensor:
    """L_s for the output on labelled images, plus 0.4 times that of the auxiliary head where there is one; a scalar.

    output: "logits" and perhaps "auxiliary", both (B, C, h, w); masks: (B, H, W). With `ohem_auxiliary` both heads
    learn from their hard pixels only (see `ohem_loss`). The released code finds these in each process by itself, here
    they are of the global batch.
    """
    criterion = ohem_loss if cityscapes_loss == "ohem_auxiliary" else supervised_loss
    heads = {"logits": 1.0, "auxiliary": AUXILIARY_WEIGHT}
    size = (masks.shape[1], masks.shape[2])
    losses = [
        weight * criterion(upsample(output[head], size), masks, ignore)
        for head, weight in heads.items()
        if head in output
    ]
    return sum(losses[1:], losses[0])
