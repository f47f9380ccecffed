import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from u2pl.data.augment import LabelResize, WeakAugmentation
from u2pl.data.batches import SegmentationFolder, TrainBatches, seeded
from u2pl.data.lists import read_ids
from u2pl.errors import UserError
from u2pl.experiments.schema import Dataset, Estimate, Network, Recipe
from u2pl.experiments.settings import SETTINGS, MeanTeacher, Stream, Training

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
    settings: dict[str, Any] | Training | None = None,
    **changes: Any,
) -> TrainBatches:
    method, seed = changes.pop("method", "mean_teacher"), changes.pop("seed", 0)
    ranks = {key: changes.pop(key) for key in ("rank", "ranks") if key in changes}
    ids = read_ids(prepared / "lists" / "train_aug.txt")
    return TrainBatches(
        prepared, ids[:labelled], ids[labelled : labelled + unlabelled], dataset, recipe(**changes),
        settings if isinstance(settings, Training) else SETTINGS[method](**(settings or {})), seed, **ranks,
    )  # fmt: skip


def asking(*more: Stream, **changes: Any) -> Training:
    """Settings of Mean Teacher that ask for more streams than it needs."""

    class Asking(MeanTeacher):
        @property
        def streams(self) -> frozenset[Stream]:
            return super().streams | frozenset(more)

    return Asking(**changes)


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
    assert len(batches(pascal, dataset, 6, 4, method="suponly")) == 3
    assert "image_u" not in next(batches(pascal, dataset, 6, 4, method="suponly").epoch(0))
    assert len(batches(pascal, dataset, 6, 0)) == 3, "nothing unlabelled: a pass over the labelled list"
    assert next(batches(pascal, dataset, 6, 0).epoch(0))["image_u"].shape == (2, 3, 33, 33)
    short = batches(pascal, dataset, 1, 2, batch=4)
    assert len(short) == 1 and next(short.epoch(0))["image_u"].shape[0] == 4
    with pytest.raises(UserError, match="labelled list"):
        batches(pascal, dataset, 0, 4)


@pytest.mark.parametrize(("unlabelled_list", "number"), [("all", 9), ("rest", 6)])
def test_the_unlabelled_stream_can_hold_the_labelled_images_too(
    unlabelled_list: str, number: int, pascal: Path, make_dataset: Make
) -> None:
    ids = read_ids(pascal / "lists" / "train_aug.txt")[:9]
    settings = {"unlabelled_list": unlabelled_list, "sampler": "global"}
    made = batches(pascal, make_dataset("pascal"), 3, 6, settings, method="pseudoseg", batch=3)
    assert len(made) == number // 3 and made._steps.unlabelled.ids == ids[9 - number :]
    assert all({"raw_u", "valid_u", "valid_l"} <= batch.keys() for batch in made.epoch(0))


def test_suponly_counts_epochs_over_either_list(pascal: Path, make_dataset: Make) -> None:
    """Iterations: as many steps as the semi-supervised methods take, each with labelled images alone."""
    dataset = make_dataset("pascal")
    whole = batches(pascal, dataset, 3, 7, settings={"suponly_epoch_unit": "iterations"}, method="suponly")
    assert len(whole) == len(batches(pascal, dataset, 3, 7)) == 3
    assert all(set(step) == {"image_l", "mask_l"} for step in whole.epoch(0))
    assert len(batches(pascal, dataset, 3, 7, method="suponly")) == 2, "the incomplete batch counts"
    assert len(batches(pascal, dataset, 3, 7, settings={"sampler": "global"}, method="suponly")) == 1


def test_only_an_oracle_is_given_true_masks(pascal: Path, make_dataset: Make) -> None:
    """Those of image_u, as they are when the same images are labelled: same draws, other stream."""
    ids = read_ids(pascal / "lists" / "train_aug.txt")[:7]
    made = batches(pascal, make_dataset("pascal"), 3, 4, method="cutmix", settings={"oracle": True})
    plain = batches(pascal, make_dataset("pascal"), 3, 4, method="cutmix")
    folder = SegmentationFolder(pascal, ids[3:], n_classes=21, ignore_label=255)
    for step, other in zip(made.epoch(0), plain.epoch(0), strict=True):
        assert "mask_u" not in other and torch.equal(step["image_u"], other["image_u"])
        assert step["mask_u"].dtype == torch.int64
        known = {int(value) for index in range(4) for value in folder[index][1].unique()}
        assert {int(value) for value in step["mask_u"].unique()} <= known | {255}
        assert torch.equal(step["mask_u"], step["truth_u"].long())


def test_a_recipe_without_resize_and_mirror_shows_windows_of_the_images(pascal: Path, make_dataset: Make) -> None:
    """Every labelled crop, found in its image; two epochs, so that a mirrored one would turn up."""
    dataset, side, seen = make_dataset("pascal"), 20, 0
    made = batches(pascal, dataset, 3, 6, crop=side, resize=(1.0, 1.0), mirror=False)
    files = [pascal / "images" / f"{name}.jpg" for name in read_ids(pascal / "lists" / "train_aug.txt")[:3]]
    images = [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in files]
    windows = torch.cat(
        [image.unfold(1, side, 1).unfold(2, side, 1).permute(1, 2, 0, 3, 4).flatten(0, 1) for image in images]
    )
    for epoch in range(4):
        for step in made.epoch(epoch):
            for crop in step["image_l"]:
                seen += 1
                assert (windows == crop).flatten(1).all(1).any()
    assert seen > 12


def test_an_incomplete_last_step_is_filled_from_the_next_pass(
    pascal: Path, make_dataset: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labelled: 3 images in two steps of 2. Unlabelled: 7, which two GPUs pad to 8, in two steps of 4."""
    read: dict[int, list[int]] = {3: [], 7: []}  # by the length of the list
    original = SegmentationFolder.image

    def noted(self: SegmentationFolder, index: int) -> Any:
        read[len(self)].append(index)
        return original(self, index)

    monkeypatch.setattr(SegmentationFolder, "image", noted)
    dataset = make_dataset("pascal")
    made = batches(pascal, dataset, 3, 7, method="suponly")
    fills = set()
    for epoch in range(8):
        read[3].clear()
        steps = list(made.epoch(epoch))
        assert [len(step["image_l"]) for step in steps] == [2, 2]
        assert sorted(read[3][:3]) == [0, 1, 2] and len(read[3]) == 4
        fills.add(read[3][3])
    assert len(fills) > 1, "the filling image is another in other epochs"
    made = batches(pascal, dataset, 3, 7, settings={"group_size": 2}, batch=4)
    orders = set()
    for epoch in range(4):
        for order in read.values():
            order.clear()
        assert len(list(made.epoch(epoch))) == 2
        assert sorted(read[7][:7]) == list(range(7)) and len(read[7]) == 8
        assert sorted(read[3][:3]) == sorted(read[3][3:6]) == [0, 1, 2] and len(read[3]) == 8
        orders.add(tuple(read[7]))
    assert len(orders) == 4


def test_the_batch_is_of_each_stream_or_of_both(pascal: Path, make_dataset: Make) -> None:
    dataset = make_dataset("pascal")
    for value, images, steps in (("per_stream", 4, 2), ("total", 2, 4)):
        made = batches(pascal, dataset, 2, 8, settings={"batch_size": value}, batch=4)
        assert len(made) == steps
        assert all(len(step["image_l"]) == len(step["image_u"]) == images for step in made.epoch(0))


def test_a_second_unlabelled_stream_is_another_pass_and_leaves_the_others_alone(
    pascal: Path, make_dataset: Make
) -> None:
    dataset = make_dataset("pascal")
    made = batches(pascal, dataset, 3, 6, settings={"cps_partner": "second_batch"}, method="cps")
    one, two = list(batches(pascal, dataset, 3, 6).epoch(0)), list(made.epoch(0))
    assert all(step.keys() == {"image_l", "mask_l", "image_u", "image_u2"} for step in two)
    assert equal(one, [{name: value for name, value in step.items() if name != "image_u2"} for step in two])
    assert all(step["image_u2"].shape == step["image_u"].shape for step in two)
    assert not any(torch.equal(step["image_u2"], step["image_u"]) for step in two)
    order = [made._steps._index(made._steps.unlabelled, 0, 2, p) for p in range(6)]
    assert sorted(order) == list(range(6)), "every image comes once here too"


ADDED: dict[Stream, set[str]] = {
    "unlabelled_2": {"image_u2"},
    "labelled_2": {"image_l2", "mask_l2"},
    "ids": {"index_u"},
    "valid": {"valid_l", "valid_u"},
    "raw": {"raw_u"},
    "oracle": {"mask_u", "truth_u"},
}


@pytest.mark.parametrize("stream", ADDED)
def test_a_stream_adds_its_entries_and_leaves_the_others_alone(
    stream: Stream, pascal: Path, make_dataset: Make
) -> None:
    dataset = make_dataset("pascal")
    plain, found = (list(batches(pascal, dataset, 3, 6, asking(*more)).epoch(1)) for more in ((), (stream,)))
    base = {"image_l", "mask_l", "image_u"}
    assert all(step.keys() == base for step in plain) and all(step.keys() == base | ADDED[stream] for step in found)
    assert equal(plain, [{name: step[name] for name in base} for step in found])
    assert all(type(value) is torch.Tensor for step in found for value in step.values())


def test_every_stream_depends_on_seed_epoch_and_position_alone(pascal: Path, make_dataset: Make) -> None:
    """Neither workers, nor earlier steps, nor the number of ranks change an entry; seed and epoch do."""
    dataset, everything = make_dataset("pascal"), asking(*get_args(Stream))

    def made(**changes: Any) -> TrainBatches:
        return batches(pascal, dataset, 3, 6, everything, **changes)

    whole = list(made().epoch(1))
    assert len(whole) == 3 and whole[0].keys() == {
        "image_l", "mask_l", "valid_l", "image_l2", "mask_l2", "valid_l2",
        "image_u", "valid_u", "index_u", "raw_u", "mask_u", "truth_u", "image_u2", "valid_u2",
    }  # fmt: skip
    assert equal(list(made(workers=2).epoch(1)), whole)
    assert equal(list(made().epoch(1, start=2)), whole[2:])
    ranks = [list(made(rank=rank, ranks=2).epoch(1)) for rank in range(2)]
    assert all(len(value) == 1 for steps in ranks for step in steps for value in step.values())
    joined = [{name: torch.cat([a[name], b[name]]) for name in a} for a, b in zip(*ranks, strict=True)]
    assert equal(joined, whole)
    for other in (made(seed=1).epoch(1), made().epoch(0)):
        for name in ("image_l2", "image_u2", "index_u"):
            assert any(not torch.equal(a[name], b[name]) for a, b in zip(other, whole, strict=True)), name


def test_a_second_labelled_stream_is_another_pass_over_images_with_their_masks(
    pascal: Path, make_dataset: Make, tmp_path: Path
) -> None:
    """Every image is painted in a grey of its own and its mask in a class of its own, so a sample names its image."""
    shutil.copytree(pascal, folder := tmp_path / "data")
    ids = read_ids(folder / "lists" / "train_aug.txt")
    for number, image_id in enumerate(ids[:4]):
        Image.new("RGB", (64, 48), (20 * number,) * 3).save(folder / "images" / f"{image_id}.jpg", quality=100)
        Image.fromarray(np.full((48, 64), number, np.uint8)).save(folder / "masks" / f"{image_id}.png")
    made = batches(folder, make_dataset("pascal"), 4, 6, asking("labelled_2", "valid"), crop=17)
    seen: dict[str, list[int]] = {"l": [], "l2": []}
    for step in (step for epoch in range(4) for step in list(made.epoch(epoch))[:2]):
        for end in seen:
            image, mask, valid = (step[f"{name}_{end}"] for name in ("image", "mask", "valid"))
            assert image.shape == (2, 3, 17, 17) and mask.shape == (2, 17, 17) and mask.dtype == torch.int64
            assert valid.all(), "no image is smaller than the crop"
            assert ((image.int() - 20 * mask[:, None]).abs() <= 2).all()
            seen[end] += mask.flatten(1)[:, 0].tolist()
    for order in seen.values():
        assert all(sorted(order[i : i + 4]) == [0, 1, 2, 3] for i in range(0, 16, 4)), "one pass an epoch"
    assert seen["l"] != seen["l2"]


def test_ids_are_the_places_of_the_images_in_the_unlabelled_list(
    pascal: Path, make_dataset: Make, tmp_path: Path
) -> None:
    shutil.copytree(pascal, folder := tmp_path / "data")
    ids = read_ids(folder / "lists" / "train_aug.txt")
    for number, image_id in enumerate(ids[3:10]):
        Image.new("RGB", (64, 48), (30 * number,) * 3).save(folder / "images" / f"{image_id}.jpg", quality=100)
    for labelled, unlabelled, paint in ((3, 7, 0), (10, 0, 3)):
        made = batches(folder, make_dataset("pascal"), labelled, unlabelled, asking("ids"), crop=17)
        found = [step for epoch in range(2) for step in made.epoch(epoch)]
        assert all(step["index_u"].shape == (2,) and step["index_u"].dtype == torch.int64 for step in found)
        indices, images = (torch.cat([step[name] for step in found]) for name in ("index_u", "image_u"))
        painted = indices >= paint
        expected = 30 * (indices[painted] - paint)
        assert painted.sum() > 6 and ((images[painted].int() - expected.view(-1, 1, 1, 1)).abs() <= 2).all()


def test_valid_is_false_on_padding_alone(pascal: Path, make_dataset: Make, tmp_path: Path) -> None:
    """Labelled: where the label depends on how padding is labelled. Unlabelled: where white images are not white."""
    dataset = make_dataset("pascal")
    shutil.copytree(pascal, folder := tmp_path / "data")
    for image_id in read_ids(folder / "lists" / "train_aug.txt")[3:7]:
        Image.new("RGB", (64, 48), (255,) * 3).save(folder / "images" / f"{image_id}.jpg", quality=100)
    for crop in (60, 400):
        zero, ignored = (
            list(batches(folder, dataset, 3, 4, asking("valid", crop_pad_label_train=label), crop=crop).epoch(0))
            for label in ("zero", "ignore")
        )
        assert len(zero) == 2
        for one, two in zip(zero, ignored, strict=True):
            assert one["valid_l"].dtype == one["valid_u"].dtype == torch.bool
            assert torch.equal(~one["valid_l"], one["mask_l"] != two["mask_l"])
            assert torch.equal(one["valid_u"], (one["image_u"] > 200).all(1))
            assert torch.equal(one["valid_l"], two["valid_l"]) and torch.equal(one["valid_u"], two["valid_u"])
        assert any(0 < step["valid_u"].float().mean() < 1 for step in zero)


def test_nothing_is_decoded_for_streams_beside_the_images(
    pascal: Path, make_dataset: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = SegmentationFolder.image

    def noted(self: SegmentationFolder, index: int) -> Any:
        read.append(index)
        return original(self, index)

    monkeypatch.setattr(SegmentationFolder, "image", noted)
    for more, count in (((), 4), (("ids", "valid", "raw"), 4), (("labelled_2",), 6)):
        read.clear()
        step = next(batches(pascal, make_dataset("pascal"), 3, 6, asking(*more)).epoch(0))  # type: ignore[arg-type]
        assert len(read) == count
    assert "raw_u" not in step


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


def test_labels_are_resized_as_the_settings_say_and_images_alike(pascal: Path, make_dataset: Make) -> None:
    """Both sets of labels are augmentations of the same draws, made here by hand."""
    dataset, ids = make_dataset("pascal"), read_ids(pascal / "lists" / "train_aug.txt")
    folder = SegmentationFolder(pascal, ids[:3], n_classes=21, ignore_label=255)
    found = {}
    for rule in get_args(LabelResize):
        made = batches(pascal, dataset, 3, 4, settings={"label_resize": rule})
        found[rule] = next(made.epoch(0))
        transform = WeakAugmentation(33, pad_label=0, mean=dataset.mean, label_resize=rule)
        for position in range(2):
            with seeded(0, 0, 0, position):
                _, mask = transform(folder[made._steps._index(folder, 0, 0, position)])
            assert torch.equal(found[rule]["mask_l"][position], mask.long())
    assert torch.equal(found["floor"]["image_l"], found["centre"]["image_l"])
    assert not torch.equal(found["floor"]["mask_l"], found["centre"]["mask_l"])


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
        unlabelled = [steps._index(steps.unlabelled, epoch, 1, p) for p in range(7)]
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
