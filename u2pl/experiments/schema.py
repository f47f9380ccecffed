"""The typed form of `params/`: every key the suite knows, and no other."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[str, Field(pattern=r"^(full|1/\d+)$")]
Positive = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """Unknown keys are errors and instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassLabel(Strict):
    name: str
    colour: tuple[int, int, int]  # RGB, 0 to 255


class Archive(Strict):
    file: str  # upstream's file name
    url: str  # file://, http:// or https://; empty: the user puts the file into the archives folder
    md5: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$")] | None = None
    # whole, or its first digits; as few as eight find an accident, not an attack
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{8,64}$")] | None = None


class Evaluation(Strict):
    mode: Literal["centre_crop", "sliding_window"]
    crop: Positive  # pixels; the side of the centre crop or of a window
    stride: Annotated[float, Field(gt=0, le=1)] = 2 / 3  # of the crop, rounded up to pixels
    batch: Positive = 4  # images (centre crop) or windows (sliding window) per forward


class Synthetic(Strict):
    """What `u2pl data synthesize` draws in place of the upstream archives."""

    seed: int
    train: Positive
    extra: int  # SBD images beyond VOC's; 0 for Cityscapes
    val: Positive
    size: tuple[Positive, Positive]  # height, width in pixels


class Dataset(Strict):
    kind: Literal["pascal", "cityscapes"]
    classes: list[ClassLabel]
    ignore_label: int = 255
    mean: tuple[float, float, float]  # RGB on 0 to 255
    std: tuple[float, float, float]
    archives: dict[str, Archive]
    counts: dict[str, int]  # images per list: train, train_aug (pascal), val
    evaluation: Evaluation
    synthetic: Synthetic | None = None


class Protocol(Strict):
    dataset: str
    candidates: Literal["train", "train_aug"]  # the list labelled images are drawn from
    universe: Literal["train", "train_aug"]  # the list whose rest is unlabelled
    fractions: dict[Fraction, Positive]  # fraction -> number of labelled images
    nested: bool = False
    seed: int = 0


class Network(Strict):
    encoder: Literal["resnet18", "resnet50", "resnet101"]
    stem: Literal["7x7", "deep"] = "7x7"
    output_stride: Literal[8, 16] = 8
    multi_grid: tuple[Positive, Positive, Positive] = (2, 2, 4)
    width: Positive = 64  # channels of the first stage; 64 is the published network
    channels: Positive = 256  # of ASPP branches, decoder and heads
    representation: Positive = 256
    dropout: Probability = 0.1
    auxiliary: bool = False
    weights: str | None = None  # encoder weights file; null: random initialisation


class Recipe(Strict):
    network: Network
    lr: Annotated[float, Field(gt=0)]
    head_lr_multiplier: Annotated[float, Field(gt=0)] = 10.0
    momentum: Probability = 0.9
    weight_decay: Annotated[float, Field(ge=0)]
    poly_power: Annotated[float, Field(gt=0)] = 0.9
    epochs: Positive
    warmup_epochs: Annotated[int, Field(ge=0)]  # supervised loss only, before the teacher starts
    batch: Positive  # labelled images a step, and as many unlabelled ones
    crop: Positive
    validate_every: Positive = 1  # epochs
    workers: Annotated[int, Field(ge=0)] = 0
    gpus: Annotated[int, Field(ge=0)] = 0
    threads: Positive = 1
    mem_mb: Positive = 4000
    runtime: Positive = 60  # minutes


class MethodSettings(Strict):
    """The symbols of section 3; values the paper leaves open are the released code's."""

    eta: Annotated[float, Field(ge=0)] = 1.0  # Eq. 8
    ema_decay: Probability = 0.99
    cutmix_probability: Probability = 0.5
    alpha_0: Probability = 0.2  # Eq. 7
    dpa: bool = True  # Eq. 7; off: alpha_t = alpha_0
    contrastive_weight: Annotated[float, Field(ge=0)] = 1.0  # lambda_c, Eq. 1
    tau: Annotated[float, Field(gt=0)] = 0.5
    anchors_per_class: Positive = 50  # M
    negatives_per_anchor: Positive = 256  # N
    delta_p: Probability = 0.3  # Eq. 9, 10
    r_low: Annotated[int, Field(ge=0)] = 3  # Eq. 14, 15
    r_high: Positive = 20
    negatives: Literal["unreliable", "reliable", "all"] = "unreliable"  # Table 4
    bank: bool = True  # Q_c; off: negatives of the current batch only
    bank_size: Positive = 30000  # vectors per class
    bank_size_background: Positive = 50000  # class 0


class Method(Strict):
    title: str
    settings: dict[str, Any] = {}


class Row(Strict):
    """One table row: a method with overrides (measured), or numbers the paper copied (quoted)."""

    title: str
    method: str | None = None
    overrides: dict[str, Any] = {}
    paper: list[float | None]

    @property
    def source(self) -> Literal["measured", "quoted"]:
        return "measured" if self.method else "quoted"


class Column(Strict):
    protocol: str
    fraction: Fraction


class Table(Strict):
    caption: str
    columns: list[Column]
    rows: list[Row]

    @model_validator(mode="after")
    def one_number_per_column(self) -> "Table":
        for row in self.rows:
            if len(row.paper) != len(self.columns):
                raise ValueError(f"row {row.title!r} has {len(row.paper)} paper values for {len(self.columns)} columns")
        return self


class Scale(Strict):
    """A scale: seeds, and overrides merged over the files of `params/`."""

    title: str
    synthetic: bool
    seeds: list[int]
    datasets: dict[str, dict[str, Any]] = {}
    protocols: dict[str, dict[str, Any]] = {}
    recipes: dict[str, dict[str, Any]] = {}
    methods: dict[str, dict[str, Any]] = {}


class RunSpec(Strict):
    """One training with every setting resolved."""

    scale: str
    protocol: str
    fraction: Fraction
    labelled: int
    method: str
    overrides: dict[str, Any]  # only those that differ from the method's settings
    seed: int
    dataset_name: str
    dataset: Dataset
    recipe: Recipe
    settings: MethodSettings

    def science(self) -> dict[str, Any]:
        """What the numbers depend on: all but where archives come from and what the machine is asked for."""
        machine = {"gpus": True, "threads": True, "mem_mb": True, "runtime": True, "workers": True}
        dataset: dict[str, Any] = {"archives": True, "synthetic": True, "evaluation": {"batch": True}}
        exclude: dict[str, Any] = {"recipe": machine, "dataset": dataset}
        return self.model_dump(mode="json", exclude=exclude)

    @property
    def id(self) -> str:
        """Canonical and readable: equal settings give the equal id."""
        changed = [f"{key}={value}" for key, value in sorted(self.overrides.items())]
        return "-".join([self.protocol, str(self.labelled), self.method, *changed, f"seed{self.seed}"])


class Cell(Strict):
    """One number of one table; `runs` holds a run id per seed, none for quoted cells."""

    table: str
    row: str
    column: str
    fraction: str
    protocol: str
    labelled: int
    method: str
    overrides: dict[str, Any]
    source: Literal["measured", "quoted"]
    paper: float | None
    runs: list[str]


class Suite(Strict):
    """Everything a scale measures."""

    scale: str
    params: Scale
    datasets: dict[str, Dataset]
    protocols: dict[str, Protocol]
    weights: dict[str, Archive]
    tables: dict[str, Table]
    runs: dict[str, RunSpec]
    cells: list[Cell]


class Config(Strict):
    """The configuration of the Snakemake workflow: which scale to run."""

    scale: str = "demo"
