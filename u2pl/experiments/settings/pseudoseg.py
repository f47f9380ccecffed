"""The settings of PseudoSeg."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from u2pl.experiments.settings.strong_view import StrongView
from u2pl.experiments.values import Positive, Probability


class PseudoSeg(StrongView):
    """PseudoSeg (Zou et al., ICLR 2021): decoder and refined class activation maps make a soft label together."""

    # In forwards of an image, a backward taken as two: 16 x (3 labelled + 3 strong + 1 weak + 0.7 for the encoder in
    # eval mode) of 144 in Mean Teacher.
    step_cost: ClassVar[float] = 123 / 144
    step_memory: ClassVar[float] = 1.01

    pseudoseg_weight: Annotated[float, Field(ge=0)] = 1.0  # of the loss on the strong view
    pseudoseg_temperature: Annotated[float, Field(gt=0)] = 0.5  # T: below 1 sharpens
    pseudoseg_fusion: Probability = 0.5  # weight of the decoder; the rest is that of the maps
    # output stride at which the maps are refined: os8 has four times as many tokens, and 16 times the memory
    pseudoseg_grid: Literal["os16", "os8"] = "os16"
    # mode of the encoder that gives maps and features of the weak view: a pass of its own, or that of the decoder
    pseudoseg_cam_mode: Literal["eval", "train"] = "eval"
    # what both logits are divided by, and over what it is taken; a sum over more than a pixel leaves both near uniform
    pseudoseg_normaliser: Literal["root_mean_square", "root_sum_square"] = "root_mean_square"
    pseudoseg_norm: Literal["batch", "share", "image", "pixel"] = "batch"
    pseudoseg_attention_dim: Positive = 128  # channels of key and query
    pseudoseg_classifier_weight: Annotated[float, Field(ge=0)] = 1.0
    pseudoseg_attention_weight: Annotated[float, Field(ge=0)] = 1.0
