"""The records that the suite writes and reads, one type each. A key that a type does not know is an error.

`read` and `write` are the only ways to and from a file. Equal records give equal bytes.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from u2pl.experiments.read import validate
from u2pl.experiments.values import Byte, Percent, Positive, Seed, Sha256, Strict
from u2pl.files import atomic_path, read_json, write_json

Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40,64}$")]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Lists = Literal["labeled", "unlabeled", "val"]
Model = TypeVar("Model", bound=BaseModel)


def read(model: type[Model], path: Path) -> Model:
    """The record in the file. Raises UserError naming the file and the first key that is wrong."""
    return validate(model, read_json(path), path)


def write(path: Path, record: Strict) -> None:
    """Write the keys that the record was made with, atomically."""
    write_json(path, plain(record))


def plain(record: BaseModel) -> dict[str, Any]:
    """The record as JSON holds it."""
    return record.model_dump(mode="json", by_alias=True, exclude_unset=True)


class Kept(BaseModel):
    """The typed part of what was copied whole from elsewhere: other keys are kept as they are."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)


# ------------------------------------------------------------------------------------------------------------- data


class FetchedManifest(Strict):
    """<archive>.json beside a fetched file."""

    file: str
    source: str | None  # the address that gave it; null: the user put it there
    size: Count
    md5: Md5
    sha256: Sha256


class PreparedManifest(Strict):
    """manifest.json of the converted images of a data set."""

    dataset: str  # its kind
    suffix: str  # of images
    classes: list[str]
    ignore_label: Byte
    format: Count
    counts: dict[str, Count]  # images per list
    files: Count
    content_sha256: Sha256  # of checksums.sha256
    archives: dict[str, Sha256]  # by file name


class PublishedFile(Strict):
    path: str  # in the repository
    sha256: Sha256
    sha256_ids: Sha256


class SplitManifest(Strict):
    """manifest.json of a split: drawn (seed to missing), or published (repository to files)."""

    counts: dict[Lists, Count]
    sha256: dict[Lists, Sha256]
    prepared_content_sha256: Sha256
    dataset: str
    candidates: str
    universe: str
    labelled: Positive
    source: str
    seed: Seed | None = None  # of the runs
    protocol_seed: Seed | None = None
    nested: bool | None = None
    stratified: bool | None = None
    missing: list[str] | None = None  # of a stratified draw: classes of the candidates without a labelled image
    repository: str | None = None
    commit: str | None = None
    verified: bool | None = None
    files: dict[Lists, PublishedFile | None] = {}


# -------------------------------------------------------------------------------------------------------------- runs


class GitState(Strict):
    commit: Commit | None
    dirty: bool | None
    diff_sha256: Sha256 | None


class EncoderWeights(Strict):
    file: str
    sha256: Sha256


class Receipt(Strict):
    """What a result was made of: SHA-256 of its specification, its small inputs and all specifications above it."""

    spec_sha256: Sha256
    inputs: dict[str, Sha256]  # by path
    above: dict[str, Sha256]  # by path


class Provenance(Strict):
    """Code, params, data, libraries and machine of a training, and what it took."""

    git: GitState
    params_sha256: Sha256
    split_sha256: Sha256
    split: SplitManifest
    data_sha256: Sha256
    data: PreparedManifest
    encoder_weights: EncoderWeights | None
    libraries: dict[str, str | None]
    device: str
    cpu: str
    platform: str
    threads: Positive
    seed: Seed
    world_size: Positive
    steps: Positive
    wall_time_s: Amount
    images_per_s: Rate
    peak_memory_mb: Amount


class RecordedClass(Kept):
    name: str


class RecordedDataset(Kept):
    evaluation: dict[str, Any]
    classes: list[RecordedClass] = []


class RecordedRecipe(Kept):
    network: dict[str, Any]
    batch: Positive
    crop: Positive
    epochs: Positive
    validate_every: Positive


class RecordedSettings(Kept):
    batch_size: Literal["per_stream", "total"]
    selected_by: Literal["reported", "centre_crop"] = "reported"  # as all did before there was the setting


class RecordedSpec(Kept):
    """The specification that was trained, which may be of other params than today's."""

    method: str
    seed: Seed
    dataset_name: str
    dataset: RecordedDataset
    recipe: RecordedRecipe
    settings: RecordedSettings
    departures: dict[str, Any]


def recorded(spec: BaseModel) -> RecordedSpec:
    """A specification of today as run.json holds it."""
    return RecordedSpec.model_validate(spec.model_dump(mode="json"))


class RunFiles(Strict):
    """SHA-256 of the files beside run.json."""

    weights: Sha256 = Field(alias="weights.pt")
    history: Sha256 = Field(alias="history.csv")


class RunRecord(Strict):
    """run.json: what was trained, where it came from, what it took, and the hashes of its files."""

    id: str
    run: str  # the id as well
    spec: RecordedSpec
    files: RunFiles
    provenance: Provenance
    epochs: Positive
    best_epoch: Positive
    best_miou: Percent


class Scores(Strict):
    """Of one checkpoint over the validation list."""

    confusion: list[list[Count]]  # rows of target classes
    iou: list[Percent | None]  # per class; null: the class occurs nowhere
    miou: Percent


class RunEvaluation(Strict):
    """evaluation.json"""

    best: Scores
    last: Scores
    weights_sha256: Sha256
    images_sha256: Sha256 | None = None  # of images.npz, which runs of earlier versions lack

    @property
    def checkpoints(self) -> dict[str, Scores]:
        return {"best": self.best, "last": self.last}


class HistoryRow(BaseModel):
    """A line of history.csv: an epoch. Further columns are the method's own terms, empty where there was none."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, float | None]

    epoch: Positive
    step: Positive
    lr: Amount
    loss: Annotated[float, Field(allow_inf_nan=False)]
    images_per_s: Rate
    val_miou: Percent | None = None  # of the epochs that were validated
    # Where truth of unlabelled images is known: see docs/results.md
    pseudo_miou: Percent | None = None
    pseudo_accuracy: Percent | None = None
    reliable_share: Percent | None = None
    reliable_accuracy: Percent | None = None
    key_purity: Percent | None = None
    unlabelled_key_purity: Percent | None = None
    new_keys: Amount | None = None
    new_key_classes: Amount | None = None


def write_history(path: Path, rows: Sequence[dict[str, float]]) -> None:
    """Write a line per epoch, with every column that one of them has, atomically."""
    for row in rows:
        validate(HistoryRow, row, path)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
