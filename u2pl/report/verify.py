"""`u2pl verify`: every file of a scale against its recorded checksum or its source.

Checksums of archives are in params, in the manifest beside each and in that of what was prepared from them; those of
prepared files in checksums.sha256, whose own hash is in the manifest; those of split lists in their manifest, those of
weights in run.json, those of images.npz in evaluation.json. mIoU is recomputed from the confusion matrix, and that from
images.npz; tables, figures of numbers and the page from evaluations and histories, see remade.py. What depends on a
file that differs is not checked, so that one changed file is one finding.
"""

import hashlib
import sys
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from u2pl.data.sources.fetch import manifest_of
from u2pl.data.splits import draw as splits
from u2pl.errors import UserError
from u2pl.experiments.read import validate
from u2pl.experiments.records import FetchedManifest, PreparedManifest, RunRecord, SplitManifest, plain, read
from u2pl.experiments.schema import Archive, Recipe
from u2pl.experiments.suite import RunSpec, Suite
from u2pl.files import sha256
from u2pl.folders import Data, Prepared, Results, Run
from u2pl.report.checks import Check, left_out, tried
from u2pl.report.images import read_images
from u2pl.report.remade import check_figures, check_tables
from u2pl.report.runs import check_scores, read_run
from u2pl.report.show import flat

KINDS = ("archives", "prepared", "splits", "runs", "tables", "figures")
PARAMS = "params"


@dataclass(frozen=True)
class Hash:
    """The hash that a file should have and who says so; of params, its first digits may do, or nothing at all."""

    kind: str
    path: Path
    digest: str
    says: object
    algorithm: str = "sha256"
    required: bool = False  # else the file may be absent


def verify(suite: Suite, data: Path, results: Path) -> list[Check]:
    """Check archives, encoder weights, prepared data, splits, runs, tables, figures and page; nothing is changed.

    data, results: the scale's folders. All data and splits that exist are checked, whether a run names them or not;
    runs and tables that the suite does not name are left alone.
    """
    made = {name for name in suite.datasets if Data(data).prepared(name).manifest.exists()}
    datasets = sorted(made | {spec.dataset_name for spec in suite.runs.values()})
    found = [*_archives(suite, data, datasets), *_published(suite, data)]
    checks = [item for item in found if isinstance(item, Check)]
    hashes = [item for item in found if isinstance(item, Hash)]
    for prepared in map(Data(data).prepared, datasets):
        folder = prepared.folder
        # The manifest alone is what `dvc pull` brings.
        if not prepared.manifest.exists() or not prepared.images.exists():
            checks.append(Check("prepared", folder, "absent"))
            continue
        check, listed = tried("prepared", folder, _read_checksums)
        checks.append(check)
        hashes += listed or []
    recorded = set()
    for run, spec in suite.runs.items():
        check, files = tried("runs", Results(results).run(run).record, _read_record, spec, data)
        checks.append(check)
        if files is not None:
            recorded.add(run)
            hashes += files
    checks += _compare(hashes)
    differing = [check.path for check in checks if check.state == "differs"]
    checks += _splits(suite, data, differing)
    sound, counted = set(), set()
    for run, spec in suite.runs.items():
        made_run = Results(results).run(run)
        if run not in recorded:
            checks += [left_out("runs", made_run.evaluation), left_out("runs", made_run.images)]
            continue
        check, _ = tried("runs", made_run.evaluation, _check_evaluation, suite, results, spec)
        checks.append(check)
        if check.state != "same":
            checks.append(left_out("runs", made_run.images))
            continue
        sound.add(run)
        check, known = _check_images(suite, results, run)
        checks.append(check)
        if known:
            counted.add(run)
    whole = {run for run in sound if Results(results).run(run).history not in differing}
    with TemporaryDirectory() as again:
        checks += check_tables(suite, results, sound, counted, Path(again))
        return [*checks, *check_figures(suite, results, whole, counted, Path(again))]


def _declared(path: Path, archive: Archive) -> list[Hash | Check]:
    hashes = (("md5", archive.md5), ("sha256", archive.sha256))
    declared: list[Hash | Check] = [
        Hash("archives", path, digest or "", PARAMS, algorithm) for algorithm, digest in hashes
    ]
    return declared + _fetched("archives", path)


def _fetched(kind: str, path: Path) -> list[Hash | Check]:
    """What the manifest of a fetched file says of it; where it says nothing, that."""
    manifest = manifest_of(path)
    check, digest = tried(kind, manifest, lambda file: read(FetchedManifest, file).sha256)
    if check.state == "differs":
        return [check]
    return [] if digest is None else [Hash(kind, path, digest, manifest)]


def _archives(suite: Suite, data: Path, datasets: Iterable[str]) -> Iterator[Hash | Check]:
    """Archives and encoder weights, by params; archives also by the manifest of what was prepared from them."""
    for name in datasets:
        manifest = Data(data).prepared(name).manifest
        _, recorded = tried("prepared", manifest, lambda path: read(PreparedManifest, path).archives)
        for archive in suite.datasets[name].archives.values():
            path = Data(data).archives / archive.file
            yield from _declared(path, archive)
            if recorded:
                yield Hash("archives", path, recorded.get(archive.file, "none"), manifest)
    for file in sorted({spec.weights for spec in suite.runs.values() if spec.weights}):
        yield from _declared(Path(file), suite.weights[Path(file).name])


def _read_checksums(folder: Path) -> list[Hash]:
    """What checksums.sha256 says about the files of a prepared folder; UserError unless its hash is in the manifest."""
    path = Prepared(folder).checksums
    expected = read(PreparedManifest, Prepared(folder).manifest).content_sha256
    if not path.exists():
        raise UserError(path, "no file", "what `u2pl data prepare` writes")
    if (found := sha256(path)) != expected:
        raise UserError(path, f"sha256 {found}", f"{expected} of {Prepared(folder).manifest}")
    lines = [line.partition("  ") for line in path.read_bytes().decode(errors="replace").splitlines()]
    return [Hash("prepared", folder / name, digest, path, required=True) for digest, _, name in lines]


def _published(suite: Suite, data: Path) -> Iterator[Hash | Check]:
    """Fetched split lists, by the manifests of the splits made of them."""
    for manifest in _split_manifests(suite, data):
        _, hashes = tried("splits", manifest, _read_files, data)
        yield from hashes or []


def _split_manifests(suite: Suite, data: Path) -> dict[Path, str | None]:
    """The manifests of all splits that exist or that runs need, with the data set of the latter."""
    named = {Data(data).split(spec.split).manifest: spec.dataset_name for spec in suite.runs.values()}
    return dict(sorted((dict.fromkeys(Data(data).split_manifests()) | named).items()))


def _read_files(manifest: Path, data: Path) -> list[Hash | Check]:
    content = read(SplitManifest, manifest)
    hashes: list[Hash | Check] = []
    for facts in filter(None, content.files.values()):
        path = Data(data).lists(content.source) / facts.path
        hashes += [Hash("splits", path, facts.sha256, manifest), *_fetched("splits", path)]
    return hashes


def _read_record(path: Path, spec: RunSpec, data: Path) -> list[Hash]:
    """The files whose hashes run.json records: weights.pt, history.csv, and the encoder's weights if there are any.

    Raises UserError if the run was made with other params, other data or another split than those of today.
    """
    record = read(RunRecord, path)
    provenance, encoder, trained = record.provenance, record.provenance.encoder_weights, plain(record.spec)
    # What a run asks the machine for has changed its names; what is missing, today's defaults stand for.
    recipe = {key: value for key, value in trained["recipe"].items() if key in Recipe.model_fields}
    recipe = {"estimate": spec.recipe.estimate} | recipe
    # Runs made when all methods had the same settings recorded those that they did not use, and hashed them.
    used = type(spec.settings).model_fields
    settings = {key: value for key, value in trained["settings"].items() if key in used}
    made = validate(RunSpec, trained | {"recipe": recipe, "settings": settings}, path, ("spec",))
    then, now = flat(made.science()), flat(spec.science())
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key):
            raise UserError(path, f"{key} = {str(then.get(key))[:80]}", f"{str(now.get(key))[:80]} of today's params")
    if settings == trained["settings"] and provenance.params_sha256 != made.params_sha256:
        raise UserError(path, f"params_sha256 {provenance.params_sha256}", f"{made.params_sha256} of its spec")
    manifests = Data(data).prepared(spec.dataset_name).manifest, Data(data).split(spec.split).manifest
    recorded = {"data_sha256": provenance.data_sha256, "split_sha256": provenance.split_sha256}
    for (key, expected), manifest in zip(recorded.items(), manifests, strict=True):
        if manifest.exists() and (now_sha256 := sha256(manifest)) != expected:
            raise UserError(path, f"{key} {expected}", f"{now_sha256} of today's {manifest}")
    # Weights may be left behind where results go, as those of the scale mini are.
    run = Run(path.parent)
    hashes = [Hash("runs", run.weights, record.files.weights, path)]
    hashes.append(Hash("runs", run.history, record.files.history, path, required=True))
    return hashes + ([Hash("archives", Path(encoder.file), encoder.sha256, path)] if encoder else [])


def _digest(job: tuple[Path, str]) -> str | None:
    """The file's hash; None if it is absent."""
    path, algorithm = job
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, algorithm).hexdigest()
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"({error.strerror})"


def _compare(hashes: Collection[Hash]) -> list[Check]:
    """One check a file. Each is read once an algorithm, several at a time: hashing releases Python's lock."""
    known = [item for item in hashes if item.digest or item.says != PARAMS]
    unknown = {item.path: left_out(item.kind, item.path) for item in hashes}
    jobs = list(dict.fromkeys((item.path, item.algorithm) for item in known))
    watched = sys.stderr.isatty()
    with ThreadPoolExecutor() as pool:
        results = track(
            pool.map(_digest, jobs), "hashing", len(jobs), disable=not watched, console=Console(stderr=True),
            transient=True,
        )  # fmt: skip
        digests = dict(zip(jobs, results, strict=True))
    checks: dict[Path, Check] = {}
    for item in known:
        found = digests[item.path, item.algorithm]
        check = Check(item.kind, item.path)
        if found is None:
            lost = Check(item.kind, item.path, "differs", "no file", f"the one that {item.says} names")
            check = lost if item.required else Check(item.kind, item.path, "absent")
        elif found != item.digest and not (item.says == PARAMS and found.startswith(item.digest.lower())):
            expected = f"{item.digest} of {item.says}"
            check = Check(item.kind, item.path, "differs", f"{item.algorithm} {found}", expected)
        if checks.setdefault(item.path, check).state == "same":
            checks[item.path] = check
    return list((unknown | checks).values())


def _splits(suite: Suite, data: Path, differing: Collection[Path]) -> Iterator[Check]:
    for manifest, needed in _split_manifests(suite, data).items():
        check, name = tried("splits", manifest, _read_dataset, suite)
        if needed is None and name is None:
            yield check
            continue
        prepared = Data(data).prepared(needed or name)
        unsound = any(path.parent in (prepared.folder, prepared.lists) for path in differing)
        if unsound or not prepared.lists.is_dir():
            yield left_out("splits", manifest)
        else:
            check, _ = tried(
                "splits", manifest, lambda path, prepared: splits.check(path.parent, prepared.folder), prepared
            )
            yield check


def _read_dataset(manifest: Path, suite: Suite) -> str:
    """The data set that a split is of. Raises UserError if there is no such one."""
    name = read(SplitManifest, manifest).dataset
    if name not in suite.datasets:
        raise UserError(manifest, f"dataset {name[:80]!r}", f"one of {', '.join(suite.datasets)}")
    return name


def _check_evaluation(path: Path, suite: Suite, results: Path, spec: RunSpec) -> None:
    """Raise UserError unless the evaluation is of the run's weights, and its IoUs are those of its matrices."""
    evaluation, n_classes = read_run(suite, results, spec.id).evaluation, len(spec.dataset.classes)
    labels: list[list[int]] = []
    for name, scores in evaluation.checkpoints.items():
        counts = check_scores(path, name, scores)
        if len(counts) != n_classes:
            raise UserError(path, f"{name}.confusion of {len(counts)} classes", n_classes)
        labels.append(counts.sum(1).tolist())
    # Both checkpoints saw the same masks. An entry of two classes that were never right moves no IoU, but this.
    if labels[0] != labels[1]:
        c = next(c for c in range(n_classes) if labels[0][c] != labels[1][c])
        raise UserError(path, f"{labels[1][c]} pixels of class {c} in last.confusion", f"{labels[0][c]} as in best")


def _check_images(suite: Suite, results: Path, run: str) -> tuple[Check, bool]:
    """The outcome for images.npz, and whether what it says of the run's classes is known: it may say nothing."""
    done, folder = read_run(suite, results, run), Results(results).run(run)
    try:
        found = read_images(folder, done)
    except UserError as error:
        return Check("runs", folder.images, "differs", error.found, error.expected), False
    check = left_out("runs", folder.images) if found is None else Check("runs", folder.images)
    return check, found is not None or done.evaluation.images_sha256 is None


def render(checks: Collection[Check], console: Console) -> None:
    """Print what differs, the counts, and what is absent."""
    groups = {kind: [check for check in checks if check.kind == kind] for kind in KINDS}
    for check in (check for group in groups.values() for check in group if check.state == "differs"):
        console.print(Text(str(check.path), style="bold red"), soft_wrap=True)
        console.print(Text(f"  found     {check.found}\n  expected  {check.expected}"), soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("files")
    states = ("same", "differs", "absent", "unchecked")
    for state in states:
        table.add_column(state, justify="right")
    for kind, group in groups.items():
        table.add_row(kind, *(str(sum(check.state == state for check in group)) for state in states))
    console.print(table)
    for state, meaning in (("absent", "not here"), ("unchecked", "cannot be checked")):
        for group in groups.values():
            if paths := [str(check.path) for check in group if check.state == state]:
                more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
                console.print(Text(f"{meaning}: {paths[0]}{more}"), soft_wrap=True)
