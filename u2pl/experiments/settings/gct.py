"""The settings of GCT."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from u2pl.experiments.settings.common import Streams
from u2pl.experiments.values import Probability


class GCT(Streams):
    """Guided collaborative training (Ke et al., ECCV 2020): two networks, and a detector of their flaws."""

    trained: ClassVar[int] = 2
    # In forwards of an image, a backward taken as two: 2 networks x (32 + 3 x 32), and 20 for the detector, of 144 in
    # Mean Teacher. `gct_prepass: shared` saves 64.
    step_cost: ClassVar[float] = 276 / 144
    step_memory: ClassVar[float] = 2.28
    extra_state_mb: ClassVar[float] = 100  # the detector's 8.3 M parameters and Adam's two moments of each, float32

    # what the networks teach each other and the detector learns from: passes of their own, or those that are trained
    gct_prepass: Literal["separate", "shared"] = "separate"
    gct_dc_weight: Annotated[float, Field(ge=0)] = 100.0  # dynamic consistency
    gct_fc_weight: Annotated[float, Field(ge=0)] = 1.0  # flaw correction
    gct_fd_weight: Annotated[float, Field(ge=0)] = 10.0  # the detector's own loss
    gct_threshold: Probability = 0.6  # xi: a flaw above it counts as 1
    # of the detector's target: a factor on its errors, and how often they are dilated
    gct_mu: Annotated[float, Field(gt=0)] = 0.5
    gct_nu: Annotated[int, Field(ge=0)] = 1
    # of the consistency's weight, in epochs or as a share of the training
    gct_rampup: Annotated[float, Field(ge=0)] = 3.0
    gct_rampup_unit: Literal["epochs", "training"] = "epochs"
    # a map without a flaw becomes 0, or as in the released code that 0 less its minimum, by its range
    gct_low_maps: Literal["zero", "shifted"] = "zero"
    # the detector learns from what it said, or as in the released code from that without negative values
    gct_negative_flaws: Literal["kept", "cleared"] = "kept"
    gct_detector_rate: Annotated[float, Field(gt=0)] = 1e-4
    gct_detector_schedule: Literal["poly", "constant"] = "poly"
    gct_detector_width: Annotated[int, Field(ge=2)] = 64  # channels of its first layer; small scales take fewer
    evaluated: Literal["first", "mean"] = "first"  # network, or the mean of both networks' probabilities

    @property
    def kept(self) -> int:
        return 2 if self.evaluated == "mean" else 1
