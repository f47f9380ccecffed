"""The settings of SupOnly, MT, CutMix and U2PL."""

from typing import ClassVar, Literal

from u2pl.experiments.settings.common import Averaging, Contrast, Mixing, Stream, Training
from u2pl.experiments.values import Positive


class SupOnly(Training):
    step_memory: ClassVar[float] = 0.52

    # an epoch: one pass over the labelled list, or as many steps as the semi-supervised methods take
    suponly_epoch_unit: Literal["labelled", "iterations"] = "labelled"
    # what is evaluated: the network, or its average at the decay that the teachers have
    suponly_evaluated: Literal["student", "average"] = "student"
    suponly_group_size: Positive = 4  # labelled images on a GPU of the released code, which has four on Cityscapes, too

    @property
    def averaged(self) -> int:
        return int(self.suponly_evaluated == "average")

    @property
    def supervised_group(self) -> int:
        return self.suponly_group_size

    @property
    def streams(self) -> frozenset[Stream]:
        return frozenset({"labelled"})


class MeanTeacher(Averaging):
    pass


class CutMix(Averaging, Mixing):
    oracle: bool = False  # the true labels in place of the teacher's: what perfect pseudo-labels would give

    @property
    def streams(self) -> frozenset[Stream]:
        return super().streams | frozenset({"oracle"} if self.oracle else ())


class U2PL(Averaging, Mixing, Contrast):
    step_memory: ClassVar[float] = 1.04
