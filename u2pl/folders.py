"""Where everything of a scale lies: the only place that spells a path."""

from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"
RECEIPT = "made.json"  # what a result was made of, see u2pl/experiments/specs.py
WEIGHTS = Path("weights")  # of encoders


def split_name(protocol: str, source: str, labelled: int, seed: int | None) -> str:
    """The folder of a split below data/<scale>/splits. Each seed has drawn lists; published ones serve all seeds."""
    name = f"{protocol}/{source}/{labelled}"
    return f"{name}/seed{seed}" if source == "drawn" else name


def fetched(file: Path) -> Path:
    """The manifest beside a file that was fetched."""
    return file.with_name(f"{file.name}.json")


@dataclass(frozen=True)
class Prepared:
    """The converted images, masks and lists of a data set."""

    folder: Path

    @property
    def manifest(self) -> Path:
        return self.folder / MANIFEST

    @property
    def checksums(self) -> Path:
        return self.folder / "checksums.sha256"

    @property
    def sources(self) -> Path:
        """What an interrupted conversion was of."""
        return self.folder / "sources.json"

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def masks(self) -> Path:
        return self.folder / "masks"

    @property
    def lists(self) -> Path:
        return self.folder / "lists"

    def list(self, name: str) -> Path:
        return self.lists / f"{name}.txt"

    def mask(self, image_id: str) -> Path:
        return self.masks / f"{image_id}.png"


@dataclass(frozen=True)
class Split:
    """The lists that a run is trained and validated on: `labeled`, `unlabeled` and `val`."""

    folder: Path

    @property
    def manifest(self) -> Path:
        return self.folder / MANIFEST

    @property
    def receipt(self) -> Path:
        return self.folder / RECEIPT

    def list(self, name: str) -> Path:
        return self.folder / f"{name}.txt"


@dataclass(frozen=True)
class Data:
    """data/<scale>"""

    folder: Path

    @property
    def upstream(self) -> Path:
        """Synthetic archives, in place of the servers."""
        return self.folder / "upstream"

    @property
    def archives(self) -> Path:
        return self.folder / "archives"

    def lists(self, source: str) -> Path:
        """Split lists as published."""
        return self.folder / "lists" / source

    @property
    def splits(self) -> Path:
        return self.folder / "splits"

    def prepared(self, dataset: str) -> Prepared:
        return Prepared(self.folder / dataset)

    def split(self, name: str) -> Split:
        """name: of `split_name`"""
        return Split(self.splits / name)

    def receipt(self, kind: str, name: str) -> Path:
        return self.folder / "made" / kind / f"{name}.json"

    def split_manifests(self) -> list[Path]:
        """Those of all splits that have been made."""
        drawn = self.splits.glob(f"*/drawn/*/seed*/{MANIFEST}")
        published = (path for path in self.splits.glob(f"*/*/*/{MANIFEST}") if path.parts[-3] != "drawn")
        return sorted([*drawn, *published])


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path

    @property
    def record(self) -> Path:
        return self.folder / "run.json"

    @property
    def history(self) -> Path:
        return self.folder / "history.csv"

    @property
    def weights(self) -> Path:
        return self.folder / "weights.pt"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation.json"

    @property
    def images(self) -> Path:
        """Confusion matrices per validation image, see u2pl/experiments/confusions.py."""
        return self.folder / "images.npz"

    @property
    def receipt(self) -> Path:
        return self.folder / RECEIPT

    @property
    def live(self) -> Path:
        """dvclive's metrics and plots."""
        return self.folder / "live"


@dataclass(frozen=True)
class Results:
    """results/<scale>"""

    folder: Path

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def run(self, run: str) -> Run:
        return Run(self.runs / run)

    @property
    def specs(self) -> Path:
        return self.folder / "specs"

    def spec(self, kind: str, name: str) -> Path:
        return self.specs / kind / f"{name}.json"

    def receipt(self, kind: str, name: str) -> Path:
        return self.folder / "made" / (f"{kind}.json" if name == "all" else f"{kind}/{name}.json")

    @property
    def lock(self) -> Path:
        """Held by the one Snakemake that works on the scale."""
        return self.folder / ".lock"

    def records(self) -> list[Path]:
        """run.json of every finished run."""
        return sorted(self.runs.glob(f"*/{Run(Path()).record}"))

    def state(self, run: str) -> Path:
        """What an interrupted training resumes from."""
        return self.folder / "state" / run

    def cells(self, table: str | None = None) -> Path:
        """The cells of one table, or of all."""
        return self.folder / ("cells.csv" if table is None else f"cells/{table}.csv")

    def comparisons(self, table: str | None = None) -> Path:
        return self.folder / ("comparisons.csv" if table is None else f"comparisons/{table}.csv")

    @property
    def gains(self) -> Path:
        """What each row gains in the mean of its columns."""
        return self.folder / "gains.csv"

    @property
    def claims(self) -> Path:
        """What became of the claims of all tables."""
        return self.folder / "claims.csv"

    @property
    def classes(self) -> Path:
        """Intervals per class of all cells."""
        return self.folder / "classes.csv"

    def table(self, name: str) -> Path:
        """Without its suffix: .csv, .md or .tex."""
        return self.folder / "tables" / name

    def figure(self, name: str) -> Path:
        """Without its suffix: .pdf or .png."""
        return self.folder / "figures" / name

    @property
    def page(self) -> Path:
        return self.folder / "index.html"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def curves(self) -> Path:
        return self.folder / "curves.csv"


def data_of(scale: str) -> Data:
    return Data(Path("data") / scale)


def results_of(scale: str) -> Results:
    return Results(Path("results") / scale)


def baseline_of(scale: str) -> Path:
    """What `u2pl check` compares a scale with."""
    return Path("results/baselines") / f"{scale}.csv"


def first_steps_of(scale: str) -> Path:
    """The loss parts of the first steps from `warm_of`, which `u2pl check` compares."""
    return Path("results/baselines") / f"{scale}-first_steps.csv"


def warm_of(scale: str) -> Path:
    """The weights, memory bank and images that the first steps start from."""
    return Path("results/baselines") / f"{scale}-warm.npz"
