"""Images that a method chooses are those of the list, augmented by (seed, epoch, position) alone."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from tests.data.test_batches import asking, batches
from u2pl.data.augment import WeakAugmentation
from u2pl.data.batches import SegmentationFolder, TrainBatches, seeded
from u2pl.data.lists import read_ids
from u2pl.errors import UserError
from u2pl.experiments.schema import Dataset
from u2pl.experiments.settings import AEL

torch.set_num_threads(1)
Make = Callable[..., Dataset]
PLACES = [5, 0, 5, 2]


def made(pascal: Path, dataset: Dataset, unlabelled: int = 6, **changes: Any) -> TrainBatches:
    return batches(pascal, dataset, 3, unlabelled, asking("chosen"), batch=4, **changes)


def taken(data: TrainBatches, epoch: int = 1, step: int = 0) -> Tensor:
    assert data.chosen is not None
    data.chosen.ask(PLACES, epoch, step)
    return data.chosen.take(epoch, step)


@pytest.mark.parametrize("unlabelled", [6, 0])
def test_they_are_the_augmentations_of_one_thread(unlabelled: int, pascal: Path, make_dataset: Make) -> None:
    """Of the labelled list, where nothing is unlabelled."""
    dataset, ids = make_dataset("pascal"), read_ids(pascal / "lists" / "train_aug.txt")
    places = PLACES if unlabelled else [2, 0, 2, 1]
    data = made(pascal, dataset, unlabelled, workers=2)
    assert data.unlabelled == (unlabelled or 3) and data.chosen is not None
    folder = SegmentationFolder(pascal, ids[3:9] if unlabelled else ids[:3], n_classes=21, ignore_label=255)
    transform = WeakAugmentation(33, pad_label=0, mean=dataset.mean)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    for epoch, step in ((0, 0), (1, 2)):
        data.chosen.ask(places, epoch, step)
        found = data.chosen.take(epoch, step)
        assert found.dtype == torch.uint8 and found.shape == (4, 3, 33, 33) and type(found) is Tensor
        for slot, place in enumerate(places):
            with seeded(0, epoch, 4, 4 * step + slot):
                (expected,) = transform([folder.image(place)])
            assert torch.equal(found[slot], expected.as_subclass(Tensor))
    assert torch.equal(torch.get_rng_state(), state), "the run's own generator is left alone"


def test_they_depend_on_neither_threads_nor_ranks_but_on_seed_epoch_and_step(pascal: Path, make_dataset: Make) -> None:
    dataset = make_dataset("pascal")
    whole = taken(made(pascal, dataset))
    assert torch.equal(taken(made(pascal, dataset, workers=2)), whole)
    ranks = [taken(made(pascal, dataset, rank=rank, ranks=2)) for rank in range(2)]
    assert torch.equal(torch.cat(ranks), whole)
    assert not torch.equal(whole[0], whole[2]), "the same image twice"
    for other in (
        taken(made(pascal, dataset, seed=1)),
        *(taken(made(pascal, dataset), *at) for at in ((0, 0), (1, 1))),
    ):
        assert not torch.equal(other, whole)


def test_what_was_asked_for_is_replaced_and_forgotten(pascal: Path, make_dataset: Make) -> None:
    chosen = made(pascal, make_dataset("pascal")).chosen
    assert chosen is not None
    chosen.ask(PLACES, 0, 1)
    chosen.ask(PLACES[::-1], 0, 2)
    assert chosen.coming(0, 2) and not chosen.coming(0, 1)
    chosen.settle()
    chosen.take(0, 2)
    assert not chosen.coming(0, 2)
    chosen.ask(PLACES, 0, 3)
    chosen.forget()
    assert not chosen.coming(0, 3)


def test_damage_is_reported_with_its_file_when_the_images_are_taken(
    pascal: Path, make_dataset: Make, tmp_path: Path
) -> None:
    shutil.copytree(pascal, folder := tmp_path / "data")
    image_id = read_ids(folder / "lists" / "train_aug.txt")[3 + PLACES[3]]
    path = folder / "images" / f"{image_id}.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    chosen = made(folder, make_dataset("pascal")).chosen
    assert chosen is not None
    chosen.ask(PLACES, 0, 0)
    chosen.settle()
    with pytest.raises(UserError, match=f"{image_id}.*truncated"):
        chosen.take(0, 0)


def test_only_a_method_that_asks_has_them(pascal: Path, make_dataset: Make) -> None:
    assert batches(pascal, make_dataset("pascal"), 3, 6).chosen is None


def test_images_to_paste_from_are_resized_by_a_range_of_their_own(pascal: Path, make_dataset: Make) -> None:
    """The second labelled draw of AEL, against the transform by hand; the first stays in the range of all."""
    dataset, ids = make_dataset("pascal"), read_ids(pascal / "lists" / "train_aug.txt")
    data = batches(pascal, dataset, 3, 4, AEL(ael_copy_paste_scale=0.2), batch=4)
    step = next(data.epoch(0))
    folder = SegmentationFolder(pascal, ids[:3], n_classes=21, ignore_label=255)
    for number, end, least in ((3, "l2", 0.2), (0, "l", 0.5)):
        transform = WeakAugmentation(33, (least, 2.0), 0, dataset.mean)
        for position in range(4):
            image, mask = folder[data._steps._index(folder, 0, number, position)]
            with seeded(0, 0, number, position):
                image, mask, valid = transform(image, mask, tv_tensors.Mask(torch.ones(mask.shape, dtype=torch.bool)))
            for name, expected in (("image", image), ("mask", mask), ("valid", valid)):
                assert torch.equal(step[f"{name}_{end}"][position], expected.to(step[f"{name}_{end}"].dtype))
    assert not torch.equal(step["valid_l2"], step["valid_l"])
