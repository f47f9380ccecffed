"""The settings of CPS."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from u2pl.experiments.settings.common import Stream, Streams


class CPS(Streams):
    """Cross pseudo supervision (Chen et al., CVPR 2021): two networks label each other, none is averaged."""

    trained: ClassVar[int] = 2
    # In forwards of an image, a backward taken as two: 2 networks x (3 x 32 + 16 for labels) of 144 in Mean Teacher.
    step_cost: ClassVar[float] = 224 / 144
    step_memory: ClassVar[float] = 2.00

    # lambda. Released: with CutMix 1 on VOC and 5 on Cityscapes, without 1.5 and 6
    cps_weight: Annotated[float, Field(ge=0)] = 1.0
    cps_mixing: Literal["cutmix", "none"] = "cutmix"
    # three boxes that toggle, of 1/4 to 1/2 of the image in all; or the box of the suite's CutMix, of half of it
    cps_masks: Literal["three_boxes", "half_box"] = "three_boxes"
    # images are mixed with others of the batch, or with those of a second batch
    cps_partner: Literal["batch", "second_batch"] = "batch"
    cps_labelled: bool = False  # the labelled images take part in the cross term as well
    cps_label_mode: Literal["train", "eval"] = "train"  # of the passes that make the labels
    evaluated: Literal["first", "mean"] = "first"  # network, or the mean of both networks' probabilities

    @property
    def kept(self) -> int:
        return 2 if self.evaluated == "mean" else 1

    @property
    def streams(self) -> frozenset[Stream]:
        second: frozenset[Stream] = frozenset({"unlabelled_2"})
        return super().streams | (second if self.cps_partner == "second_batch" else frozenset())
