"""The settings of the methods: one class each, made of what they share (`common`) and fields of their own.

Defaults are the paper's, and where it is silent the released code's; `params/fidelity.yaml` holds what the presets
change per data set and method. docs/fidelity.md has one row per setting.
"""

from u2pl.experiments.settings.common import (
    Averaging,
    Contrast,
    Draw,
    Mixing,
    Over,
    OverImages,
    Reading,
    Stream,
    Streams,
    Training,
)
from u2pl.experiments.settings.cps import CPS
from u2pl.experiments.settings.paper import U2PL, CutMix, MeanTeacher, SupOnly
from u2pl.experiments.settings.pc2seg import PC2Seg
from u2pl.experiments.settings.pseudoseg import PseudoSeg
from u2pl.experiments.settings.strong_view import StrongView

__all__ = [
    "SETTINGS",
    "unreliable_share",
    "Averaging",
    "CPS",
    "Contrast",
    "CutMix",
    "Draw",
    "MeanTeacher",
    "Mixing",
    "Over",
    "OverImages",
    "PC2Seg",
    "PseudoSeg",
    "Reading",
    "Stream",
    "Streams",
    "StrongView",
    "SupOnly",
    "Training",
    "U2PL",
]

SETTINGS: dict[str, type[Training]] = {
    "suponly": SupOnly,
    "mean_teacher": MeanTeacher,
    "cutmix": CutMix,
    "u2pl": U2PL,
    "cps": CPS,
    "pseudoseg": PseudoSeg,
    "pc2seg": PC2Seg,
}


def unreliable_share(settings: Training) -> float:
    """alpha_0 of Eq. 7, by which figures draw unreliable pixels; the default for methods that have none."""
    return settings.alpha_0 if isinstance(settings, Contrast) else Contrast().alpha_0
