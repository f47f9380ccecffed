"""The settings of the methods: one class each, made of what they share (`common`) and fields of their own.

Defaults are the paper's, and where it is silent the released code's; `params/fidelity.yaml` holds what the presets
change per data set and method. docs/fidelity.md has one row per setting.
"""

from u2pl.experiments.settings.ael import AEL, U2PLAEL, Equalised
from u2pl.experiments.settings.cct import CCT
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
from u2pl.experiments.settings.gct import GCT
from u2pl.experiments.settings.paper import U2PL, CutMix, MeanTeacher, SupOnly
from u2pl.experiments.settings.pc2seg import PC2Seg
from u2pl.experiments.settings.pseudoseg import PseudoSeg
from u2pl.experiments.settings.strong_view import StrongView

__all__ = [
    "SETTINGS",
    "unreliable_share",
    "AEL",
    "Averaging",
    "CCT",
    "CPS",
    "Contrast",
    "CutMix",
    "Draw",
    "GCT",
    "Equalised",
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
    "U2PLAEL",
]

SETTINGS: dict[str, type[Training]] = {
    "suponly": SupOnly,
    "mean_teacher": MeanTeacher,
    "cutmix": CutMix,
    "u2pl": U2PL,
    "cps": CPS,
    "cct": CCT,
    "gct": GCT,
    "ael": AEL,
    "u2pl_ael": U2PLAEL,
    "pseudoseg": PseudoSeg,
    "pc2seg": PC2Seg,
}


def unreliable_share(settings: Training) -> float:
    """alpha_0 of Eq. 7, by which figures draw unreliable pixels; the default for methods that have none."""
    return settings.alpha_0 if isinstance(settings, Contrast) else Contrast().alpha_0
