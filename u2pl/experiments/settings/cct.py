"""The settings of CCT."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from u2pl.experiments.settings.common import Streams
from u2pl.experiments.values import Mistake, Probability

Count = Annotated[int, Field(ge=0)]


class CCT(Streams):
    """Cross-consistency training (Ouali et al., CVPR 2020): auxiliary decoders on perturbed features."""

    # In forwards of an image: 3 x 32, and less than one for all classifiers, of 144 in Mean Teacher. A head adds 4.4.
    step_cost: ClassVar[float] = 97 / 144
    step_memory: ClassVar[float] = 1.05

    # a classifier on what the network's own classifier sees, or a head like the network's on what that head sees
    cct_decoder: Literal["classifier", "head"] = "classifier"
    # decoders per perturbation
    cct_vat: Count = 2  # I-VAT: an adversarial step
    cct_drop: Count = 2  # DropOut: half of the channels
    cct_cut: Count = 2  # G-Cut: a rectangle in each object
    cct_context: Count = 2  # Con-Msk: the background
    cct_object: Count = 2  # Obj-Msk: the foreground
    cct_feature_drop: Count = 2  # F-Drop: where activations are largest
    cct_noise: Count = 2  # F-Noise: multiplicative
    # length per image of the step of I-VAT; what rounding leaves of the authors' search makes it 0.01 or less
    cct_vat_radius: Annotated[float, Field(ge=0)] = 2.0
    cct_weight: Annotated[float, Field(ge=0)] = 30.0
    cct_rampup: Probability = 0.1  # share of the steps in which the weight rises
    # without a background all is foreground: G-Cut cuts into the whole image, and the two masks have no decoders
    cct_background: Literal["class_0", "none"] = "class_0"
    # where predictions are compared and objects found: the network's output, a quarter of the crop, or the crop
    cct_resolution: Literal["output", "crop"] = "output"

    @property
    def perturbations(self) -> list[str]:
        """The kind of each auxiliary decoder."""
        kinds = ["vat", "drop", "cut", "context", "object", "feature_drop", "noise"]
        if self.cct_background == "none":
            kinds = [kind for kind in kinds if kind not in ("context", "object")]
        return [kind for kind in kinds for _ in range(getattr(self, f"cct_{kind}"))]

    @model_validator(mode="after")
    def _some_decoder(self) -> Self:
        if not self.perturbations:
            raise Mistake("cct_drop", self.cct_drop, "a decoder of some perturbation")
        return self
