"""What holds between the values of params/, and which file is to blame where it does not."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from u2pl.errors import UserError
from u2pl.experiments.read import nearest, pick, validate
from u2pl.experiments.schema import LISTS, Dataset, Method, Preset, Protocol, Scale
from u2pl.experiments.settings import SETTINGS, Contrast, Training
from u2pl.experiments.suite import Suite

# Names become folders, wildcards, words of a shell and parts of run ids, whose hyphens separate the parts.
NAME = re.compile("[A-Za-z0-9_]+")
FILE_NAME = re.compile("[A-Za-z0-9_][A-Za-z0-9_.+-]*")
STEM = re.compile("[A-Za-z0-9_][A-Za-z0-9_-]*")
TAKEN = {"datasets": ("archives", "lists", "splits", "upstream", "weights"), "splits": ("drawn",)}
PARTS = ("all", *LISTS)  # of a preset


@dataclass(frozen=True)
class Files:
    """Where values come from: the files of `folder`, and those that the scale's file lays over them."""

    folder: Path
    scale: Path
    overrides: Scale

    def place(self, kind: str, name: str, path: Sequence[str], *keys: str) -> str:
        """Where the value of the first key below a path comes from: the scale's file if it has one of the keys."""
        part: Any = getattr(self.overrides, kind, {}).get(name, {})
        for step in path:
            part = part.get(step, {}) if isinstance(part, Mapping) else {}
        for key in keys:
            if key in part:
                return f"{self.scale}: {'.'.join([kind, name, *path, key])}"
        return f"{self.folder / kind}.yaml: {'.'.join([name, *path, keys[0]])}"


def check_name(pattern: re.Pattern[str], name: str, where: Path, taken: Iterable[str] = ()) -> None:
    if not pattern.fullmatch(name):
        raise UserError(f"{where}: {name[:80]!r}", "a name with other characters", f"one of {pattern.pattern}")
    if name in taken:
        raise UserError(f"{where}: {name}", "a name with a meaning of its own", "another name")


def check_datasets(datasets: Mapping[str, Dataset], protocols: Mapping[str, Protocol], files: Files) -> None:
    """Lists are those of the data set's kind, archives share a folder, and protocols use lists that there are."""
    owners: dict[str, str] = {}
    for name, dataset in datasets.items():
        known = LISTS[dataset.kind]
        if sorted(dataset.counts) != sorted(known):
            where = files.place("datasets", name, [], "counts")
            raise UserError(where, ", ".join(dataset.counts)[:200], ", ".join(known))
        for key, archive in dataset.archives.items():
            where = files.place("datasets", name, ["archives", key], "file")
            if archive.file in owners:
                raise UserError(where, f"{archive.file}, as {owners[archive.file]}", "a file of its own")
            owners[archive.file] = where
    for name, protocol in protocols.items():
        counts = datasets[protocol.dataset].counts
        for key in ("candidates", "universe"):
            if (value := getattr(protocol, key)) not in counts:
                where = files.place("protocols", name, [], key)
                raise UserError(where, value, f"a list of {protocol.dataset}: {', '.join(counts)}")
        if counts[protocol.candidates] > counts[protocol.universe]:
            where = files.place("protocols", name, [], "candidates")
            raise UserError(where, protocol.candidates, "a part of the universe")


def check_settings(presets: Mapping[str, Preset], methods: Mapping[str, Method], files: Files) -> None:
    """Methods are known, presets and methods hold settings, and leave a rank between the thresholds.

    Here, so that a mistake is blamed on its file and not on the table row that uses it.
    """
    for name, method in methods.items():
        if name not in SETTINGS:
            raise UserError(f"{files.folder / 'methods.yaml'}: {name}", "no such method", nearest(name, list(SETTINGS)))
        own = files.overrides.methods.get(name, {}).get("settings", {})
        settings_of(name, own, files.scale, ("methods", name, "settings"))
        settings_of(name, method.settings, files.folder / "methods.yaml", (name, "settings"))
    for name, preset in presets.items():
        for part in PARTS:
            own = files.overrides.fidelity.get(name, {}).get(part, {})
            _check_preset(own, files.scale, ("fidelity", name, part))
            _check_preset(getattr(preset, part), files.folder / "fidelity.yaml", (name, part))
        own = files.overrides.fidelity.get(name, {}).get("methods", {})
        _check_preset_of_methods(own, files.scale, ("fidelity", name, "methods"))
        _check_preset_of_methods(preset.methods, files.folder / "fidelity.yaml", (name, "methods"))
        for kind in LISTS:
            part = kind if {"r_low", "r_high"} & getattr(preset, kind).keys() else "all"
            place = files.place("fidelity", name, [part], "r_low", "r_high")
            check_ranks(place, Contrast(**preset.of(Contrast, kind)))
            for own_name, params in methods.items():
                place = files.place("methods", own_name, ["settings"], "r_low", "r_high")
                check_ranks(place, SETTINGS[own_name](**preset.of(SETTINGS[own_name], kind) | params.settings))


def _check_preset(settings: Mapping[str, Any], where: Path, key: tuple[str, ...]) -> None:
    """A preset lays values over every method that has them: each is a setting of at least one."""
    known = {name for kind in SETTINGS.values() for name in kind.model_fields}
    for name in settings:
        if name not in known:
            raise UserError(f"{where}: {'.'.join([*key, name[:80]])}", "an unknown key", nearest(name, sorted(known)))
    for kind in SETTINGS.values():
        validate(kind, {name: value for name, value in settings.items() if name in kind.model_fields}, where, key)


def _check_preset_of_methods(values: Mapping[str, Mapping[str, Any]], where: Path, key: tuple[str, ...]) -> None:
    for name, own in values.items():
        if name not in SETTINGS:
            raise UserError(f"{where}: {'.'.join([*key, name[:80]])}", "no such method", nearest(name, list(SETTINGS)))
        settings_of(name, own, where, (*key, name))


def settings_of(method: str, values: Mapping[str, Any], where: Path, key: tuple[str, ...]) -> Training:
    """The settings of a method; raises UserError for one that it does not use, though another method may."""
    kind = SETTINGS[method]
    for name in values:
        if name not in kind.model_fields:
            place = f"{where}: {'.'.join([*key, name[:80]])}"
            raise UserError(place, f"no setting of {method}", nearest(name, list(kind.model_fields)))
    return validate(kind, values, where, key)


def check_ranks(where: str, settings: Training, n_classes: int | None = None) -> None:
    """Raise UserError unless a rank lies from `r_low` to below `r_high` (Eq. 14, 15), where the method has them.

    Without any the contrastive loss has no negatives, and what is called U2PL trains without it.
    """
    if not isinstance(settings, Contrast):
        return
    low, high = settings.r_low, settings.r_high
    if low >= high:
        raise UserError(where, f"{low} with r_high = {high}", "r_low below r_high")
    if n_classes is not None and low >= n_classes:
        raise UserError(where, f"{low} with {n_classes} classes", f"at most {n_classes - 1}, the last rank")


def check_runs(suite: Suite, files: Files) -> None:
    """Every run finds enough images and its encoder weights; baseline and first steps name runs."""
    for key, archive in suite.weights.items():
        if archive.file != key:
            where = files.place("weights", key, [], "file")
            raise UserError(where, archive.file, f"{key}, the file's name in weights/")
    weights = {f"weights/{key}": archive for key, archive in suite.weights.items()}
    for run in suite.runs.values():
        protocol = suite.protocols[run.protocol]
        if run.labelled > (there := run.dataset.counts[protocol.candidates]):
            where = files.place("protocols", run.protocol, ["fractions"], run.fraction)
            raise UserError(where, f"{run.labelled} labelled images", f"at most the {there} of {protocol.candidates}")
        if run.weights is not None:
            where = files.place("recipes", run.dataset_name, ["network", "weights"], run.settings.backbone_stem)
            pick(weights, run.weights, where)
    for run_id in suite.params.baseline or []:
        pick(suite.runs, run_id, f"{files.scale}: baseline")
    for run_id in suite.params.first_steps:
        pick(suite.runs, run_id, f"{files.scale}: first_steps")
