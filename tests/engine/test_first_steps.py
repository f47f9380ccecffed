"""The first steps from the warm state: on another platform seeded faults are found, and rounding is not.

The runs of the scale `check` are made by hand, of another CPU and two mIoU off: comparing them finds nothing.
"""

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from made import evaluation, history, record
from torch import Tensor

from u2pl.cli.main import main
from u2pl.engine import first_steps as module
from u2pl.errors import UserError
from u2pl.experiments import load_suite
from u2pl.experiments.suite import RunSpec
from u2pl.files import sha256, write_json
from u2pl.report.baseline import LIBRARIES
from u2pl.report.first_steps import TOLERANCE, read_first_steps

ROOT = Path(__file__).parents[2]
BASELINES = ROOT / "results/baselines"
WARM = BASELINES / "check-warm.npz"
SPECS = [load_suite("check", ROOT).runs[run] for run in load_suite("check", ROOT).params.first_steps]


def fill(folder: Path) -> Path:
    """A checkout's params and baselines; nothing else."""
    (folder / "params").symlink_to(ROOT / "params")
    shutil.copytree(BASELINES, folder / "results/baselines")
    return folder


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout on another platform, with the finished runs of the baseline."""
    folder = fill(tmp_path_factory.mktemp("elsewhere"))
    suite = load_suite("check", ROOT)
    for row in pd.read_csv(BASELINES / "check.csv").to_dict("records"):
        run = folder / "results/check/runs" / row["run"]
        write_json(run / "evaluation.json", evaluation(row["best"] + 2, row["last"] - 2))
        (run / "history.csv").write_text(history((1, row["loss"], None)))
        took = {"cpu": "Another CPU", "libraries": {**dict.fromkeys(LIBRARIES, "1.0"), "python": "3.11.7"}}
        took["params_sha256"] = suite.runs[row["run"]].params_sha256
        write_json(run / "run.json", record(row["run"], history=sha256(run / "history.csv"), **took))
    return folder


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def u2pl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call a verb in a folder; gives the exit code and what was printed."""
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)

    def call(folder: Path, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr("sys.argv", ["u2pl", *arguments, "--scale", "check"])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), *capsys.readouterr()

    return call


def with_settings(patch: pytest.MonkeyPatch, change: Callable[[Any], dict[str, Any]]) -> None:
    """Build every method that has the settings with others than those of its run."""
    import u2pl.engine.trainer as engine

    build = engine.build_method

    def wrong(name: str, settings: Any, setup: Any) -> Any:
        fields = type(settings).model_fields
        found = {key: value for key, value in change(settings).items() if key in fields}
        return build(name, settings.model_copy(update=found), setup)

    patch.setattr(engine, "build_method", wrong)


def unweighted(patch: pytest.MonkeyPatch) -> None:
    """lambda_u (Eq. 8) left out: the mean over the reliable pixels as it is."""
    import u2pl.components.pseudo_labels as words

    patch.setattr(words, "unsupervised_weight", lambda labels, *_: torch.ones(len(labels), dtype=torch.float64))


def never_follows(patch: pytest.MonkeyPatch) -> None:
    import u2pl.components.teacher as words

    patch.setattr(words, "ema_update", lambda *_, **__: None)


PAPER, RELEASED, CUTMIX, MT = "u2pl (paper)", "u2pl (released)", "cutmix (paper)", "mean_teacher (paper)"
# The methods that a fault concerns, the part that shows it in PAPER, and what makes it.
FAULTS: dict[str, tuple[set[str], str, Callable[[pytest.MonkeyPatch], None]]] = {
    "alpha_0 0.25 for 0.2": (
        {PAPER, RELEASED},
        "threshold",
        lambda patch: with_settings(patch, lambda _: {"alpha_0": 0.25}),
    ),
    "averaged buffers": (
        {PAPER, RELEASED, CUTMIX, MT},
        r"\w+",
        lambda patch: with_settings(patch, lambda _: {"teacher_buffers": "averaged"}),
    ),
    "no lambda_u": ({PAPER, RELEASED}, "unsupervised", unweighted),
    # The released reading does not see it: see docs/results.md.
    "r_low off by one": (
        {PAPER},
        "contrastive",
        lambda patch: with_settings(patch, lambda own: {"r_low": getattr(own, "r_low", 0) + 1}),
    ),
    "a teacher that never follows": ({PAPER, RELEASED, CUTMIX, MT}, r"\w+", never_follows),
}


def test_an_unchanged_suite_passes_on_another_platform(u2pl: Call, elsewhere: Path) -> None:
    code, out, _ = u2pl(elsewhere, "check")
    assert code == 0, out
    assert "92 losses of first steps, compared to within 0.0005: 0 moved" in out
    assert "54 numbers, 0 of them compared exactly: 0 moved" in out


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_on_another_platform(
    u2pl: Call, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    concerned, part, make = FAULTS[fault]
    make(monkeypatch)
    code, out, _ = u2pl(elsewhere, "check")
    assert code == 1
    assert "54 numbers, 0 of them compared exactly: 0 moved" in out  # the runs alone would pass
    form = r"(.+ \(\w+\)), step \d, (\w+): found (\S+), expected (\S+) to within 0\.0005(?: \(and \d+ more\))?"
    lines = [found for line in out.splitlines() if (found := re.fullmatch(form, line))]
    assert {line[1] for line in lines} == concerned and len(lines) == len(concerned), out
    assert all(abs(float(line[3]) - float(line[4])) > TOLERANCE for line in lines)
    assert re.fullmatch(part, next(line[2] for line in lines if line[1] == PAPER))


def taken(warm: module.WarmState) -> np.ndarray:
    return np.array([row[-1] for row in module.first_steps(SPECS, warm, WARM)])


def moved(values: np.ndarray) -> float:
    """How far the part is off that moved most from the committed baseline."""
    return float(np.abs(values - read_first_steps(BASELINES / "check-first_steps.csv")["value"].to_numpy()).max())


@pytest.mark.parametrize("seed", range(3))
def test_rounding_stays_far_within_the_tolerance(seed: int) -> None:
    warm, generator = module.load(WARM), torch.Generator().manual_seed(seed)

    def noisy(value: Tensor) -> Tensor:
        noise = torch.randn(value.shape, generator=generator)
        return value * (1 + 1e-6 * noise) if value.is_floating_point() else value

    weights = {name: noisy(value) for name, value in warm.weights.items()}
    assert 0 < moved(taken(dataclasses.replace(warm, weights=weights))) < TOLERANCE / 10


def test_other_kernels_stay_far_within_the_tolerance() -> None:
    """Not with other threads: where these wait for a busy core, that takes minutes."""
    with torch.backends.mkldnn.flags(enabled=False):
        assert 0 < moved(taken(module.load(WARM))) < TOLERANCE / 10


def test_steps_need_neither_runs_nor_data(u2pl: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = u2pl(fill(tmp_path), "check", "--steps", "--junit", "steps.xml")
    assert code == 0 and len(out.splitlines()) == 1
    assert 'tests="92" failures="0"' in (tmp_path / "steps.xml").read_text()
    unweighted(monkeypatch)
    assert u2pl(tmp_path, "check", "--steps")[0] == 1
    code, out, err = u2pl(tmp_path, "check", "--steps", "--against", "other.csv")
    assert code == 2 and err.startswith("u2pl: --against: found other.csv with --steps")


def test_a_loss_that_is_not_finite_moved(u2pl: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import u2pl.methods.suponly as method

    monkeypatch.setattr(method, "labelled_loss", lambda output, *_: output["logits"].sum() * torch.nan)
    code, out, _ = u2pl(fill(tmp_path), "check", "--steps")
    assert code == 1 and "suponly (paper), step 1, supervised: found no number, expected 0." in out


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda path: path.unlink(), "no file"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "File is not a zip file"),
        (lambda path: np.savez(path, epoch=np.array(13)), "a step without images"),
        (lambda path: np.savez(path, weights=np.zeros(3)), "no array 'epoch'"),
    ],
)
def test_a_damaged_state_ends_in_one_line(
    u2pl: Call, tmp_path: Path, damage: Callable[[Path], Any], found: str
) -> None:
    damage(fill(tmp_path) / "results/baselines/check-warm.npz")
    code, out, err = u2pl(tmp_path, "check", "--steps")
    assert code == 2 and not out and err.count("\n") == 1
    assert err.startswith("u2pl: results/baselines/check-warm.npz: found ") and found in err


def test_a_state_of_another_network_is_refused() -> None:
    warm = module.load(WARM)
    name = "student/encoder.conv1.weight"
    name = name if name in warm.weights else next(name for name in warm.weights if name.startswith("student/"))
    other = dataclasses.replace(warm, weights=warm.weights | {name: torch.zeros(2, 2)})
    with pytest.raises(UserError, match=rf"check-warm.npz: found {name} of shape \(2, 2\), expected shape .* for "):
        module.first_steps(SPECS[-1:], other, WARM)
    fewer = {key: value for key, value in warm.weights.items() if key != name}
    with pytest.raises(UserError, match=f"check-warm.npz: found no tensor {name}"):
        module.first_steps(SPECS[-1:], dataclasses.replace(warm, weights=fewer), WARM)


def test_the_committed_state_is_small_and_warm() -> None:
    warm = module.load(WARM)
    assert WARM.stat().st_size < 10**6
    sizes = {module.SETTINGS["bank_size"], module.SETTINGS["bank_size_background"]}
    assert set(warm.weights["bank/count"].tolist()) == sizes, "every ring is full"
    student, teacher = (
        torch.cat([v.flatten() for k, v in warm.weights.items() if k.startswith(part) and v.is_floating_point()])
        for part in ("student/", "teacher/")
    )
    assert student.shape == teacher.shape and not torch.equal(student, teacher)


def test_a_state_is_trained_and_kept(
    make_spec: Callable[..., RunSpec], prepared: Path, split: Path, tmp_path: Path
) -> None:
    """On another data set: what is written is what the values were taken from."""
    specs = [make_spec(method, epochs=4) for method in ("u2pl", "mean_teacher", "cutmix", "cps", "suponly")]
    warm, path = module.warm_up(specs[0], prepared, split), tmp_path / "warm.npz"
    module.save(warm, path)
    assert (warm.epoch, len(warm.batches)) == (3, module.STEPS)
    rows = module.first_steps(specs, warm, path)
    assert rows == module.first_steps(specs, module.load(path), path)
    assert {row[0] for row in rows} == {spec.method for spec in specs}
    first = path.read_bytes()
    module.save(module.warm_up(specs[0], prepared, split), path)
    assert path.read_bytes() == first
    with pytest.raises(UserError, match="expected two networks and a bank at most"):
        module.first_steps([make_spec("gct", epochs=4)], warm, path)
    with pytest.raises(UserError, match="found the method cps first, expected one with a teacher and a bank"):
        module.warm_up(specs[3], prepared, split)
