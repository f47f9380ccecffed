import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from u2pl.data.batches import SegmentationFolder, TrainBatches
from u2pl.data.lists import read_ids
from u2pl.errors import UserError
from u2pl.experiments.schema import Dataset, Estimate, Network, Recipe
from u2pl.experiments.settings import SETTINGS

torch.set_num_threads(1)
Make = Callable[..., Dataset]


def recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {"network": Network(encoder="resnet18"), "lr": 0.1, "weight_decay": 0.0, "epochs": 2}
    fields["estimate"] = Estimate(supervised_step=1, semi_supervised_step=1, validation=1, weights_mb=1)
    return Recipe(**(fields | {"batch": 2, "crop": 33} | changes))


def batches(
    prepared: Path,
    dataset: Dataset,
    labelled: int,
    unlabelled: int,
    settings: dict[str, Any] | None = None,
    **changes: Any,
) -> TrainBatches:
    supervised_only, seed = changes.pop("supervised_only", False), changes.pop("seed", 0)
    ids = read_ids(prepared / "lists" / "train_aug.txt")
    return TrainBatches(
        prepared, ids[:labelled], ids[labelled : labelled + unlabelled], dataset, recipe(**changes),
        SETTINGS["suponly" if supervised_only else "mean_teacher"](**(settings or {})), seed,
        supervised_only=supervised_only,
    )  # fmt: skip


def equal(left: list[dict[str, torch.Tensor]], right: list[dict[str, torch.Tensor]]) -> bool:
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(left, right, strict=True)
    )


def test_shapes_and_lengths(pascal: Path, make_dataset: Make) -> None:
    dataset = make_dataset("pascal")
    made = batches(pascal, dataset, 3, 7)
    steps = list(made.epoch(0))
    assert len(steps) == len(made) == 3, "7 unlabelled images in batches of 2"
    for step in steps:
        assert step["image_l"].shape == step["image_u"].shape == (2, 3, 33, 33)
        assert step["mask_l"].shape == (2, 33, 33) and step["mask_l"].dtype == torch.int64
        assert step["image_l"].dtype == step["image_u"].dtype == torch.uint8
        assert all(type(value) is torch.Tensor for value in step.values())
    assert len(batches(pascal, dataset, 6, 4, supervised_only=True)) == 3
    assert "image_u" not in next(batches(pascal, dataset, 6, 4, supervised_only=True).epoch(0))
    assert len(batches(pascal, dataset, 6, 0)) == 3, "nothing unlabelled: a pass over the labelled list"
    assert next(batches(pascal, dataset, 6, 0).epoch(0))["image_u"].shape == (2, 3, 33, 33)
    short = batches(pascal, dataset, 1, 2, batch=4)
    assert len(short) == 1 and next(short.epoch(0))["image_u"].shape[0] == 4
    with pytest.raises(UserError, match="labelled list"):
        batches(pascal, dataset, 0, 4)


def test_suponly_counts_epochs_over_either_list(pascal: Path, make_dataset: Make) -> None:
    """Iterations: as many steps as the semi-supervised methods take, each with labelled images alone."""
    dataset = make_dataset("pascal")
    whole = batches(pascal, dataset, 3, 7, settings={"suponly_epoch_unit": "iterations"}, supervised_only=True)
    assert len(whole) == len(batches(pascal, dataset, 3, 7)) == 3
    assert all(set(step) == {"image_l", "mask_l"} for step in whole.epoch(0))
    assert len(batches(pascal, dataset, 3, 7, supervised_only=True)) == 1


def test_the_batch_is_of_each_stream_or_of_both(pascal: Path, make_dataset: Make) -> None:
    dataset = make_dataset("pascal")
    for value, images, steps in (("per_stream", 4, 2), ("total", 2, 4)):
        made = batches(pascal, dataset, 2, 8, settings={"batch_size": value}, batch=4)
        assert len(made) == steps
        assert all(len(step["image_l"]) == len(step["image_u"]) == images for step in made.epoch(0))


def test_padded_pixels_train_as_class_0_or_not_at_all(pascal: Path, make_dataset: Make) -> None:
    """A crop larger than any scaled image is padded; only its label differs."""
    dataset = make_dataset("pascal")
    zero, ignored = (
        next(batches(pascal, dataset, 3, 4, settings={"crop_pad_label_train": value}, crop=400).epoch(0))
        for value in ("zero", "ignore")
    )
    mean = torch.tensor(dataset.mean).round().to(torch.uint8).view(3, 1, 1)
    padded = (zero["image_l"] == mean).all(dim=1) & (zero["mask_l"] != ignored["mask_l"])
    assert padded.sum() > 400 * 400
    assert (zero["mask_l"][padded] == 0).all() and (ignored["mask_l"][padded] == dataset.ignore_label).all()
    assert torch.equal(zero["mask_l"][~padded], ignored["mask_l"][~padded])
    assert torch.equal(zero["image_l"], ignored["image_l"])


def test_deterministic_and_independent_of_workers_and_of_the_global_generator(pascal: Path, make_dataset: Make) -> None:
    dataset = make_dataset("pascal")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    plain = batches(pascal, dataset, 3, 6)
    first, second = list(plain.epoch(0)), list(plain.epoch(1))
    assert torch.equal(torch.get_rng_state(), state), "the run's own generator is left alone"
    assert not equal(first, second)
    torch.manual_seed(2)
    parallel = batches(pascal, dataset, 3, 6, workers=2)
    assert equal(list(parallel.epoch(1)), second), "an epoch needs none before it"
    assert equal(list(parallel.epoch(0)), first)
    assert equal(list(plain.epoch(1, start=2)), second[2:]), "nor a step the steps before it"
    assert not equal(list(batches(pascal, dataset, 3, 6, seed=1).epoch(0)), first)


def test_every_image_comes_once_before_any_comes_again(pascal: Path, make_dataset: Make) -> None:
    steps = batches(pascal, make_dataset("pascal"), 3, 7)._steps
    for epoch in range(3):
        unlabelled = [steps._index(steps.unlabelled, epoch, 1, p) for p in range(7)]  # type: ignore[arg-type]
        assert sorted(unlabelled) == list(range(7))
        labelled = [steps._index(steps.labelled, epoch, 0, p) for p in range(6)]
        assert sorted(labelled[:3]) == sorted(labelled[3:]) == [0, 1, 2]


def test_folder_gives_the_prepared_files(pascal: Path) -> None:
    ids = read_ids(pascal / "lists" / "val.txt")
    image, mask = SegmentationFolder(pascal, ids, n_classes=21, ignore_label=255)[1]
    np.testing.assert_array_equal(mask.numpy(), np.array(Image.open(pascal / "masks" / f"{ids[1]}.png")))
    np.testing.assert_array_equal(
        image.permute(1, 2, 0).numpy(), np.array(Image.open(pascal / "images" / f"{ids[1]}.jpg"))
    )


def truncate(folder: Path, image_id: str) -> None:
    path = folder / "images" / f"{image_id}.jpg"
    path.write_bytes(path.read_bytes()[:-200])


def shrink(folder: Path, image_id: str) -> None:
    Image.fromarray(np.zeros((48, 63), np.uint8)).save(folder / "masks" / f"{image_id}.png")


def relabel(folder: Path, image_id: str) -> None:
    Image.fromarray(np.full((48, 64), 30, np.uint8)).save(folder / "masks" / f"{image_id}.png")


def remove(folder: Path, image_id: str) -> None:
    (folder / "images" / f"{image_id}.jpg").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [(truncate, "truncated"), (shrink, "48x63"), (relabel, "label 30"), (remove, "no file")],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_damage_is_reported_with_its_file(
    damage: Callable[[Path, str], None], message: str, workers: int, pascal: Path, make_dataset: Make, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(pascal, folder)
    image_id = read_ids(folder / "lists" / "train_aug.txt")[0]
    damage(folder, image_id)
    with pytest.raises(UserError, match=message) as raised:
        list(batches(folder, make_dataset("pascal"), 1, 2, workers=workers).epoch(0))
    assert image_id in str(raised.value)
