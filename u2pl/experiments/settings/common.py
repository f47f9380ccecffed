"""What the settings of several methods share. Keys are flat, so that tables name them alike.

The symbols are those of section 3 of the paper. Every factor in which the paper and the released code differ is one
setting.
"""

from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import Field

from u2pl.experiments.values import Positive, Probability, Strict

Reading = Literal["paper", "released"]
# What a quantity is computed over: the batch, a share of `group_size` images per stream, or one image.
Over = Literal["batch", "share"]
OverImages = Literal["batch", "share", "image"]
# Images that a batch can carry: labelled ones with their masks, unlabelled ones, and a second draw of each.
Draw = Literal["labelled", "unlabelled", "unlabelled_2", "labelled_2"]
# Beside them: ids and raw colours of the unlabelled images, a mask per draw of what is not padding, and unlabelled
# images that the method chooses itself, a step before it sees them; and, for an upper bound alone, their true masks.
Stream = Literal[Draw, "ids", "valid", "raw", "chosen", "oracle"]
Lists = TypeVar("Lists", int, list[str])  # lists of ids, or their lengths


class Training(Strict):
    """Data and optimisation: every method."""

    trained: ClassVar[int] = 1  # networks that the optimisers move
    step_cost: ClassVar[float] = 1.0  # of a step, in that of a recipe's estimate
    # Peak of a step at the paper's size over Mean Teacher's, as tests/benchmarks/methods.py measures it
    step_memory: ClassVar[float] = 1.0
    extra_state_mb: ClassVar[float] = 0.0  # of the resumable state, beside networks, their momentum and memory bank

    # the paper's data are lists, and the authors published them; on synthetic scales, which have none, `drawn`
    split_source: Literal["drawn", "u2pl", "cps"] = "u2pl"
    backbone_stem: Literal["7x7", "deep"] = "7x7"
    cityscapes_loss: Literal["cross_entropy", "ohem_auxiliary"] = "cross_entropy"
    decoder_lr_multiplier: Annotated[float, Field(gt=0)] = 10.0
    crop_pad_label_train: Literal["ignore", "zero"] = "zero"
    crop_pad_label_evaluation: Literal["ignore", "zero"] = "zero"
    checkpoint_selection: Literal["best", "last"] = "best"
    # per_stream: `batch` labelled and as many unlabelled images; total: half of each
    batch_size: Literal["per_stream", "total"] = "per_stream"
    # labels of a resized image: of the source pixel that lies on the centre of each pixel, or on its upper left corner
    label_resize: Literal["centre", "floor"] = "floor"
    # steps of an epoch: whole batches of the list; or as the released GPUs count them, each with an equal, padded part
    # of the list of which SupOnly keeps the incomplete last batch, and the other methods drop it
    sampler: Literal["global", "distributed"] = "distributed"
    # what the best epoch is chosen by: the metric that is reported, or centre crops
    selected_by: Literal["reported", "centre_crop"] = "centre_crop"
    # a GPU's share in the released code: so many labelled images, and as many unlabelled ones
    group_size: Positive = 4
    loss_groups: OverImages = "batch"  # the means of Eq. 2 and 3
    ohem_groups: Over = "batch"  # the least number of pixels that OHEM keeps

    @property
    def supervised_group(self) -> int:
        """Labelled images of a share where L_s is computed."""
        return self.group_size

    @property
    def averaged(self) -> int:
        """Networks that follow others."""
        return 0

    @property
    def kept(self) -> int:
        """Networks that are evaluated together, and whose weights a run keeps."""
        return 1

    @property
    def streams(self) -> frozenset[Stream]:
        """What the method reads of a batch."""
        return frozenset({"labelled", "unlabelled"})

    def scale_range(self, draw: Draw, usual: tuple[float, float]) -> tuple[float, float]:
        """The least and the largest factor of the weak augmentation's resize of a draw; `usual` is the recipe's."""
        return usual

    def seen_unlabelled(self, labelled: Lists, unlabelled: Lists) -> Lists:
        """What the stream of unlabelled images reads, of the two lists of a split or of their lengths."""
        return unlabelled


class Streams(Training):
    """How a network sees the labelled and the unlabelled images of a step."""

    # in one pass, or each in one with batch statistics of its own
    streams_forward: Literal["joint", "separate"] = "joint"


class Averaging(Training):
    """A teacher that averages the student, and a weight on what it teaches."""

    eta: Annotated[float, Field(ge=0)] = 1.0  # Eq. 8
    warmup_epochs: Annotated[int, Field(ge=0)] = 0  # supervised loss only
    ema_decay: Probability = 0.99
    ema_warmup: bool = True  # decay_t = min(1 - 1 / (t + 1), ema_decay)
    # batch-norm statistics: the teacher's own passes in training mode, or averaged like the parameters
    teacher_buffers: Literal["own", "averaged"] = "own"
    # in the first epoch after the warm-up the teacher has the student's parameters, or is averaged at once
    teacher_first_epoch: Literal["shared", "averaged"] = "shared"

    @property
    def averaged(self) -> int:
        return 1


class Mixing(Training):
    """CutMix of the unlabelled images and what the teacher says of them."""

    cutmix_probability: Probability = 0.5
    # a box of half the area: its width uniform, or its height log-uniform
    cutmix_box: Literal["uniform_width", "log_uniform_height"] = "uniform_width"
    # pseudo-labels of the unmixed images, mixed with them; or of the mixed images
    pseudo_label: Literal["before_mix", "after_mix"] = "before_mix"


class Contrast(Training):
    """The pixel-level contrast of Eq. 4, with its memory bank, and the entropy threshold."""

    alpha_0: Probability = 0.2  # Eq. 7
    dpa: bool = True  # Eq. 7; off: alpha_t = alpha_0
    # t of Eq. 7: finished epochs, the present one counted from 1, or finished ones without the warm-up
    alpha_epochs: Literal["from_0", "from_1", "after_warmup"] = "from_0"
    threshold_groups: Over = "batch"  # gamma_t, and the percentile alpha_t
    weight_groups: Over = "batch"  # lambda_u, Eq. 8
    contrastive_weight: Annotated[float, Field(ge=0)] = 1.0  # lambda_c, Eq. 1
    # the released code divides the term's gradient by its number of GPUs; here the number is explicit
    contrastive_world_size: Positive = 1
    tau: Annotated[float, Field(gt=0)] = 0.5
    anchors_per_class: Positive = 50  # M
    negatives_per_anchor: Positive = 256  # N
    delta_p: Probability = 0.3  # Eq. 9, 10
    r_low: Annotated[int, Field(ge=0)] = 3  # Eq. 14, 15
    r_high: Positive = 20
    prt: bool = True  # off: no rank decides in Eq. 14 and 15
    ignored_negatives: bool = False  # Eq. 14 as written: pixels labelled `ignore` are negatives of every class
    anchors_drawn: Literal["per_batch", "per_image"] = "per_batch"  # M of a class: Eq. 4, Algorithm 1
    replacement: bool = True  # M and N are drawn with replacement
    negatives: Literal["unreliable", "reliable", "all"] = "unreliable"  # Table 4
    bank: bool = True  # Q_c; off: negatives of the current batch only
    bank_size: Positive = 30000  # vectors per class
    bank_size_background: Positive = 50000  # class 0
    bank_in_checkpoint: bool = True  # off: a resumed run starts with empty banks
    label_stacking: Reading = "paper"  # released: the first image of a share has the labels of all its images
    contrastive_groups: Over = "batch"  # presence, anchors, prototypes and normaliser; the bank is common
    teacher_view: Reading = "paper"
    anchor_class_indexing: Reading = "paper"
    negative_label_mask: Reading = "paper"
    unlabelled_anchor_entropy: Reading = "paper"
    positive_filter: Reading = "paper"
    contrastive_normaliser: Reading = "paper"
