"""The methods the tables compare, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from u2pl.components.progress import Progress
from u2pl.errors import UserError
from u2pl.methods.ael import AEL
from u2pl.methods.cct import CCT
from u2pl.methods.cps import CPS
from u2pl.methods.cutmix import CutMix
from u2pl.methods.gct import GCT
from u2pl.methods.mean_teacher import MeanTeacher
from u2pl.methods.method import Losses, Method, Setup
from u2pl.methods.pc2seg import PC2Seg
from u2pl.methods.pseudoseg import PseudoSeg
from u2pl.methods.suponly import SupOnly
from u2pl.methods.u2pl import U2PL
from u2pl.methods.u2pl_ael import U2PLAEL

if TYPE_CHECKING:
    from u2pl.experiments.settings import Training

__all__ = ["METHODS", "Losses", "Method", "Progress", "Setup", "build_method", "method_class"]

METHODS: dict[str, type[Any]] = {
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


def method_class(name: str) -> type[Method]:
    """The class of a method. Raises UserError for an unknown name."""
    if name not in METHODS:
        raise UserError("method", name, f"one of {', '.join(METHODS)}")
    return METHODS[name]


def build_method(name: str, settings: Training, setup: Setup) -> Method:
    """The method `name` on new networks. Raises UserError for an unknown name."""
    return method_class(name)(settings, setup)
