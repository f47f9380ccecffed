"""Matrices per image and the bootstrap over them, against loops that share nothing with the suite."""

import math
from pathlib import Path
from typing import Any

import made
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from u2pl.errors import UserError
from u2pl.experiments.confusions import CHECKPOINTS, Confusions, read_confusions, write_confusions
from u2pl.experiments.suite import Suite
from u2pl.files import write_json
from u2pl.folders import Results
from u2pl.report.classes import Classes, collect_classes, read_classes, write_classes
from u2pl.report.images import RESAMPLES, bootstrap, read_images, resamples
from u2pl.report.runs import read_run

Counts = NDArray[np.int64]
CLASSES = ["background", "bird", "None"]


def matrices(seed: int, images: int = 4, classes: int = 3) -> Counts:
    """Sparse ones; the last class occurs in the first image alone."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 50, (images, classes, classes)) * (rng.random((images, classes, classes)) < 0.6)
    counts[:, 0, 0] += 1
    counts[1:, -1, :] = counts[1:, :, -1] = 0
    counts[0, -1, -1] += 5
    return counts


def scores(total: Any) -> tuple[list[float | None], float]:
    """IoU per class and mIoU in percent, by loops."""
    found: list[float | None] = []
    for c in range(len(total)):
        union = sum(int(n) for n in total[c]) + sum(int(row[c]) for row in total) - int(total[c][c])
        found.append(100 * int(total[c][c]) / union if union else None)
    there = [value for value in found if value is not None]
    return found, sum(there) / len(there) if there else math.nan


def finish(results: Path, run: str, counts: dict[str, Counts], named: bool = True) -> None:
    """A finished run with these matrices."""
    folder = Results(results).run(run)
    ids = [f"image_{i}" for i in range(len(counts["best"]))]
    digest = write_confusions(folder.images, Confusions(ids, counts))
    evaluation: dict[str, Any] = {"weights_sha256": made.SHA, "images_sha256": digest}
    for name in CHECKPOINTS:
        iou, miou = scores(counts[name].sum(0))
        evaluation[name] = {"confusion": counts[name].sum(0).tolist(), "iou": iou, "miou": miou}
    write_json(folder.evaluation, evaluation)
    dataset = {"evaluation": {}} | ({"classes": [{"name": name} for name in CLASSES]} if named else {})
    split = made.SPLIT | {"counts": {"labeled": 6, "unlabeled": 6, "val": len(ids)}}
    write_json(folder.record, made.record(run, made.SPEC | {"dataset": dataset}, split=split))


@pytest.mark.parametrize(("images", "classes"), [(1, 2), (7, 3), (40, 21), (3, 255)])
def test_matrices_survive_the_file(images: int, classes: int, tmp_path: Path) -> None:
    counts = {name: matrices(seed, images, classes) for seed, name in enumerate(CHECKPOINTS)}
    counts["best"][-1] = 0  # an image of which every pixel is ignored
    counts["last"][0, 1, 0] = 2**33
    ids = [f"città/{i} b" for i in range(images)]
    path = tmp_path / "images.npz"
    digest = write_confusions(path, Confusions(ids, counts))
    again = read_confusions(path, path.read_bytes())
    assert again.ids == ids
    for name in CHECKPOINTS:
        assert again.counts[name].dtype == np.int64
        np.testing.assert_array_equal(again.counts[name], counts[name])
    before = path.read_bytes()
    assert write_confusions(path, again) == digest and path.read_bytes() == before, "equal counts give equal bytes"


def test_what_is_no_such_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    write_confusions(path, Confusions(["a", "b"], {name: matrices(0, 2) for name in CHECKPOINTS}))
    good = path.read_bytes()
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    damaged: list[bytes] = [b"", b"x" * 100, good[:200], good[:-30]]
    for name, value in {
        "classes": np.array(2),
        "ids": np.frombuffer(b"a", np.uint8),
        "best.cells": arrays["best.cells"] + np.uint8(9),
        "best.pixels": arrays["best.pixels"][:-1],
        "last.pixels": -arrays["last.pixels"].astype(np.int64),
        "last.entries": arrays["last.entries"][None],
        "ids ": np.array([{}], dtype=object),
    }.items():
        np.savez(path, **(arrays | {name: value}))  # type: ignore[arg-type]
        damaged.append(path.read_bytes())
    for data in damaged:
        with pytest.raises(UserError, match="images.npz: found .*, expected the confusion matrices of") as caught:
            read_confusions(path, data)
        assert "\n" not in str(caught.value)


def test_the_bootstrap_is_that_of_a_loop() -> None:
    """Image by image and class by class, on the same draws."""
    counts = matrices(3, images=9, classes=4)
    found = bootstrap(counts)
    drawn = resamples(9)
    assert drawn.shape == (RESAMPLES, 9) and (drawn.sum(1) == 9).all() and (drawn == drawn.round()).all()
    each: list[tuple[list[float | None], float]] = []
    for weights in drawn:
        total = [[0] * 4 for _ in range(4)]
        for image, times in enumerate(weights):
            for target in range(4):
                for predicted in range(4):
                    total[target][predicted] += int(times) * int(counts[image, target, predicted])
        each.append(scores(total))
    assert any(iou[3] is None for iou, _ in each), "a class of one image is in some resamples only"
    np.testing.assert_allclose(found.miou, np.percentile([miou for _, miou in each], [2.5, 97.5]))
    for c in range(4):
        values = [iou[c] for iou, _ in each if iou[c] is not None]
        np.testing.assert_allclose(found.iou[c], np.percentile(np.array(values, dtype=float), [2.5, 97.5]))


def test_the_draws_are_even_and_independent() -> None:
    """Of n draws with replacement an image gets Binomial(n, 1/n): variance 1 - 1/n, covariance -1/n."""
    drawn = resamples(12)
    np.testing.assert_allclose(drawn.mean(0), 1, atol=5 / math.sqrt(RESAMPLES))
    covariance = np.cov(drawn.T)
    np.testing.assert_allclose(covariance, np.eye(12) - 1 / 12, atol=0.2)
    np.testing.assert_array_equal(drawn, resamples(12))


def test_a_class_that_occurs_nowhere_and_a_single_image_have_no_interval() -> None:
    counts = matrices(0, images=5, classes=3)
    counts[:, 1] = counts[:, :, 1] = 0
    found = bootstrap(counts)
    assert np.isnan(found.iou[1]).all() and np.isfinite(found.iou[[0, 2]]).all() and np.isfinite(found.miou).all()
    alone = bootstrap(counts[:1])
    assert np.isnan(alone.miou).all() and np.isnan(alone.iou).all() and alone.iou.shape == (3, 2)
    nothing = bootstrap(np.zeros((5, 3, 3), dtype=np.int64))
    assert np.isnan(nothing.miou).all() and np.isnan(nothing.iou).all()


def draw_images(rng: np.random.Generator, images: int) -> Counts:
    """Images of three classes whose sizes, and how well they are predicted, differ from image to image."""
    pixels = rng.dirichlet([2, 1, 1], images) * 1000
    hit = rng.beta([8, 4, 3], [2, 2, 2], (images, 3))
    counts = np.zeros((images, 3, 3))
    for c in range(3):
        counts[:, c, c] = pixels[:, c] * hit[:, c]
        counts[:, c, (c + 1) % 3] = pixels[:, c] * (1 - hit[:, c])
    return counts.round().astype(np.int64)


def test_95_percent_of_the_intervals_hold_the_score_on_all_images() -> None:
    rng = np.random.default_rng(0)
    iou, miou = scores(draw_images(rng, 200_000).sum(0))
    truth = [miou, *iou]
    n, held = 400, np.zeros(4)
    for _ in range(n):
        found = bootstrap(draw_images(rng, 80))
        ends = [found.miou, *found.iou]
        held += [low <= float(value or 0) <= high for (low, high), value in zip(ends, truth, strict=True)]
    # 0.95, less a little for 80 images, and three standard errors of 400 draws
    assert (np.abs(held / n - 0.945) < 0.035).all(), held / n


# --- classes.csv


@pytest.fixture
def counted(suite: Suite, results: Path) -> dict[str, dict[str, Counts]]:
    """Matrices of each run, and the runs finished with them."""
    runs = sorted({run for cell in suite.cells for run in cell.runs})
    counts = {
        run: {name: matrices(2 * i + k, images=6) for k, name in enumerate(CHECKPOINTS)} for i, run in enumerate(runs)
    }
    for run, own in counts.items():
        finish(results, run, own)
    return counts


def test_classes_are_those_of_scipy_and_of_the_first_seed(
    suite: Suite, results: Path, counted: dict[str, dict[str, Counts]]
) -> None:
    write_classes(suite, results, results / "classes.csv")
    found = read_classes(results / "classes.csv")
    measured = [cell for cell in suite.cells if cell.runs]
    assert len(found) == len(measured) * 4 and found["class"].tolist() == ["mIoU", *CLASSES] * len(measured)
    assert found["index"].astype(str).tolist() == ["", "0", "1", "2"] * len(measured)
    for number, cell in enumerate(measured):
        rows = found.iloc[4 * number : 4 * number + 4]
        assert set(rows["row"]) == {cell.row} and set(rows["fraction"]) == {cell.fraction}
        assert set(rows["image_run"]) == {cell.runs[0]} and set(rows["images"]) == {6}
        over_images = bootstrap(counted[cell.runs[0]]["best"])
        by_run = [scores(counted[run]["best"].sum(0)) for run in cell.runs]
        for place, (_, row) in enumerate(rows.iterrows()):
            values = [miou if place == 0 else iou[place - 1] for iou, miou in by_run]
            sample = np.array(values, dtype=float)
            low, high = stats.t.interval(0.95, len(sample) - 1, sample.mean(), stats.sem(sample))
            expected = [sample.mean(), sample.std(ddof=1), low, high, sample[0]]
            names = ["mean", "std", "low", "high", "image_iou"]
            np.testing.assert_allclose(row[names].astype(float), expected)
            ends = over_images.miou if place == 0 else over_images.iou[place - 1]
            np.testing.assert_allclose(row[["image_low", "image_high"]].astype(float), ends)
            assert row["n"] == 2


def test_a_class_counts_the_seeds_in_whose_scores_it_occurs(suite: Suite, results: Path, counted: Any) -> None:
    """No mask shows it, but the second network predicts it."""
    first, second = (matrices(i) for i in range(2))
    first[:, 1] = first[:, :, 1] = second[:, 1] = 0
    second[0, 0, 1] = 7
    cell = next(cell for cell in suite.cells if cell.runs)
    for run, counts in zip(cell.runs, (first, second), strict=True):
        finish(results, run, dict.fromkeys(CHECKPOINTS, counts))
    row = Classes(suite, results).of(cell.runs, "best")[2]
    assert (row["n"], row["mean"]) == (1, 0.0) and math.isnan(row["low"]) and math.isnan(row["image_iou"])


def test_runs_without_matrices_per_image_have_no_interval_over_images(suite: Suite, results: Path) -> None:
    found = collect_classes(suite, results)
    assert (found["images"] == 0).all() and found[["image_low", "image_high"]].isna().all(axis=None)
    assert found["mean"].notna().all() and found["image_iou"].notna().all()
    eighth = found[(found["fraction"] == "1/8") & (found["row"] == "SupOnly")]
    assert eighth["mean"].tolist() == [51.0] * 3 and eighth["class"].tolist() == ["mIoU", "class 0", "class 1"]


def test_a_file_that_is_not_the_recorded_one_is_refused(suite: Suite, results: Path, counted: Any) -> None:
    run = "blender-8-u2pl-seed0"
    folder = Results(results).run(run)
    good, counts = folder.images.read_bytes(), counted[run]

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=rf"{run}/images\.npz: {match}") as caught:
            write_classes(suite, results, results / "classes.csv")
        assert "\n" not in str(caught.value) and not (results / "classes.csv").exists()

    folder.images.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    refused(r"found sha256 \w{64}, expected \w{64} of .*evaluation\.json")
    folder.images.unlink()
    assert read_images(folder, read_run(suite, results, run)) is None, "records alone, without weights.pt"
    folder.weights.touch()
    refused("found no file, expected the one that .*evaluation.json names: `u2pl evaluate`")
    folder.images.mkdir()
    refused("found Is a directory, expected a readable file")
    folder.images.rmdir()
    finish(results, run, counts)
    evaluation = folder.evaluation.read_text()
    other = {"best": counts["best"], "last": counts["last"] * 2}
    digest = write_confusions(folder.images, Confusions([str(i) for i in range(6)], other))
    old = read_run(suite, results, run).evaluation.images_sha256
    folder.evaluation.write_text(evaluation.replace(str(old), digest))
    refused("found last matrices of another sum, expected last.confusion of .*evaluation.json")
    fewer = {name: np.concatenate([c[:4], c[4:].sum(0)[None]]) for name, c in counts.items()}
    digest = write_confusions(folder.images, Confusions([str(i) for i in range(5)], fewer))
    folder.evaluation.write_text(evaluation.replace(str(old), digest))
    refused("found 5 images, expected 6 of the validation list in .*run.json")


def test_runs_of_other_classes_are_refused(suite: Suite, results: Path, counted: Any) -> None:
    finish(results, "blender-8-u2pl-seed1", {name: matrices(0, 6, 4) for name in CHECKPOINTS}, named=False)
    with pytest.raises(UserError, match=r"u2pl-seed1/evaluation\.json: found 4 IoUs, expected 3 classes"):
        collect_classes(suite, results)


def test_reading_what_are_no_classes(suite: Suite, results: Path) -> None:
    path = results / "classes.csv"
    with pytest.raises(UserError, match="found no file, expected the intervals per class"):
        read_classes(path)
    write_classes(suite, results, path)
    text = path.read_text()
    for old, new, message in (
        ("image_low", "low_image", "no column image_low"),
        ("51.0", "inf", "an infinite number"),
        ("51.0", "much", "expected numbers in the columns n, images, mean"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=rf"classes\.csv: found .*{message}|classes\.csv: .*{message}"):
            read_classes(path)
