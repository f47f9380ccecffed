"""The confusion matrix, IoU and sliding windows against other implementations of the same thing."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from u2pl.engine.evaluate import (
    confusion_matrices,
    confusion_matrix,
    evaluate,
    evaluate_images,
    evaluate_run,
    iou,
    mean_iou,
    network_of,
    pad_label,
    sliding_logits,
    window_starts,
)
from u2pl.errors import UserError
from u2pl.experiments.confusions import read_confusions
from u2pl.experiments.suite import RunSpec
from u2pl.files import sha256
from u2pl.models import build_network

IGNORE = 255
Record = Callable[[RunSpec, Path], None]


def random_labels(seed: int, n_classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pred = torch.randint(0, n_classes, (3, 11, 7), generator=generator)
    target = torch.randint(0, n_classes, (3, 11, 7), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = IGNORE
    return pred, target


@pytest.mark.parametrize("seed", range(5))
def test_confusion_matrix(seed: int) -> None:
    pred, target = random_labels(seed)
    found = confusion_matrix(pred, target, 5, IGNORE)
    assert found.dtype == torch.int64
    brute = np.zeros((5, 5), dtype=np.int64)
    for p, t in zip(pred.flatten().tolist(), target.flatten().tolist(), strict=True):
        if t != IGNORE:
            brute[t, p] += 1
    assert found.tolist() == brute.tolist()
    assert torch.equal(found, MulticlassConfusionMatrix(5, ignore_index=IGNORE)(pred, target))
    # uint8, as masks are stored, must not overflow in the product with the number of classes
    assert torch.equal(found, confusion_matrix(pred.byte(), target.byte(), 5, IGNORE))


@pytest.mark.parametrize("seed", range(3))
def test_confusion_matrices_are_those_of_each_image(seed: int) -> None:
    pred, target = random_labels(seed)
    target[1] = IGNORE
    found = confusion_matrices(pred, target, 5, IGNORE)
    assert found.shape == (3, 5, 5) and found[1].sum() == 0
    for i in range(3):
        if i != 1:
            assert torch.equal(found[i], MulticlassConfusionMatrix(5, ignore_index=IGNORE)(pred[i], target[i]))
    assert torch.equal(found.sum(0), confusion_matrix(pred, target, 5, IGNORE))
    assert torch.equal(found, confusion_matrices(pred.byte(), target.byte(), 5, IGNORE))


@pytest.mark.parametrize(("mode", "batch"), [("centre_crop", 3), ("centre_crop", 1), ("sliding_window", 3)])
def test_each_image_is_counted_as_if_it_were_alone(
    mode: str, batch: int, prepared: Path, split: Path, make_spec: Callable[..., RunSpec]
) -> None:
    """Four images in batches of three and one: the matrices are in the list's order, whatever the batches are."""
    spec = make_spec(mode=mode)
    evaluation = spec.dataset.evaluation.model_copy(update={"batch": batch})
    dataset = spec.dataset.model_copy(update={"evaluation": evaluation})
    ids = (split / "val.txt").read_text().split()
    torch.manual_seed(0)
    network = build_network(spec.recipe.network, 3)
    found = evaluate_images(network, prepared, ids, dataset, torch.device("cpu"))
    assert len(ids) == len(found) == 4 and len({str(matrix.tolist()) for matrix in found}) > 1
    for image, matrix in zip(ids, found, strict=True):
        assert torch.equal(matrix, evaluate(network, prepared, [image], dataset, torch.device("cpu")))


def test_uint8_labels_of_many_classes() -> None:
    pred, target = torch.tensor([100], dtype=torch.uint8), torch.tensor([120], dtype=torch.uint8)
    assert confusion_matrix(pred, target, 150, IGNORE)[120, 100] == 1


@pytest.mark.parametrize("seed", range(3))
def test_iou_is_torchmetrics(seed: int) -> None:
    pred, target = random_labels(seed)
    metric = MulticlassJaccardIndex(5, average=None, ignore_index=IGNORE)
    found = iou(confusion_matrix(pred, target, 5, IGNORE))
    np.testing.assert_allclose(found.numpy(), 100 * metric(pred, target).numpy(), rtol=1e-6)


def test_iou_by_hand_with_an_absent_class() -> None:
    # rows are targets: class 0 has 3 pixels, 1 taken for class 1; class 2 occurs nowhere
    confusion = torch.tensor([[2, 1, 0], [0, 4, 0], [0, 0, 0]])
    values = iou(confusion).tolist()
    assert values[0] == pytest.approx(100 * 2 / 3)
    assert values[1] == pytest.approx(100 * 4 / 5)
    assert math.isnan(values[2])
    assert mean_iou(confusion) == pytest.approx(100 * (2 / 3 + 4 / 5) / 2)


def test_mean_iou_is_over_the_set() -> None:
    # Two images: sums first (class 0: 9 / 11, class 1: 7 / 9), then the mean; per image it would be other numbers.
    first, second = torch.tensor([[8, 1], [0, 1]]), torch.tensor([[1, 0], [1, 6]])
    total = mean_iou(first + second)
    assert total == pytest.approx(100 * (9 / 11 + 7 / 9) / 2)
    assert total != pytest.approx((mean_iou(first) + mean_iou(second)) / 2)


@pytest.mark.parametrize(("length", "crop", "stride"), [(10, 4, 3), (11, 4, 3), (4, 4, 2), (3, 4, 2), (2048, 769, 513)])
def test_windows_are_whole_and_cover(length: int, crop: int, stride: int) -> None:
    starts = window_starts(length, crop, stride)
    covered = {pixel for start in starts for pixel in range(start, start + crop)}
    assert covered == set(range(max(length, crop)))
    assert starts == sorted(set(starts))
    assert all(b - a <= stride for a, b in zip(starts, starts[1:], strict=False))


class Pointwise(nn.Module):
    """A network that sees one pixel at a time: windows cannot change its output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.conv(images)}


class Ramp(nn.Module):
    """Logits that depend on where in the window a pixel lies."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        height, width = images.shape[-2:]
        ramp = torch.arange(height * width, dtype=images.dtype).reshape(1, 1, height, width)
        return {"logits": torch.cat([images[:, :1] * ramp, ramp.expand(len(images), -1, -1, -1)], dim=1)}


@pytest.mark.parametrize("size", [(20, 31), (8, 8), (5, 30), (5, 6)])
@pytest.mark.parametrize("batch", [1, 4])
def test_windows_of_a_pointwise_network_give_the_whole_image(size: tuple[int, int], batch: int) -> None:
    network, image = Pointwise(), torch.randn(1, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(sliding_logits(network, image, 8, 6, batch), network(image)["logits"])


def test_overlapping_windows_are_averaged_per_pixel() -> None:
    image, crop, stride = torch.rand(1, 3, 13, 10), 6, 4
    found = sliding_logits(Ramp(), image, crop, stride, 3)
    for y in range(13):
        for x in range(10):
            seen = [
                torch.stack([image[0, 0, y, x] * (at := (y - top) * crop + x - left), torch.tensor(float(at))])
                for top in (0, 4, 7)
                for left in (0, 4)
                if 0 <= y - top < crop and 0 <= x - left < crop
            ]
            torch.testing.assert_close(found[0, :, y, x], torch.stack(seen).mean(0))


class Nearest(nn.Module):
    """Classifies a pixel by the nearest of the colours the images are drawn in."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        colours = torch.tensor([c.colour for c in spec.dataset.classes], dtype=torch.float32)
        self.colours = (colours - torch.tensor(spec.dataset.mean)) / torch.tensor(spec.dataset.std)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": -(images[:, None] - self.colours[None, :, :, None, None]).square().sum(2)}


def test_sliding_evaluation_counts_every_labelled_pixel(
    prepared: Path, split: Path, make_spec: Callable[..., RunSpec]
) -> None:
    spec = make_spec(mode="sliding_window")
    ids = (split / "val.txt").read_text().split()
    network = Nearest(spec).train()
    confusion = evaluate(network, prepared, ids, spec.dataset, torch.device("cpu"))
    masks = np.stack([np.asarray(Image.open(prepared / "masks" / f"{i}.png")) for i in ids])
    assert confusion.diagonal().tolist() == [(masks == c).sum() for c in range(3)]
    assert mean_iou(confusion) == 100
    assert network.training


def test_centre_crop_evaluation_counts_the_crop(prepared: Path, split: Path, make_spec: Callable[..., RunSpec]) -> None:
    spec = make_spec()
    ids = (split / "val.txt").read_text().split()
    confusion = evaluate(Nearest(spec), prepared, ids, spec.dataset, torch.device("cpu"))
    # The crop of 33 in 40 x 48 leaves the ignored first row out.
    assert confusion.sum() == len(ids) * 33 * 33
    assert mean_iou(confusion) == 100


@pytest.mark.parametrize(("label", "added"), [("zero", 1), ("ignore", 0)])
def test_padding_is_scored_as_class_0_or_not_at_all(
    label: str, added: int, prepared: Path, split: Path, make_spec: Callable[..., RunSpec]
) -> None:
    """Images of 40 x 48 in a crop of 64: what the crop adds stands in row 0 of the matrix, or nowhere."""
    spec = make_spec(settings={"crop_pad_label_evaluation": label})
    dataset = spec.dataset.model_copy(update={"evaluation": spec.dataset.evaluation.model_copy(update={"crop": 64})})
    ids = (split / "val.txt").read_text().split()
    network = build_network(spec.recipe.network, 3)
    confusion = evaluate(network, prepared, ids, dataset, torch.device("cpu"), pad=pad_label(spec))
    masks = np.stack([np.asarray(Image.open(prepared / "masks" / f"{i}.png")) for i in ids])
    expected = [(masks == c).sum() for c in range(3)]
    expected[0] += added * len(ids) * (64 * 64 - 40 * 48)
    assert confusion.sum(1).tolist() == expected


def test_evaluate_run(
    prepared: Path, split: Path, make_spec: Callable[..., RunSpec], record: Record, tmp_path: Path
) -> None:
    spec = make_spec()
    last, best = (build_network(spec.recipe.network, 3).state_dict() for _ in range(2))
    weights = {"last": last, "best": best}
    torch.save(weights, tmp_path / "weights.pt")
    record(spec, tmp_path)
    evaluate_run(spec, prepared, split, tmp_path)
    results = json.loads((tmp_path / "evaluation.json").read_text())
    ids = (split / "val.txt").read_text().split()
    network = build_network(spec.recipe.network, 3)
    images = read_confusions(tmp_path / "images.npz", (tmp_path / "images.npz").read_bytes())
    assert images.ids == ids and results["images_sha256"] == sha256(tmp_path / "images.npz")
    for selection, state in (("last", last), ("best", best)):
        network.load_state_dict(state)
        confusion = evaluate(network, prepared, ids, spec.dataset, torch.device("cpu"))
        assert results[selection]["confusion"] == confusion.tolist()
        each = evaluate_images(network, prepared, ids, spec.dataset, torch.device("cpu"))
        assert images.counts[selection].tolist() == each.tolist()
        present = [value for value in results[selection]["iou"] if value is not None]
        assert results[selection]["miou"] == pytest.approx(sum(present) / len(present))
    with pytest.raises(UserError, match="no file"):
        evaluate_run(spec, prepared, split, tmp_path / "absent")
    weights["last"] = {**last, "segment.2.bias": torch.zeros(7)}
    torch.save(weights, tmp_path / "weights.pt")
    record(spec, tmp_path)
    with pytest.raises(UserError, match=r"shape \(7,\) for segment.2.bias, expected shape \(3,\)"):
        evaluate_run(spec, prepared, split, tmp_path)


@pytest.fixture
def finished(make_spec: Callable[..., RunSpec], record: Record, tmp_path: Path) -> tuple[RunSpec, dict[str, Any]]:
    """A run in `tmp_path` whose weights are random, and the content of its weights.pt."""
    spec = make_spec()
    entry = network_of(spec).state_dict()
    torch.save({"last": entry, "best": entry}, tmp_path / "weights.pt")
    record(spec, tmp_path)
    return spec, {"last": entry, "best": entry}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "run.json: found no file"),
        ("{", "run.json: found .*expected a JSON file"),
        ("[]", r"run.json: the file: found \[\]"),
        ('{"id": "x"}', "run.json: run: found nothing"),
        (json.dumps(made.record("x")), "run.json: found the run x, expected the run toy-6-u2pl-seed0"),
        (json.dumps(made.record("toy-6-u2pl-seed0", weights="0")), "run.json: files.weights.pt: found '0'"),
        (json.dumps(made.record("toy-6-u2pl-seed0")), rf"weights.pt: found sha256 \w{{64}}, expected {made.SHA} of "),
    ],
)
def test_weights_that_run_json_does_not_record_are_refused(
    content: str | None, expected: str, finished: tuple[RunSpec, Any], prepared: Path, split: Path, tmp_path: Path
) -> None:
    (tmp_path / "run.json").unlink()
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=expected):
        evaluate_run(finished[0], prepared, split, tmp_path)
    assert not (tmp_path / "evaluation.json").exists() and not (tmp_path / "images.npz").exists()


NAME = "segment.2.bias"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda last: None, "NoneType as 'last' weights, expected a state dict"),
        (lambda last: {}, "no such tensor for"),
        (lambda last: 3, "int as 'last' weights"),
        (lambda last: last | {1: last[NAME]}, "a tensor for 1, expected no such tensor"),
        (lambda last: last | {NAME: "x"}, f"type str for {NAME}, expected a tensor"),
        (lambda last: last | {NAME: last[NAME].half()}, f"type torch.float16 for {NAME}, expected"),
        (lambda last: last | {NAME: last[NAME].to_sparse()}, f"type torch.sparse_coo for {NAME}"),
        (lambda last: last | {NAME: last[NAME].to("meta")}, f"type meta for {NAME}"),
        (lambda last: last | {NAME: last[NAME] / 0}, f"values inf or nan for {NAME}, expected finite"),
    ],
)
def test_weights_of_other_types_or_values_are_one_line(
    damage: Callable[[Any], Any],
    expected: str,
    finished: tuple[RunSpec, Any],
    record: Record,
    prepared: Path,
    split: Path,
    tmp_path: Path,
) -> None:
    spec, weights = finished
    torch.save(weights | {"last": damage(weights["last"])}, tmp_path / "weights.pt")
    record(spec, tmp_path)
    with pytest.raises(UserError, match=f"weights.pt: found {expected}"):
        evaluate_run(spec, prepared, split, tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_with_workers_too(
    prepared: Path, tmp_path: Path, make_spec: Callable[..., RunSpec], workers: int
) -> None:
    folder = tmp_path / "prepared"
    shutil.copytree(prepared, folder)
    (image,) = (folder / "images").glob("val_0.*")
    image.write_bytes(image.read_bytes()[:200])
    network = network_of(make_spec()).eval()
    with pytest.raises(UserError, match=image.name):
        evaluate(network, folder, ["val_0", "val_1"], make_spec().dataset, torch.device("cpu"), workers)
