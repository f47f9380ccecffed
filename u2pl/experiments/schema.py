"""The typed form of `params/`: every key the suite knows, and no other."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    field_serializer,
    model_validator,
)

from u2pl.addresses import public
from u2pl.experiments.settings import SETTINGS, Training
from u2pl.experiments.values import (
    AsTuple,
    Byte,
    Caption,
    Channel,
    Enlarge,
    FilePath,
    Fraction,
    ListPath,
    Mistake,
    Percent,
    Positive,
    Probability,
    Seconds,
    Seed,
    Sha256,
    Shrink,
    Spread,
    Strict,
    Text,
    Threads,
    each_once,
)

Kind = Literal["pascal", "cityscapes"]  # of a data set: what reads its archives, in u2pl/data/layouts
LISTS: dict[Kind, tuple[str, ...]] = {"pascal": ("train", "train_aug", "val"), "cityscapes": ("train", "val")}


class ClassLabel(Strict):
    name: Text
    colour: Annotated[tuple[Byte, Byte, Byte], AsTuple]  # RGB


class Archive(Strict):
    file: FilePath  # upstream's file name
    # file:, http:, https:, or cityscapes:<package> (needs an account); empty: the user puts the file into the folder
    url: str
    mirrors: list[str] = []  # tried in this order if `url` fails
    md5: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$")] | None = None
    # whole, or its first digits; as few as eight find an accident, not an attack
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{8,64}$")] | None = None

    @field_serializer("url", "mirrors")
    def without_secrets(self, value: str | list[str]) -> str | list[str]:
        """Results and manifests hold the params of a run, and are handed on."""
        return public(value) if isinstance(value, str) else [public(url) for url in value]

    @property
    def by_hand(self) -> bool:
        """True if the user may have put the file there: it is then verified, but never replaced."""
        return not self.url or self.url.startswith("cityscapes:")

    @property
    def identity(self) -> str:
        """What a change of the file shows in: its checksums where there are any, wherever it comes from."""
        checksums = [value.lower() for value in (self.md5, self.sha256) if value]
        return " ".join([self.file, *(checksums or map(public, [self.url, *self.mirrors]))])


class Evaluation(Strict):
    mode: Literal["centre_crop", "sliding_window"]
    crop: Positive  # pixels; the side of the centre crop or of a window
    stride: Annotated[float, Field(gt=0, le=1)] = 2 / 3  # of the crop, rounded up to pixels
    batch: Positive = 4  # images (centre crop) or windows (sliding window) per forward


class Synthetic(Strict):
    """What `u2pl data synthesize` draws in place of the upstream archives."""

    seed: Seed
    train: Positive
    extra: Annotated[int, Field(ge=0)]  # SBD images beyond VOC's; 0 for Cityscapes
    val: Positive
    size: Annotated[tuple[Positive, Positive], AsTuple]  # height, width in pixels
    # pascal: twenty classes; five that a hundred steps teach; or six textures, of which no colour tells
    scene: Literal["plain", "simple", "textured"] = "plain"


class DiskSpace(Strict):
    archives: Annotated[int, Field(ge=0)] = 0  # MB, all of them
    prepared: Annotated[int, Field(ge=0)] = 0  # MB, images and masks


class Dataset(Strict):
    kind: Kind
    classes: Annotated[list[ClassLabel], Field(min_length=1)]
    ignore_label: Byte = 255
    mean: Annotated[tuple[Channel, Channel, Channel], AsTuple]  # RGB on 0 to 255
    std: Annotated[tuple[Spread, Spread, Spread], AsTuple]
    archives: dict[str, Archive]
    disk_mb: DiskSpace = DiskSpace()  # for `u2pl plan`, until there are files to measure
    counts: Annotated[dict[str, Positive], Field(min_length=1)]  # images per list: train, train_aug (pascal), val
    evaluation: Evaluation
    synthetic: Synthetic | None = None

    @model_validator(mode="after")
    def labels_are_distinct_bytes(self) -> "Dataset":
        names = [label.name for label in self.classes]
        if doubled := [name for name in names if names.count(name) > 1]:
            raise Mistake("classes", f"{doubled[0]!r} {names.count(doubled[0])} times", "one class of a name")
        # Masks have 8 bits. That leaves the classes what the ignore label does not take.
        if self.ignore_label < len(names):
            expected = f"a label from {len(names)}, behind the {len(names)} classes, to 255"
            raise Mistake("ignore_label", self.ignore_label, expected)
        return self

    @model_validator(mode="after")
    def only_train_aug_has_extra_images(self) -> "Dataset":
        drawn = self.synthetic
        if "train_aug" not in LISTS[self.kind] and drawn is not None and (drawn.extra or drawn.scene != "plain"):
            key = "extra" if drawn.extra else "scene"
            raise Mistake(f"synthetic.{key}", getattr(drawn, key), "nothing that only pascal has")
        return self


class Protocol(Strict):
    dataset: str
    candidates: Literal["train", "train_aug"]  # the list labelled images are drawn from
    universe: Literal["train", "train_aug"]  # the list whose rest is unlabelled
    # fraction -> number of labelled images
    fractions: Annotated[dict[Fraction, Positive], Field(min_length=1)]
    nested: bool = False
    seed: Seed = 0


class PublishedList(Strict):
    """The files of one labelled fraction, by their paths in the repository."""

    labelled: ListPath
    unlabelled: ListPath | None  # null: the rest of the universe


class ListHashes(Strict):
    file: Sha256
    ids: Sha256  # of the ids in byte order, a newline between


class PublishedSource(Strict):
    """A pinned commit of a repository with split lists."""

    repository: Text
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    url: str  # prefix of the paths; empty: the user puts the files into data/<scale>/lists/<source>
    lists: dict[str, dict[Fraction, PublishedList]]  # by protocol
    sha256: dict[ListPath, ListHashes] | None  # by path; null: not checked

    def paths(self, protocol: str) -> list[str]:
        """The files of a protocol's fractions."""
        files = self.lists.get(protocol, {}).values()
        return [path for item in files for path in (item.labelled, item.unlabelled) if path is not None]

    @model_validator(mode="after")
    def a_hash_for_every_file(self) -> "PublishedSource":
        paths = {path for protocol in self.lists for path in self.paths(protocol)}
        if self.sha256 is not None and (missing := paths - set(self.sha256)):
            raise ValueError(f"sha256 of {min(missing)}")
        return self


class Network(Strict):
    encoder: Literal["resnet18", "resnet50", "resnet101"]
    output_stride: Literal[8, 16] = 8
    multi_grid: Annotated[tuple[Positive, Positive, Positive], AsTuple] = (2, 2, 4)
    width: Positive = 64  # channels of the first stage; 64 is the published network
    channels: Positive = 256  # of ASPP branches, decoder and heads
    representation: Positive = 256
    dropout: Probability = 0.1
    weights: dict[
        Literal["7x7", "deep"], FilePath | None
    ] = {}  # encoder weights file by stem; none: random initialisation


class Estimate(Strict):
    """What a run takes on one device, where nothing has been measured: guesses, for the job's request and `u2pl plan`.

    A training of S steps and V validations is taken to need S * seconds a step + V * seconds a validation.
    """

    supervised_step: Seconds  # seconds: `batch` labelled images, forward and backward
    semi_supervised_step: (
        Seconds  # seconds: as many unlabelled ones too, and a teacher's forward passes; a method may scale it
    )
    validation: Seconds  # seconds for the centre crops of the val list
    # of one network on disk; a run keeps its last and its best, its state more
    weights_mb: Annotated[float, Field(gt=0)]


class Recipe(Strict):
    network: Network
    lr: Annotated[float, Field(gt=0)]
    momentum: Probability = 0.9
    weight_decay: Annotated[float, Field(ge=0)]
    poly_power: Annotated[float, Field(gt=0)] = 0.9
    epochs: Positive
    batch: Positive  # labelled images a step, and as many unlabelled ones
    crop: Positive
    # weak augmentation: the least and the largest factor of the random resize, and whether images are mirrored
    resize: Annotated[tuple[Shrink, Enlarge], AsTuple] = (0.5, 2.0)
    mirror: bool = True
    validate_every: Positive = 1  # epochs
    # how it is computed; the defaults are the reference
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast in training; evaluation stays in float32
    tf32: bool = False  # let the GPU round the inputs of float32 products to 10 bits
    channels_last: bool = False
    fused_sgd: bool = False  # one kernel for the optimiser's step
    # the machine
    workers: Annotated[Threads, Field(ge=0)] = 0  # of all ranks together, like threads
    persistent_workers: bool = False  # keep them from epoch to epoch
    pinned_memory: bool = True  # where there is a GPU
    # what an interrupted run may lose; 0: save after each step
    save_every_minutes: Annotated[float, Field(ge=0)] = 10.0
    # What a run asks the machine for; its minutes follow from `estimate`, see u2pl/experiments/cost.py.
    gpus: Annotated[int, Field(ge=0, le=16)] = 0  # of one machine; more than one: as many ranks, by torchrun
    threads: Annotated[Threads, Field(gt=0)] = 1
    mem_mb: Positive = 4000
    estimate: Estimate


DEFAULT_FIDELITY = "paper"


class Preset(Strict):
    """A reading: settings by data set, then by method; `all` first."""

    title: Text
    all: dict[str, Any] = {}
    pascal: dict[str, Any] = {}
    cityscapes: dict[str, Any] = {}
    methods: dict[str, dict[str, Any]] = {}  # of one method alone

    def of(self, kind: type[Training], dataset: str) -> dict[str, Any]:
        """The values for a kind of data set, of the settings that the class has."""
        values = self.all | getattr(self, dataset)
        for method, own in self.methods.items():
            values |= own if SETTINGS[method] is kind else {}
        return {name: value for name, value in values.items() if name in kind.model_fields}


class Method(Strict):
    title: Text
    source: Literal["measured", "reconstructed"] = "measured"  # reconstructed: its authors published no code
    settings: dict[str, Any] = {}  # that differ from the preset's


class Row(Strict):
    """One table row: a method with overrides, or quoted numbers alone."""

    title: Text
    method: str | None = None
    fidelity: str = DEFAULT_FIDELITY
    overrides: dict[str, Any] = {}
    seed_factor: Positive = 1  # so many times as many seeds as the scale has
    paper: list[Percent | None]
    copied_from: Text | Literal[""] = ""  # where the paper took its numbers; empty: its authors measured them

    @model_validator(mode="after")
    def quoted_rows_train_nothing(self) -> "Row":
        for key in ("fidelity", "overrides", "seed_factor"):
            if self.method is None and key in self.model_fields_set:
                raise Mistake(key, repr(getattr(self, key)), "a row with a `method`: this one is quoted")
        return self


class Column(Strict):
    protocol: str
    fraction: Fraction


class Claim(Strict):
    """That one row of a table is better than another, in each of its columns."""

    claim: Text
    better: str
    worse: str


class Table(Strict):
    caption: Caption
    columns: Annotated[list[Column], Field(min_length=1)]
    rows: Annotated[list[Row], Field(min_length=1)]
    on_request: bool = False  # of scales that list it alone
    claims: list[Claim] = []  # stated before the runs that test them: results/<scale>/claims.csv

    @model_validator(mode="after")
    def one_number_per_column(self) -> "Table":
        for row in self.rows:
            if len(row.paper) != len(self.columns):
                raise ValueError(f"row {row.title!r} has {len(row.paper)} paper values for {len(self.columns)} columns")
        return self

    @model_validator(mode="after")
    def claims_are_of_trained_rows(self) -> "Table":
        trained = [row.title for row in self.rows if row.method]
        for claim in self.claims:
            for row in (claim.better, claim.worse):
                if row not in trained:
                    raise Mistake("claims", repr(row), "the title of a row with a `method`")
        return self

    @model_validator(mode="after")
    def cells_are_distinct(self) -> "Table":
        titles, columns = [row.title for row in self.rows], [f"{c.protocol} {c.fraction}" for c in self.columns]
        for kind, names in (("row", titles), ("column", columns)):
            if doubled := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"one {kind} of a name, not {names.count(doubled[0])} named {doubled[0]!r}")
        return self


class CellName(Column):
    """A cell of a table, by the titles that stand in its file."""

    table: str
    row: str


class Figure(Strict):
    """A figure of the runs behind cells, each under the name it has in the figure, or of a whole table."""

    # classes, entropy and predictions are Fig. 1, 2 and 4 of the paper; comparison is made for every table by itself
    kind: Literal["classes", "entropy", "predictions", "curves", "diagnostics", "transition", "comparison"]
    caption: Caption
    cells: dict[Text, CellName] = {}
    table: str | None = None
    images: Positive = 4  # of Fig. 4
    against: dict[Text, str] = {}  # transition: a row of the table, and the row over which its gain is shown

    @model_validator(mode="after")
    def cells_or_a_table(self) -> "Figure":
        of_table = self.kind in ("curves", "diagnostics", "transition", "comparison")
        if of_table != (self.table is not None) or of_table == bool(self.cells):
            raise ValueError("`table` for curves, diagnostics and transition, `cells` for the other kinds")
        if self.kind in ("classes", "entropy") and len(self.cells) != 1:
            raise ValueError("one cell")
        if (self.kind == "transition") != bool(self.against):
            raise ValueError("`against` for transition alone")
        return self

    @property
    def tables(self) -> set[str]:
        """Those whose runs it shows."""
        return {self.table} if self.table else {cell.table for cell in self.cells.values()}


class Scale(Strict):
    """A scale: seeds, and overrides merged over the files of `params/`."""

    title: Text
    synthetic: bool
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(each_once)]
    # those it runs; null: all but those on request
    tables: Annotated[list[str], Field(min_length=1), AfterValidator(each_once)] | None = None
    equivalence_margin: Annotated[float, Field(gt=0)] = 1.0  # mIoU; a smaller difference from the paper's is none
    # the runs that results/baselines/<scale>.csv holds; null: all
    baseline: Annotated[list[str], Field(min_length=1), AfterValidator(each_once)] | None = None
    # the runs whose first steps `u2pl check` compares; the first one trains the state that they start from
    first_steps: Annotated[list[str], AfterValidator(each_once)] = []
    datasets: dict[str, dict[str, Any]] = {}
    protocols: dict[str, dict[str, Any]] = {}
    recipes: dict[str, dict[str, Any]] = {}
    methods: dict[str, dict[str, Any]] = {}
    fidelity: dict[str, dict[str, Any]] = {}
    splits: dict[str, dict[str, Any]] = {}
    figures: dict[str, dict[str, Any]] = {}


class Config(Strict):
    """The configuration of the Snakemake workflow: which scale to run, and how."""

    scale: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$")] = "demo"
    # cpu: train without the GPUs that the recipes ask for
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")] = "auto"
    # forks: of one process that has imported everything; for many jobs, all on this machine, that are shorter than
    # their imports
    jobs: Literal["processes", "forks"] = "processes"
