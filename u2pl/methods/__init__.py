"""The methods the tables compare, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from u2pl.errors import UserError
from u2pl.methods.cutmix import CutMix
from u2pl.methods.mean_teacher import MeanTeacher
from u2pl.methods.progress import Progress
from u2pl.methods.suponly import SupOnly
from u2pl.methods.u2pl import U2PL

if TYPE_CHECKING:
    from u2pl.experiments.settings import Training

__all__ = ["METHODS", "Progress", "SupOnly", "build_method"]

METHODS: dict[str, type[SupOnly]] = {
    "suponly": SupOnly,
    "mean_teacher": MeanTeacher,
    "cutmix": CutMix,
    "u2pl": U2PL,
}


def build_method(name: str, settings: Training, student: nn.Module, n_classes: int, ignore_label: int) -> SupOnly:
    """The method `name` training `student`; its teacher, where it has one, starts as a copy of it.

    Raises UserError for an unknown name.
    """
    if name not in METHODS:
        raise UserError("method", name, f"one of {', '.join(METHODS)}")
    return METHODS[name](settings, student, n_classes, ignore_label)
