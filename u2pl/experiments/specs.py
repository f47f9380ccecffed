"""A job's specification is a file: what identifies a run, table, figure or data set, and nothing else.

results/<scale>/specs/<kind>/<name>.json   the specification, written only if its content changed
made.json, made/<kind>/<name>.json         receipt of a result: SHA-256 of its specification and of its small inputs

A result is current if its receipt has the hashes of today's files. This holds in a fresh clone too, where all dates are
new.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from u2pl.addresses import public
from u2pl.errors import UserError
from u2pl.experiments.grid import figure_cells, published_list
from u2pl.experiments.read import pick
from u2pl.experiments.records import Receipt, read, write
from u2pl.experiments.suite import RunSpec, Suite
from u2pl.files import atomic_path, sha256
from u2pl.folders import RECEIPT, WEIGHTS, Data, Run, data_of, fetched, results_of, split_name

PLANNED = "U2PL_PLANNED"  # in the environment of jobs that Snakemake starts
KINDS = (
    "synthesize", "fetch", "weights", "prepare", "mirror", "list", "split", "train", "cells", "table", "figure", "page",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One job of the workflow: its specification, the small files it takes and the files it makes."""

    kind: str
    name: str
    content: Any
    inputs: list[str]
    outputs: list[str]
    spec: str
    receipt: str

    @cached_property
    def text(self) -> str:
        """The specification as its file holds it."""
        return json.dumps(self.content, indent=1, sort_keys=True) + "\n"

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the specification."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class Jobs:
    """All jobs of a scale, each after those that make its inputs."""

    def __init__(self, suite: Suite) -> None:
        self.suite, self.data, self.results = suite, data_of(suite.scale), results_of(suite.scale)
        self._jobs: dict[tuple[str, str], Job] = {}
        self._makers: dict[str, Job] = {}  # by output
        self._above: dict[str, dict[str, str]] = {}
        self._add_data()
        for run in suite.runs.values():
            self._add_run(run)
        self._add_report()

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def __call__(self, kind: str, *name: str) -> Job:
        """The job of that kind and name; raises UserError if there is none."""
        key = "/".join(name)
        known = {name: job for (other, name), job in self._jobs.items() if other == kind}
        return pick(known, key, f"{kind} at scale {self.suite.scale!r}")

    def above(self, job: Job) -> dict[str, str]:
        """SHA-256 of the specifications of all jobs whose results the job rests on, by their paths."""
        if job.spec not in self._above:
            found: dict[str, str] = {}
            for path in job.inputs:
                maker = self._makers[path]
                found |= {maker.spec: maker.sha256} | self.above(maker)
            self._above[job.spec] = found
        return self._above[job.spec]

    def _add(
        self, kind: str, name: str, content: Any, inputs: Iterable[Path], outputs: Iterable[Path], receipt: Path
    ) -> Job:
        spec = str(self.results.spec(kind, name))
        job = Job(kind, name, content, sorted(map(str, inputs)), list(map(str, outputs)), spec, str(receipt))
        self._jobs[kind, name] = job
        self._makers |= dict.fromkeys([*job.outputs, job.receipt], job)
        return job

    def _add_data(self) -> None:
        suite, data = self.suite, self.data
        for name, dataset in suite.datasets.items():
            drawn = dataset.synthetic.model_dump(mode="json") if dataset.synthetic else None
            files = [data.upstream / archive.file for archive in dataset.archives.values()]
            sources: list[Path] = []
            if drawn:
                content: dict[str, Any] = {"kind": dataset.kind, "drawn": drawn}
                sources = [data.receipt("synthesize", name)]
                self._add("synthesize", name, content, [], files, *sources)
            for key, archive in dataset.archives.items():
                content = {"archive": archive.identity, "drawn": drawn}
                manifest = [fetched(data.archives / archive.file)]
                self._add("fetch", f"{name}/{key}", content, sources, manifest, data.receipt("fetch", f"{name}/{key}"))
            # Names, not display colours: masks hold numbers.
            content = dataset.model_dump(mode="json", include={"kind", "ignore_label", "counts"})
            content |= {"classes": [label.name for label in dataset.classes]}
            manifests = [fetched(data.archives / archive.file) for archive in dataset.archives.values()]
            receipt = data.receipt("prepare", name)
            self._add("prepare", name, content, manifests, [data.prepared(name).manifest], receipt)
        for file, archive in suite.weights.items():
            content, receipt = {"archive": archive.identity}, WEIGHTS / f"{file}.{RECEIPT}"
            self._add("weights", file, content, [], [fetched(WEIGHTS / file)], receipt)
        for source in suite.published:
            self._add_lists(source)
        for name, protocol in suite.protocols.items():
            for labelled in protocol.fractions.values():
                for seed in suite.seeds:
                    self._add_split(name, "drawn", labelled, seed)
                for source in suite.published:
                    self._add_split(name, source, labelled)

    def _add_lists(self, source: str) -> None:
        suite, data, published = self.suite, self.data, self.suite.published[source]
        for name, lists in published.lists.items():
            protocol = suite.protocols[name]
            dataset = suite.datasets[protocol.dataset]
            paths = published.paths(name)
            inputs: list[Path] = []
            if dataset.synthetic:
                content: dict[str, Any] = {
                    "protocol": protocol.model_dump(mode="json"),
                    "lists": {fraction: files.model_dump(mode="json") for fraction, files in lists.items()},
                    "kind": dataset.kind,
                }
                drawn = [Data(data.upstream).lists(source) / path for path in paths]
                inputs = [data.receipt("mirror", f"{source}/{name}")]
                prepared = [data.prepared(protocol.dataset).manifest]
                self._add("mirror", f"{source}/{name}", content, prepared, drawn, *inputs)
            for path in paths:
                hashes = published.sha256[path].model_dump() if published.sha256 else public(published.url)
                stem, outputs = f"{source}/{path}", [fetched(data.lists(source) / path)]
                content = {"path": path, "expected": hashes}
                self._add("list", stem, content, inputs, outputs, data.receipt("list", stem))

    def _add_split(self, name: str, source: str, labelled: int, seed: int | None = None) -> None:
        suite, data, protocol = self.suite, self.data, self.suite.protocols[name]
        try:
            lists = published_list(suite, source, name, labelled)
        except UserError:
            return  # not published
        content = {
            "name": name,
            "protocol": protocol.model_dump(mode="json", exclude={"fractions"}),
            "labelled": labelled,
        }
        inputs = [data.prepared(protocol.dataset).manifest]
        if lists:
            published = suite.published[source]
            paths = [path for path in (lists.labelled, lists.unlabelled) if path]
            content |= {"repository": published.repository, "commit": published.commit, "lists": paths}
            hashes = published.sha256 or {}
            content |= {"sha256": {path: hashes[path].model_dump() for path in paths if path in hashes}}
            inputs += [fetched(data.lists(source) / path) for path in paths]
        else:
            content |= {"seed": seed, "stratified": suite.params.synthetic}
        folder = split_name(name, source, labelled, seed)
        split = data.split(folder)
        outputs = [split.manifest, *map(split.list, ("labeled", "unlabeled", "val"))]
        self._add("split", folder, content, inputs, outputs, split.receipt)

    def _add_run(self, run: RunSpec) -> None:
        data, made = self.data, self.results.run(run.id)
        inputs = [data.prepared(run.dataset_name).manifest, data.split(run.split).manifest]
        inputs += [fetched(Path(run.weights))] if run.weights else []
        outputs = [made.record, made.history, made.weights, made.evaluation, made.images]
        self._add("train", run.id, run.science(), inputs, outputs, made.receipt)

    def _runs(self, runs: set[str]) -> list[Run]:
        return [self.results.run(run) for run in sorted(runs)]

    def _add_report(self) -> None:
        suite, results = self.suite, self.results
        shown = {"title": suite.params.title, "synthetic": suite.params.synthetic}
        shown |= {"margin": suite.params.equivalence_margin, "seeds": len(suite.params.seeds)}
        cells = {name: [cell for cell in suite.cells if cell.table == name] for name in suite.tables}
        listed = {name: [cell.model_dump(mode="json") for cell in own] for name, own in cells.items()}
        tables = {name: table.model_dump(mode="json") for name, table in suite.tables.items()}
        used = {run for cell in suite.cells for run in cell.runs}
        inputs = [run.evaluation for run in self._runs(used)] + [run.history for run in self._runs(set(suite.runs))]
        outputs = [
            results.cells(),
            results.comparisons(),
            results.gains,
            results.claims,
            results.classes,
            results.metrics,
            results.curves,
        ]
        claims = {name: table["claims"] for name, table in tables.items() if table["claims"]}
        self._add(
            "cells",
            "all",
            shown | {"cells": listed, "claims": claims},
            inputs,
            outputs,
            results.receipt("cells", "all"),
        )
        for name, own in cells.items():
            content = shown | {"table": tables[name], "cells": listed[name]}
            wide = [results.table(name).with_name(f"{name}.{ending}") for ending in ("csv", "md", "tex")]
            outputs = [results.cells(name), results.comparisons(name), *wide]
            inputs = [run.evaluation for run in self._runs({run for cell in own for run in cell.runs})]
            self._add("table", name, content, inputs, outputs, results.receipt("table", name))
        for name, figure in suite.figures.items():
            shows = figure_cells(suite, name)
            content = {"figure": figure.model_dump(mode="json")}
            content |= {"cells": {title: cell.model_dump(mode="json") for title, cell in shows.items()}}
            if figure.table:
                content |= {"table": tables[figure.table]} | shown
            else:
                dataset = suite.runs[next(iter(shows.values())).runs[0]].dataset
                content |= {"classes": [label.model_dump(mode="json") for label in dataset.classes]}
            outputs = [results.figure(name).with_name(f"{name}.{ending}") for ending in ("pdf", "png")]
            self._add("figure", name, content, self._figure_inputs(name), outputs, results.receipt("figure", name))
        colours = {
            name: dataset.model_dump(mode="json", include={"classes"}) for name, dataset in suite.datasets.items()
        }
        departures = {run: spec.departures for run, spec in suite.runs.items()}
        content = shown | {"tables": tables, "datasets": colours, "departures": departures}
        every = self._runs(set(suite.runs))
        inputs = [results.cells(), results.classes]
        inputs += [path for run in every for path in (run.record, run.history, run.evaluation)]
        self._add("page", "all", content, inputs, [results.page], results.receipt("page", "all"))

    def _figure_inputs(self, name: str) -> list[Path]:
        """The small files that change with the figure's runs, and so with their weights."""
        figure, shown = self.suite.figures[name], figure_cells(self.suite, name).values()
        if figure.kind == "comparison":
            return [self.results.cells(figure.table)]
        if figure.kind in ("curves", "diagnostics"):
            return [run.history for run in self._runs({run for cell in shown for run in cell.runs})]
        return [run.evaluation for run in self._runs({cell.runs[0] for cell in shown})]


def write_specs(jobs: Jobs) -> None:
    """Write the specifications that changed, and remove those of jobs that are no more."""
    root = jobs.results.specs
    for kind in KINDS:
        (root / kind).mkdir(parents=True, exist_ok=True)
    wanted = {Path(job.spec) for job in jobs}
    for path in root.rglob("*.json"):
        if path not in wanted:
            path.unlink()
    for job in jobs:
        _write_spec(job)


def _write_spec(job: Job) -> None:
    path = Path(job.spec)
    if not path.is_file() or path.read_text(encoding="utf-8") != job.text:
        with atomic_path(path, durable=False) as temporary:
            temporary.write_text(job.text, encoding="utf-8")


@contextmanager
def recorded(suite: Suite, kind: str, *name: str) -> Iterator[None]:
    """Do a job by its specification, and write its receipt if the block succeeds.

    By hand the file may be missing, or of former params: it is written then. In a job that Snakemake has planned it
    must be what the verb would do: raises UserError if params were edited in between.
    """
    jobs = Jobs(suite)
    job = jobs(kind, *name)
    if PLANNED in os.environ and there(job.spec) and Path(job.spec).read_text(encoding="utf-8") != job.text:
        raise UserError(
            job.spec, "another specification than today's params give", "the same command again, to plan anew"
        )
    _write_spec(job)
    inputs = {path: sha256(Path(path)) for path in job.inputs if there(path)}
    receipt = Receipt(spec_sha256=job.sha256, inputs=inputs, above=jobs.above(job))
    if not is_current(job, {}):  # an interruption must not leave new files under an old receipt
        Path(job.receipt).unlink(missing_ok=True)
    yield
    write(Path(job.receipt), receipt)


def there(path: str) -> bool:
    return Path(path).is_file()


def receipt_of(job: Job) -> Receipt | None:
    """The job's receipt; None if there is none, or a damaged one."""
    try:
        return read(Receipt, Path(job.receipt))
    except UserError:
        return None


def is_current(job: Job, hashes: dict[str, str]) -> bool:
    """Whether the receipt has today's hashes. A missing input, as after a partial `dvc pull`, is not judged."""
    receipt = receipt_of(job)
    if receipt is None or receipt.spec_sha256 != job.sha256 or sorted(receipt.inputs) != job.inputs:
        return False
    for path in filter(there, job.inputs):
        if path not in hashes:
            hashes[path] = sha256(Path(path))
    return all(hashes.get(path, known) == known for path, known in receipt.inputs.items())
