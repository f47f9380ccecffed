"""Predictions of single images and the counts of Fig. 1, against NumPy."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from u2pl.engine.checkpoints import cpu_copy, save
from u2pl.engine.evaluate import network_of
from u2pl.engine.predict import predict, reliability, richest
from u2pl.errors import UserError
from u2pl.experiments import RunSpec


@pytest.fixture
def run(
    tmp_path: Path, make_spec: Callable[..., RunSpec], record: Callable[[RunSpec, Path], None]
) -> tuple[RunSpec, Path]:
    """A run whose last and best weights are two random networks."""
    spec = make_spec(settings={"alpha_0": 0.3}, batch=4)
    weights = {}
    for seed, selection in enumerate(("last", "best")):
        torch.manual_seed(seed)
        weights[selection] = cpu_copy(network_of(spec))
    save(tmp_path / "weights.pt", weights)
    record(spec, tmp_path)
    return spec, tmp_path


def test_counts_are_those_of_percentiles_over_batches(run: tuple[RunSpec, Path], prepared: Path) -> None:
    spec, folder = run
    ids = [f"train_{i}" for i in range(6)]
    found = reliability(spec, prepared, ids, folder, "cpu")
    predictions = predict(spec, prepared, ids, folder, "last", "cpu")
    counts, pairs = np.zeros((2, 3), dtype=int), np.zeros((3, 3), dtype=int)
    for batch in (predictions[:4], predictions[4:]):
        entropies = [-(p.probs * np.log(p.probs)).sum(0) for p in batch]
        gamma = np.percentile(np.concatenate([h.ravel() for h in entropies]), 100 * (1 - 0.3))
        for p, h in zip(batch, entropies, strict=True):
            for c in range(3):
                counts[0, c] += ((p.mask == c) & (h < gamma)).sum()
                counts[1, c] += ((p.mask == c) & (h >= gamma)).sum()
                pairs[c] += [((p.mask == c) & (p.probs.argmax(0) == other)).sum() for other in range(3)]
    # the pixels between which the percentile lies may fall to either side in single precision
    np.testing.assert_allclose([found.reliable, found.unreliable], counts, atol=2)
    assert np.sum([found.reliable, found.unreliable]) == counts.sum(), "ignored pixels are not counted"
    assert sum(found.unreliable) > 0
    union = pairs.sum(0) + pairs.sum(1) - pairs.diagonal()
    np.testing.assert_allclose(found.iou, 100 * pairs.diagonal() / np.where(union, union, np.nan))


def test_a_prediction_is_of_the_chosen_weights_and_of_the_whole_image(
    run: tuple[RunSpec, Path], prepared: Path
) -> None:
    spec, folder = run
    by_selection = {name: predict(spec, prepared, ["val_0"], folder, name, "cpu")[0] for name in ("last", "best")}
    for prediction in by_selection.values():
        assert prediction.image.shape == (40, 48, 3) and prediction.mask.shape == (40, 48)
        assert prediction.probs.shape == (3, 40, 48)  # larger than the window of 33 pixels
        np.testing.assert_allclose(prediction.probs.sum(0), 1, rtol=1e-5)
    assert not np.allclose(by_selection["last"].probs, by_selection["best"].probs)


def test_images_are_chosen_by_the_classes_of_their_masks(
    prepared: Path, make_spec: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    from u2pl.data.batches import SegmentationFolder

    masks = {"a": [0, 255], "b": [0, 1, 2, 255], "c": [0, 1], "d": [0, 1, 2]}
    monkeypatch.setattr(SegmentationFolder, "__getitem__", lambda self, i: (None, np.array(masks[self.ids[i]])))
    dataset = make_spec().dataset
    assert richest(prepared, list("abcd"), dataset, 3) == ["b", "d", "c"]
    assert richest(prepared, list("dcba"), dataset, 9) == ["d", "b", "c", "a"], "equals in the order of the list"


def test_missing_weights_are_named(prepared: Path, make_spec: Callable[..., RunSpec], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights\.pt"):
        predict(make_spec(), prepared, ["val_0"], tmp_path, "best", "cpu")


def test_figures_refuse_weights_that_are_not_those_of_the_run(run: tuple[RunSpec, Path], prepared: Path) -> None:
    spec, folder = run
    content = (folder / "weights.pt").read_bytes()
    (folder / "weights.pt").write_bytes(content.replace(b"best", b"bist", 1))
    for draw in (
        lambda: predict(spec, prepared, ["val_0"], folder, "last", "cpu"),
        lambda: reliability(spec, prepared, ["train_0"], folder, "cpu"),
    ):
        with pytest.raises(UserError, match=r"weights\.pt: found sha256 .* of .*run\.json"):
            draw()
