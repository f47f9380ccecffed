"""What the plan promises, against numbers worked out by hand."""

import math
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import yaml
from made import PREPARED, record

from u2pl.errors import UserError
from u2pl.experiments import load_suite
from u2pl.experiments.cost import minutes, shape_of, state_mb
from u2pl.experiments.plan import plan
from u2pl.experiments.records import recorded
from u2pl.experiments.schedule import steps_of, validates, validations
from u2pl.experiments.settings import SETTINGS
from u2pl.files import read_json, write_json

ROOT = Path(__file__).parents[2]
COLUMN = {"protocol": "pascal_classic", "fraction": "1/8"}  # 4 labelled, 44 unlabelled
U2PL = "pascal_classic-4-u2pl-seed0"
# Two epochs of batches of 8, one validation: 2 x 1 steps of 0.5 s, or 2 x 5 steps of 1.5 s, and 2 s.
SUPERVISED_S, SEMI_SUPERVISED_S = 2 * 1 * 0.5 + 2, 2 * 5 * 1.5 + 2


@pytest.fixture
def root(tmp_path):
    """A checkout of the demo's params with two tables that share a training."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    shutil.rmtree(tmp_path / "params/tables")
    (tmp_path / "params/figures.yaml").write_text("{}\n")
    for name, methods in (("a", ["suponly", "u2pl"]), ("b", ["u2pl", "mean_teacher"])):
        rows = [{"title": method, "method": method, "paper": [None]} for method in methods]
        path = tmp_path / "params/tables" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({"caption": name, "columns": [COLUMN], "rows": rows}))
    scale = yaml.safe_load((tmp_path / "params/scales/demo.yaml").read_text())
    estimate = {"supervised_step": 0.5, "semi_supervised_step": 1.5, "validation": 2, "weights_mb": 1}
    changes = {"epochs": 2, "validate_every": 2, "batch": 8, "crop": 49, "estimate": estimate}
    for recipe in scale["recipes"].values():
        recipe |= changes
    edit(tmp_path, tables=None, recipes=scale["recipes"])
    return tmp_path


def edit(root: Path, **changes) -> None:
    path = root / "params/scales/demo.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def made(root: Path, *names: str):
    return plan(load_suite("demo", root), list(names), root / "data", root / "results")


def test_the_plan_says_what_a_step_costs_relative_to_mean_teacher(root: Path) -> None:
    found = made(root).methods
    assert found["SupOnly"][0] == pytest.approx(0.5 / 1.5) and found["MT"] == (1, 1)
    assert list(made(root, "a").methods) == ["SupOnly", "U2PL"]


def finish(root: Path, run: str, **provenance) -> None:
    """A finished run: 10 steps at 4 images/s, of which 8 + 8 make a step, and 10 s more for its one validation."""
    took = {"device": "cpu (x86_64)", "world_size": 1, "steps": 10, "images_per_s": 4.0, "wall_time_s": 50.0}
    spec = load_suite("demo", root).runs[run].model_dump(mode="json")
    batch = provenance.pop("batch", spec["recipe"]["batch"])
    spec["recipe"]["batch"] = batch
    write_json(root / "results/runs" / run / "run.json", record(run, spec, **(took | provenance)))
    write_json(root / "results/runs" / run / "evaluation.json", {})


def rows(found):
    return {part.name: (part.trainings, part.shared, part.done, part.to_do, part.measured) for part in found.parts}


def hours(found):
    return {part.name: pytest.approx(part.hours * 3600) for part in found.parts}


def test_estimates_and_the_training_two_tables_share(root):
    found = made(root)
    assert rows(found) == {"a": (2, 1, 0, 2, 0), "b": (2, 1, 0, 2, 0), "in all": (3, 1, 0, 3, 0)}
    one, two = SUPERVISED_S + SEMI_SUPERVISED_S, 2 * SEMI_SUPERVISED_S
    assert hours(found) == {"a": one, "b": two, "in all": SUPERVISED_S + 2 * SEMI_SUPERVISED_S}
    assert (found.unit, found.devices) == ("hours", [])


def test_one_table_still_knows_what_the_others_share(root):
    assert rows(made(root, "b")) == {"b": (2, 1, 0, 2, 0), "in all": (2, 1, 0, 2, 0)}
    with pytest.raises(UserError, match="'c'"):
        made(root, "c")


def test_done_is_not_to_do_and_its_rate_serves_its_shape_alone(root):
    edit(root, seeds=[0, 1])
    finish(root, U2PL)
    found = made(root)
    # u2pl seed 1 is measured: 10 steps of 16 / 4 s and the 10 s that the training did not take
    assert rows(found) == {"a": (4, 2, 1, 3, 1), "b": (4, 2, 1, 3, 1), "in all": (6, 2, 1, 5, 1)}
    assert hours(found)["a"] == 2 * SUPERVISED_S + 50
    assert hours(found)["in all"] == 2 * SUPERVISED_S + 50 + 2 * SEMI_SUPERVISED_S
    assert found.devices == ["cpu (x86_64)"]


@pytest.mark.parametrize(
    ("more", "seconds"), [({"ids", "valid", "raw"}, 50), ({"unlabelled_2"}, 60), ({"labelled_2", "raw"}, 60)]
)
def test_a_rate_counts_images_and_not_what_batches_carry_beside_them(root, monkeypatch, more, seconds):
    """10 steps of 16 images at 4 images/s take 40 of the 50 s; with a second draw, of 24 images, they take 60 s."""
    edit(root, seeds=[0, 1])
    finish(root, U2PL)
    original = SETTINGS["u2pl"].streams.fget
    monkeypatch.setattr(SETTINGS["u2pl"], "streams", property(lambda self: original(self) | more))
    assert hours(made(root))["a"] == 2 * SUPERVISED_S + seconds


@pytest.mark.parametrize("other", [{"batch": 4}, {"device": "NVIDIA A100"}, {"world_size": 2}])
def test_another_batch_device_or_number_of_ranks_is_another_shape(root, other):
    edit(root, seeds=[0, 1])
    finish(root, U2PL, **other)
    assert made(root).parts[-1].measured == 0


def test_a_run_without_its_evaluation_is_to_do_and_measured(root):
    finish(root, U2PL)
    (root / "results/runs" / U2PL / "evaluation.json").unlink()
    assert rows(made(root))["in all"] == (3, 1, 0, 3, 1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: run.update(spec={}),
        lambda run: run["spec"]["recipe"].update(crop=[49]),
        lambda run: run["provenance"].update(device=7),
        lambda run: run["provenance"].update(images_per_s=0),
        lambda run: run.update(provenance=[]),
    ],
)
def test_a_damaged_record_is_named(root, damage):
    finish(root, U2PL)
    path = root / "results/runs" / U2PL / "run.json"
    run = read_json(path)
    damage(run)
    write_json(path, run)
    with pytest.raises(UserError, match="run.json"):
        made(root)


def test_two_gpus_take_half_the_time_and_the_same_gpu_hours(root):
    scale = yaml.safe_load((root / "params/scales/demo.yaml").read_text())
    scale["recipes"]["pascal"]["gpus"] = 2
    edit(root, recipes=scale["recipes"])
    found = made(root, "b")
    assert found.unit == "GPU-hours"
    # two GPUs share the steps; the validation keeps both
    assert hours(found)["b"] == 2 * (2 * 5 * 1.5 + 2 * 2)


def test_disk(root):
    found = made(root)
    # last and best of one network of 1 MB
    assert found.disk == {"archives": (0, 1), "prepared data": (0, 1), "weights.pt of the runs": (0, 2 + 2 + 2)}
    # student, teacher, momentum and the best; and 2000 + 20 x 1000 vectors of 16 numbers
    assert found.state == pytest.approx(4 + 22000 * 16 * 4 / 1e6)
    finish(root, U2PL)
    (root / "results/runs" / U2PL / "weights.pt").write_bytes(bytes(3_000_000))
    for archive in load_suite("demo", root).datasets["pascal"].archives.values():
        path = root / "data/archives" / archive.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(500_000))
    assert made(root).disk == {"archives": (1, 0), "prepared data": (0, 1), "weights.pt of the runs": (3, 2 + 2)}


def test_the_paper_time_limits_follow_the_steps():
    suite = load_suite("paper", ROOT)
    runs = suite.runs
    # 6 steps an epoch (92 images on 4 GPUs of 4), 80 epochs, 80 validations; half as much again, and ten minutes
    supervised = 80 * (6 * 0.6 + 60)
    assert minutes(suite, runs["pascal_classic-92-suponly-seed0"]) == 10 + math.ceil(1.5 * supervised / 60)
    # (10582 - 92) // 16 steps
    semi_supervised = 80 * (655 * 1.6 + 60)
    assert minutes(suite, runs["pascal_classic-92-u2pl-seed0"]) == 10 + 1.5 * semi_supervised / 60
    assert minutes(suite, runs["pascal_classic-92-u2pl-seed0"], 2) == 2 * (10 + 1.5 * semi_supervised / 60)
    u2pl = runs["pascal_classic-92-u2pl-seed0"]
    assert minutes(suite, u2pl, 3) == minutes(suite, u2pl, 9) == 3 * minutes(suite, u2pl)
    # 50000 vectors of the background and 30000 of each other class; the released reading keeps no bank
    bank = (50000 + 20 * 30000) * 256 * 4 / 1e6
    assert state_mb(runs["pascal_classic-92-u2pl-seed0"]) == pytest.approx(4 * 258 + bank)
    assert state_mb(runs["pascal_blender-662-u2pl-released-seed0"]) == 4 * 258
    gct = u2pl.model_copy(update={"method": "gct", "settings": SETTINGS["gct"]()})
    assert state_mb(gct) == 5 * 258 + 100  # two networks and their momentum, the best, the detector with Adam's moments


def test_windows_are_eight_times_as_long_as_centre_crops():
    """A Cityscapes run is validated after each of its 200 epochs; 174 steps take 3.6 s each, 500 crops 25 s."""
    suite = load_suite("paper", ROOT)
    spec = suite.runs["cityscapes-186-u2pl-seed0"]
    assert (spec.settings.selected_by, spec.dataset.evaluation.mode) == ("centre_crop", "sliding_window")
    assert minutes(suite, spec) == 10 + math.ceil(1.5 * 200 * (174 * 3.6 + 25) / 60)
    reported = spec.model_copy(update={"settings": spec.settings.model_copy(update={"selected_by": "reported"})})
    assert minutes(suite, reported) == 10 + math.ceil(1.5 * 200 * (174 * 3.6 + 8 * 25) / 60)
    # what reports centre crops needs no windows
    pascal = suite.runs["pascal_classic-92-u2pl-seed0"]
    reported = pascal.model_copy(update={"settings": pascal.settings.model_copy(update={"selected_by": "reported"})})
    assert minutes(suite, reported) == minutes(suite, pascal)


def test_a_measured_validation_by_windows_is_no_rate_for_one_by_centre_crops():
    suite = load_suite("paper", ROOT)
    shapes = {}
    for name, by in product(("pascal_classic-92-u2pl-seed0", "cityscapes-186-u2pl-seed0"), ("reported", "centre_crop")):
        spec = suite.runs[name]
        changed = spec.model_copy(update={"settings": spec.settings.model_copy(update={"selected_by": by})})
        shapes[name, by] = shape_of(recorded(changed), 1, gpu=True)
    assert len(set(shapes.values())) == 3, "centre crops are reported on VOC"


def test_steps_are_those_of_the_training(tmp_path):
    """For every kind of run, against the batches that the training would draw."""
    from u2pl.data.batches import TrainBatches

    suite = load_suite("demo", ROOT)
    write_json(tmp_path / "manifest.json", PREPARED)
    for spec in suite.runs.values():
        universe = spec.dataset.counts[suite.protocols[spec.protocol].universe]
        ids = [str(number) for number in range(universe)]
        for unit in ("labelled", "iterations"):
            for size in ("per_stream", "total"):
                for sampler in ("global", "distributed"):
                    update = {"suponly_epoch_unit": unit, "batch_size": size, "sampler": sampler}
                    changed = spec.settings.model_copy(update=update)
                    run = spec.model_copy(update={"settings": changed})
                    lists = ids[: spec.labelled], ids[spec.labelled :]
                    data = run.dataset, run.recipe, changed, 0
                    batches = TrainBatches(tmp_path, *lists, *data)
                    assert steps_of(suite, run) == len(batches), run.id


@pytest.mark.parametrize(("epochs", "every", "after"), [(7, 3, [3, 6, 7]), (6, 3, [3, 6]), (2, 5, [2]), (1, 1, [1])])
def test_validations_are_counted_where_they_are_made(epochs, every, after):
    assert [epoch for epoch in range(1, epochs + 1) if validates(epoch, epochs, every)] == after
    assert validations(epochs, every) == len(after)


def test_the_command_prints_80_columns_and_names_a_mistake():
    def u2pl(*arguments):
        command = [sys.executable, "-m", "u2pl", "plan", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"COLUMNS": "80", "PATH": ""})

    done = u2pl("--scale", "paper")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80 and "…" not in done.stdout
    assert (
        "in all" in done.stdout
        and str(len(load_suite("paper", ROOT).runs)) in done.stdout
        and "GPU-hours" in done.stdout
    )
    done = u2pl("table8")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
