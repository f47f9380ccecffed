"""What a training writes, learns, repeats, continues and refuses."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from tests.small import settings_for
from u2pl.engine.checkpoints import load
from u2pl.engine.evaluate import evaluate, evaluate_run, evaluated_network, mean_iou, validation_ids
from u2pl.engine.optimisers import assert_all_optimised, poly, set_rates
from u2pl.engine.train import Trainer, train
from u2pl.errors import UserError
from u2pl.experiments.settings import Stream
from u2pl.experiments.suite import RunSpec
from u2pl.methods import METHODS, Setup, build_method
from u2pl.models import build_network

Spec = Callable[..., RunSpec]
CPU = torch.device("cpu")


@pytest.fixture
def run(prepared: Path, split: Path, tmp_path: Path) -> Callable[..., Path]:
    def start(spec: RunSpec, name: str = "run", state: str = "state", weights: Path | None = None) -> Path:
        out = tmp_path / name
        train(spec, prepared=prepared, split=split, weights=weights, out=out, state=tmp_path / state)
        return out

    return start


def tensors(value: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of nested dicts, by path."""
    if isinstance(value, torch.Tensor):
        return {prefix: value}
    if not isinstance(value, dict):
        return {}
    return {key: t for name, item in value.items() for key, t in tensors(item, f"{prefix}/{name}").items()}


def assert_equal_weights(first: Path, second: Path) -> None:
    one, two = (tensors(load(out / "weights.pt")) for out in (first, second))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def history(out: Path) -> list[dict[str, str]]:
    with (out / "history.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_poly_is_the_closed_form() -> None:
    assert poly(0, 10, 0.9) == 1
    assert poly(5, 10, 0.9) == pytest.approx(0.5**0.9)
    assert [poly(i, 4, 1.0) for i in range(4)] == [1, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(("method", "trained"), [("suponly", 1), ("u2pl", 1), ("cps", 2)])
def test_optimiser_groups(method: str, trained: int, make_spec: Spec) -> None:
    recipe = make_spec().recipe
    setup = Setup(lambda: build_network(recipe.network, 3), 3, 255)
    built = build_method(method, settings_for(method, decoder_lr_multiplier=7.0), setup)
    (optimiser,) = built.optimisers(recipe)
    groups, network = optimiser.param_groups, setup.network()
    assert [group["lr"] for group in groups] == [0.02, pytest.approx(0.14)]
    encoder = len(list(network.encoder_parameters()))
    assert [len(group["params"]) for group in groups] == [
        trained * encoder, trained * (len(list(network.parameters())) - encoder),
    ]  # fmt: skip
    assert all(group["momentum"] == 0.9 and group["weight_decay"] == 1e-4 for group in groups)
    assert_all_optimised(built, [optimiser])


@pytest.mark.parametrize(("schedule", "rate"), [("poly", 5e-5), ("constant", 1e-4)])
def test_the_flaw_detector_has_an_adam_of_its_own(schedule: str, rate: float, make_spec: Spec) -> None:
    recipe = make_spec().recipe
    setup = Setup(lambda: build_network(recipe.network, 3), 3, 255)
    built: Any = build_method("gct", settings_for("gct", gct_detector_schedule=schedule, gct_detector_width=4), setup)
    sgd, adam = built.optimisers(recipe)
    assert isinstance(sgd, torch.optim.SGD) and isinstance(adam, torch.optim.Adam)
    assert_all_optimised(built, [sgd, adam])
    (group,) = adam.param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in built.detector.parameters()}
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-4, (0.9, 0.99), 0)
    set_rates([sgd, adam], 0.5)
    assert group["lr"] == pytest.approx(rate) and sgd.param_groups[0]["lr"] == pytest.approx(0.5 * recipe.lr)


def test_a_parameter_in_no_optimiser_stops_the_run(
    run: Callable[..., Path], make_spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = METHODS["suponly"].__init__

    def with_more(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        self.later = torch.nn.Linear(2, 2)
        optimisers = type(self).optimisers(self, make_spec().recipe)
        del optimisers[0].param_groups[1]["params"][-1]
        self.optimisers = lambda recipe: optimisers

    monkeypatch.setattr(METHODS["suponly"], "__init__", with_more)
    with pytest.raises(AssertionError, match="later.bias needs a gradient and is in no optimiser"):
        run(make_spec("suponly"))


def test_raw_colours_are_the_images_before_normalisation(
    make_spec: Spec, prepared: Path, split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All streams travel to the device, and only images become floats."""
    spec = make_spec("mean_teacher")
    monkeypatch.setattr(type(spec.settings), "streams", property(lambda self: frozenset(get_args(Stream))))
    trainer = Trainer(spec, prepared, split, None, torch.device("cpu"))
    batch = trainer._to_device(next(trainer.batches.epoch(0)))
    floats = {name for name, value in batch.items() if value.is_floating_point()}
    assert floats == {"image_l", "image_l2", "image_u", "image_u2"}
    raw, shape = batch["raw_u"], (3, 1, 1)
    assert raw.dtype == torch.uint8 and raw.float().std() > 20
    mean, std = (torch.tensor(values).view(shape) for values in (spec.dataset.mean, spec.dataset.std))
    torch.testing.assert_close(batch["image_u"] * std + mean, raw.float(), rtol=0, atol=1e-3)
    trainer.run_epoch()
    assert trainer.images == 4 * spec.recipe.batch * len(trainer.batches), "four draws, however much is beside them"


@pytest.mark.parametrize("method", METHODS)
def test_run_directory(method: str, run: Callable[..., Path], make_spec: Spec, prepared: Path, split: Path) -> None:
    spec = make_spec(method)
    out = run(spec)
    names = ["evaluation.json", "history.csv", "images.npz", "live", "run.json", "weights.pt"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert not (out.parent / "state").exists()

    record = json.loads((out / "run.json").read_text())
    assert RunSpec.model_validate(record["spec"]) == spec
    provenance = record["provenance"]
    assert record["id"] == spec.id
    # epochs x images / batch of 2; a list of 6, to which two methods add the 6 labelled images
    steps = 3 * (12 if method in ("pseudoseg", "pc2seg") else 6) // 2
    assert provenance["steps"] == steps
    assert provenance["libraries"]["torch"] == torch.__version__
    assert provenance["peak_memory_mb"] > 0
    assert provenance["images_per_s"] > 0

    rows = history(out)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for row in rows:
        last = int(row["step"]) - 1
        assert float(row["lr"]) == pytest.approx(0.02 * (1 - last / steps) ** 0.9)
        assert float(row["loss"]) > 0
        assert 0 <= float(row["val_miou"]) <= 100

    weights = load(out / "weights.pt")
    assert weights.keys() == {"last", "best", "meta"}
    assert weights["last"].keys() == evaluated_network(spec).state_dict().keys()
    evaluate_run(spec, prepared, split, out)
    results = json.loads((out / "evaluation.json").read_text())
    scores = [float(row["val_miou"]) for row in rows]
    assert results["last"]["miou"] == pytest.approx(scores[-1], abs=1e-9)
    assert results["best"]["miou"] == pytest.approx(max(scores), abs=1e-9)
    assert weights["meta"]["best_epoch"] == scores.index(max(scores)) + 1


def test_centre_crops_choose_the_epoch_that_windows_score(
    run: Callable[..., Path], make_spec: Spec, prepared: Path, split: Path
) -> None:
    """Against the centre crops of the last weights, evaluated as those of a data set that reports them."""
    outs = {
        by: run(make_spec("suponly", mode="sliding_window", settings={"selected_by": by}), by)
        for by in ("centre_crop", "reported")
    }
    spec = make_spec("suponly", mode="sliding_window")
    assert spec.settings.selected_by == "centre_crop"
    crops = make_spec("suponly", mode="centre_crop").dataset
    network = evaluated_network(spec)
    network.load_state_dict(load(outs["centre_crop"] / "weights.pt")["last"])
    expected = {"centre_crop": mean_iou(evaluate(network, prepared, validation_ids(split), crops, CPU, 0, 0))}
    ends = {by: json.loads((out / "evaluation.json").read_text()) for by, out in outs.items()}
    assert ends["centre_crop"]["last"] == ends["reported"]["last"], "the training and its last score are the same"
    expected["reported"] = ends["reported"]["last"]["miou"]
    for by, out in outs.items():
        scores = [float(row["val_miou"]) for row in history(out)]
        assert scores[-1] == pytest.approx(expected[by], abs=1e-9)
        record = json.loads((out / "run.json").read_text())
        assert record["best_epoch"] == scores.index(max(scores)) + 1
        assert record["best_miou"] == pytest.approx(max(scores), abs=1e-9)
    assert abs(expected["centre_crop"] - expected["reported"]) > 1e-6


def test_nothing_differs_where_centre_crops_are_reported(run: Callable[..., Path], make_spec: Spec) -> None:
    outs = [run(make_spec("suponly", settings={"selected_by": by}), by) for by in ("centre_crop", "reported")]
    assert_equal_weights(*outs)
    one, two = ([row["val_miou"] for row in history(out)] for out in outs)
    assert one == two


def test_validation_every_other_epoch_and_last(run: Callable[..., Path], make_spec: Spec) -> None:
    rows = history(run(make_spec("suponly", validate_every=2)))
    assert [bool(row["val_miou"]) for row in rows] == [False, True, True]


def test_it_learns(run: Callable[..., Path], make_spec: Spec) -> None:
    rows = history(run(make_spec("suponly", epochs=24, lr=0.05, validate_every=24)))
    assert float(rows[-1]["loss"]) < 0.9 * float(rows[0]["loss"])
    # Background everywhere scores about 28.
    assert float(rows[-1]["val_miou"]) > 70


def test_equal_seeds_repeat_and_others_do_not(run: Callable[..., Path], make_spec: Spec) -> None:
    first = run(make_spec(), "first")
    torch.rand(5)  # what happened before in the process must not matter
    assert_equal_weights(first, run(make_spec(), "second"))
    with pytest.raises(AssertionError):
        assert_equal_weights(first, run(make_spec(seed=1), "third"))


@pytest.mark.parametrize("method", ["suponly", "u2pl", "cps", "cct", "ael", "u2pl_ael"])
def test_a_continued_run_ends_with_the_same_weights(
    method: str, run: Callable[..., Path], make_spec: Spec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = make_spec(method, save_every_minutes=0)
    whole = run(spec, "whole")
    original = Trainer._step

    def interrupted(self: Trainer, batch: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
        if step == 7:  # the second step of the third epoch
            raise KeyboardInterrupt
        return original(self, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(spec, "continued")
    assert not (tmp_path / "continued").exists()
    assert (tmp_path / "state").exists()
    steps: list[int] = []

    def counted(self: Trainer, batch: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
        steps.append(step)
        return original(self, batch, step)

    monkeypatch.setattr(Trainer, "_step", counted)
    continued = run(spec, "continued")
    assert steps == [7, 8]
    assert_equal_weights(whole, continued)
    columns = ["epoch", "step", "lr", "loss", "val_miou"]
    assert [[row[c] for c in columns] for row in history(whole)] == [
        [row[c] for c in columns] for row in history(continued)
    ]


def test_a_failed_evaluation_costs_no_training(
    run: Callable[..., Path], make_spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise UserError("disk", "full", "room")

    spec = make_spec("suponly")
    with monkeypatch.context() as patch:
        patch.setattr("u2pl.engine.train.evaluate_run", lambda *_, **__: broken())
        with pytest.raises(UserError, match="disk"):
            run(spec)
    monkeypatch.setattr(Trainer, "_step", broken)
    assert json.loads((run(spec) / "evaluation.json").read_text())["last"]["miou"] >= 0


def test_factors_of_the_network_reach_it(run: Callable[..., Path], make_spec: Spec) -> None:
    """The deep stem's and the auxiliary head's tensors are in the weights, and evaluation finds their places."""
    settings = {"backbone_stem": "deep", "cityscapes_loss": "ohem_auxiliary"}
    out = run(make_spec("suponly", epochs=1, settings=settings))
    names = load(out / "weights.pt")["last"]
    plain = load(run(make_spec("suponly", epochs=1), "plain") / "weights.pt")["last"]
    assert any(name.startswith("auxiliary") for name in names) and not any("auxiliary" in name for name in plain)
    assert len([name for name in names if name.startswith("encoder") and name.endswith("weight")]) > len(
        [name for name in plain if name.startswith("encoder") and name.endswith("weight")]
    )


def test_a_state_of_other_settings_is_left_alone(
    run: Callable[..., Path], make_spec: Spec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise UserError("out", "No space left on device", "a file that can be written")

    with monkeypatch.context() as patch:
        patch.setattr("u2pl.engine.train.write_run", full)
        with pytest.raises(UserError, match="No space left"):
            run(make_spec("suponly"), "other")
    other = make_spec("suponly", lr=0.03)
    with_state = run(other, "first")
    assert "starting over" in capsys.readouterr().out
    assert_equal_weights(with_state, run(other, "second", state="fresh"))


def test_a_damaged_state_is_left_alone(
    run: Callable[..., Path], make_spec: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state.pt").write_bytes(b"half of a fi")
    run(make_spec("suponly", epochs=1))
    assert "starting over" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_and_keeps_the_state(
    run: Callable[..., Path], make_spec: Spec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = make_spec("suponly", save_every_minutes=0)
    original = Trainer._to_device

    def poisoned(self: Trainer, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        moved = original(self, batch)
        return {**moved, "image_l": moved["image_l"] * float("nan")} if self.epoch == 2 else moved

    monkeypatch.setattr(Trainer, "_to_device", poisoned)
    with pytest.raises(UserError, match="step 6: found a non-finite loss nan, expected a finite loss"):
        run(spec)
    state = load(tmp_path / "state" / "state.pt")
    assert (state["epoch"], state["index"]) == (1, 3)  # after the last step of the second epoch
    assert all(t.isfinite().all() for t in tensors(state["method"]).values() if t.is_floating_point())
    assert not (tmp_path / "run").exists()


def test_encoder_weights_are_used(run: Callable[..., Path], make_spec: Spec, tmp_path: Path) -> None:
    spec = make_spec("suponly", epochs=1, lr=1e-12)
    encoder = build_network(spec.recipe.network, 3).encoder
    torch.save(encoder.state_dict(), tmp_path / "encoder.pth")
    found = load(run(spec, weights=tmp_path / "encoder.pth") / "weights.pt")["last"]
    torch.testing.assert_close(found["encoder.conv1.weight"], encoder.conv1.weight)


def test_missing_inputs_leave_nothing(prepared: Path, split: Path, make_spec: Spec, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"weights": None, "out": tmp_path / "out", "state": tmp_path / "state"}
    with pytest.raises(UserError, match="no file"):
        train(make_spec(), prepared=prepared, split=tmp_path / "absent", **arguments)
    with pytest.raises(UserError, match="no file"):
        train(make_spec(), prepared=tmp_path / "absent", split=split, **arguments)
    assert not list(tmp_path.iterdir())


def test_the_mean_of_two_networks_is_kept_and_evaluated(run: Callable[..., Path], make_spec: Spec) -> None:
    spec = make_spec("cps", epochs=1, settings={"evaluated": "mean", "cps_partner": "second_batch"})
    out = run(spec)
    assert load(out / "weights.pt")["last"].keys() == evaluated_network(spec).state_dict().keys()
    score = json.loads((out / "evaluation.json").read_text())["last"]["miou"]
    assert score == pytest.approx(float(history(out)[-1]["val_miou"]), abs=1e-9)
