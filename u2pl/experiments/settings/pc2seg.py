"""The settings of PC2Seg."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from u2pl.experiments.settings.strong_view import StrongView
from u2pl.experiments.values import Positive


class PC2Seg(StrongView):
    """After the abstract of PC2Seg (Zhong et al., ICCV 2021); no code is public, and what the abstract leaves open is
    chosen here or from memory.
    """

    # In forwards of an image, a backward taken as two: 16 x (3 labelled + 3 strong + 1 weak) of 144 in Mean Teacher.
    step_cost: ClassVar[float] = 112 / 144
    step_memory: ClassVar[float] = 1.02

    pc2seg_consistency_weight: Annotated[float, Field(ge=0)] = 1.0  # chosen here
    pc2seg_contrast_weight: Annotated[float, Field(ge=0)] = 0.1  # chosen here
    pc2seg_tau: Annotated[float, Field(gt=0)] = 0.07  # from memory
    # a projection of its own of what the network's heads see, chosen here; or the network's representation head
    pc2seg_projection: Literal["projection", "represent"] = "projection"
    pc2seg_dim: Positive = 128  # channels of `projection`; from memory
    pc2seg_anchors: Positive = 64  # pixels per strong view; chosen here
    pc2seg_negatives: Positive = 512  # pixels of the batch's weak views, for all anchors; chosen here
    # those that an anchor meets: all, those of other images, and each weighing with the probability that its class is
    # another; the default is from memory
    pc2seg_sampling: Literal["uniform", "other_image", "debiased", "other_image_debiased"] = "other_image_debiased"
