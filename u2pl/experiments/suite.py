"""What a scale measures: the cells of its tables, and the trainings behind them with every setting resolved."""

import hashlib
import json
from typing import Any, Literal

from pydantic import SerializeAsAny, ValidationInfo, field_validator

from u2pl.experiments.schema import (
    DEFAULT_FIDELITY,
    Archive,
    Dataset,
    Figure,
    Method,
    Protocol,
    PublishedSource,
    Recipe,
    Scale,
    Table,
)
from u2pl.experiments.settings import SETTINGS, Training
from u2pl.experiments.values import Fraction, Source, Strict
from u2pl.folders import split_name

# Left out of what identifies a run while they have the reference's values.
COMPUTATION = ("precision", "tf32", "channels_last", "fused_sgd")
# Never part of it.
MACHINE = (
    "gpus", "threads", "mem_mb", "estimate", "workers", "persistent_workers", "pinned_memory", "save_every_minutes",
)  # fmt: skip


class RunSpec(Strict):
    """One training with every setting resolved."""

    scale: str
    protocol: str
    fraction: Fraction
    labelled: int
    method: str
    fidelity: str  # the preset that `overrides` start from: the one with fewer of them
    overrides: dict[str, Any]  # settings that differ from the preset's
    departures: dict[str, Any] = {}  # setting -> the paper preset's value, where ours is another one
    seed: int
    dataset_name: str
    dataset: Dataset
    recipe: Recipe
    settings: SerializeAsAny[Training]  # of the method's own class

    @field_validator("settings", mode="before")
    @classmethod
    def of_the_method(cls, value: Any, info: ValidationInfo) -> Any:
        """A mapping, as files hold it, becomes the settings class of `method`."""
        kind = SETTINGS.get(info.data.get("method", ""), Training)
        return kind.model_validate(value) if isinstance(value, dict) else value

    @property
    def weights(self) -> str | None:
        """The encoder weights file that fits the stem; None: random initialisation."""
        return self.recipe.network.weights.get(self.settings.backbone_stem)

    @property
    def split(self) -> str:
        """The folder of the split lists below data/<scale>/splits."""
        return split_name(self.protocol, self.settings.split_source, self.labelled, self.seed)

    def science(self) -> dict[str, Any]:
        """What the numbers depend on: all but addresses, colours and what the machine is asked for."""
        reference = [name for name in COMPUTATION if getattr(self.recipe, name) == Recipe.model_fields[name].default]
        machine = {name: True for name in (*MACHINE, *reference)}
        dataset: dict[str, Any] = {"archives": True, "disk_mb": True, "synthetic": True, "evaluation": {"batch": True}}
        dataset["classes"] = {"__all__": {"colour": True}}
        exclude: dict[str, Any] = {"recipe": machine, "dataset": dataset}
        # The preset is a way to write settings, not one of them.
        exclude |= {"fidelity": True, "overrides": True, "departures": True}
        return self.model_dump(mode="json", exclude=exclude)

    @property
    def params_sha256(self) -> str:
        """SHA-256 of `science()`."""
        return hashlib.sha256(json.dumps(self.science(), sort_keys=True).encode()).hexdigest()

    @property
    def id(self) -> str:
        """Canonical and readable: equal settings give the equal id."""
        changed = [f"{key}={value}" for key, value in sorted(self.overrides.items())]
        reading = [] if self.fidelity == DEFAULT_FIDELITY else [self.fidelity]
        return "-".join([self.protocol, str(self.labelled), self.method, *reading, *changed, f"seed{self.seed}"])


class Cell(Strict):
    """One number of one table; `runs` holds a run id per seed, none for quoted cells."""

    table: str
    row: str
    column: str
    fraction: str
    protocol: str
    labelled: int
    method: str
    fidelity: str
    overrides: dict[str, Any]
    source: Source
    checkpoint: Literal["best", "last"]  # which of a run's two evaluations is reported
    paper: float | None
    copied_from: str = ""  # where the paper took that number; empty: its authors measured it
    runs: list[str]


class Suite(Strict):
    """Everything a scale measures."""

    scale: str
    params: Scale
    datasets: dict[str, Dataset]
    protocols: dict[str, Protocol]
    methods: dict[str, Method] = {}
    weights: dict[str, Archive]
    published: dict[str, PublishedSource] = {}  # split lists of other repositories
    tables: dict[str, Table]
    runs: dict[str, RunSpec]
    cells: list[Cell]
    figures: dict[str, Figure] = {}  # those whose tables the scale has

    @property
    def seeds(self) -> list[int]:
        """Of the runs: the scale's, and those that a row has beyond them."""
        return list(dict.fromkeys([*self.params.seeds, *(run.seed for run in self.runs.values())]))

    @property
    def baseline_runs(self) -> list[str]:
        """The runs whose numbers are kept in results/baselines/<scale>.csv."""
        return list(self.runs) if self.params.baseline is None else self.params.baseline
