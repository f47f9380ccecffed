"""The settings of AEL and of U2PL with AEL."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from u2pl.experiments.settings.common import Averaging, Contrast, Draw, OverImages, Stream, Streams
from u2pl.experiments.values import Positive, Probability


class Equalised(Averaging, Streams):
    """What AEL's bank of confidences steers. alpha, the weight of what the teacher teaches, is `eta`."""

    # Its four parts. Without: unweighted pixels; every pixel; boxes of half the area, filled from the next image of the
    # share; labelled images as they are
    ael_reweighting: bool = True
    ael_sampling: bool = True
    ael_cutmix: bool = True
    ael_copy_paste: bool = True
    ael_momentum: Probability = 0.999  # Eq. 7
    # the confidence of a class is a mean over each image's pixels, then over the images; or over larger groups
    ael_confidence_groups: OverImages = "image"
    # a class that a group does not have is left out of that mean, or counts as a confidence of 0
    ael_absent_class: Literal["skip", "zero"] = "skip"
    ael_gamma: Annotated[float, Field(ge=0)] = 2.0  # Eq. 13
    ael_beta: Annotated[float, Field(ge=0)] = 1.0  # Eq. 10
    ael_keep_by: Literal["student", "teacher"] = "student"  # whose class decides whether a pixel is kept
    ael_confidence: Literal["teacher", "student"] = "teacher"  # whose p it is in Eq. 13
    ael_threshold: Probability = 0.0  # of the teacher's probability; pixels below have weight, but no label
    ael_weight_normaliser: OverImages = "image"  # the sums of Eq. 12
    ael_labelled_consistency: bool = False  # the teacher teaches on the labelled images as well
    # its passes over the unmixed unlabelled images
    ael_teacher_mode: Literal["train", "eval"] = "train"
    # adaptive CutMix: the images to paste from are chosen by the bank among all, or among those of the batch
    ael_partner: Literal["bank", "batch"] = "bank"
    ael_bank_ratio: Probability = 0.005  # of an image's pixels: it holds a class if it has so many of it
    ael_component_ratio: Probability = 0.005  # of an image's pixels: a component is pasted if it has more
    # adaptive Copy-Paste: rates exp(1 - Conf), or exp(sqrt(1 - Conf)) of the classes but 0, 1, 2, 8 and 10
    ael_copy_paste_classes: Literal["all", "released"] = "all"
    ael_copy_paste_number: Positive = 3  # classes that are drawn for an image, with replacement
    ael_copy_paste_probability: Probability = 0.5  # of an image to get anything pasted
    ael_copy_paste_scale: Annotated[float, Field(gt=0, le=1)] = 0.1  # least factor of the images pasted from

    @property
    def streams(self) -> frozenset[Stream]:
        copied: frozenset[Stream] = frozenset({"labelled_2", "valid"} if self.ael_copy_paste else ())
        by_bank = self.ael_cutmix and self.ael_partner == "bank"
        return super().streams | copied | frozenset({"ids", "chosen"} if by_bank else ())

    def scale_range(self, draw: Draw, usual: tuple[float, float]) -> tuple[float, float]:
        return (self.ael_copy_paste_scale if draw == "labelled_2" else usual[0]), usual[1]


class AEL(Equalised):
    """Adaptive equalisation learning (Hu et al., NeurIPS 2021)."""

    # In forwards of an image: 3 x 32 of the student, 16 + 32 of the teacher, of 144 in Mean Teacher.
    step_cost: ClassVar[float] = 144 / 144
    step_memory: ClassVar[float] = 1.02


class U2PLAEL(Equalised, Contrast):
    """AEL with the contrast of U2PL."""

    step_cost: ClassVar[float] = 160 / 144  # 16 more of the teacher for the representations of `teacher_view: released`
    step_memory: ClassVar[float] = 1.06

    # L_u: AEL's Eq. 12, U2PL's Eq. 3, 6 and 8, or Eq. 12 over the reliable pixels of Eq. 6
    unsupervised_term: Literal["equalised", "reliable", "both"] = "both"
    # released: the least uncertain alpha_t of the pixels lose their labels
    confident_drop: Literal["none", "released"] = "none"
    contrast_start_epoch: Annotated[int, Field(ge=0)] = 0  # lambda_c is 0 before
