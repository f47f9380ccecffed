"""The engine gives a step the images that its method wanted in the step before."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from u2pl.data.augment import WeakAugmentation
from u2pl.data.batches import SegmentationFolder, seeded
from u2pl.data.lists import read_ids
from u2pl.engine.train import Trainer
from u2pl.errors import UserError
from u2pl.experiments.settings import U2PLAEL
from u2pl.experiments.suite import RunSpec

Spec = Callable[..., RunSpec]
CPU = torch.device("cpu")


@pytest.fixture
def trainer(make_spec: Spec, prepared: Path, split: Path) -> Callable[..., Trainer]:
    def build(method: str = "ael", **recipe: Any) -> Trainer:
        return Trainer(make_spec(method, **recipe), prepared, split, None, CPU)

    return build


def watched(trainer: Trainer) -> list[tuple[list[int], Tensor]]:
    """What the method wanted before each step, and the bytes it got."""
    seen: list[tuple[list[int], Tensor]] = []
    original = trainer._to_device

    def noted(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((trainer.method.wanted.tolist(), batch["image_p"]))
        return original(batch)

    trainer._to_device = noted  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("workers", [0, 2])
def test_each_step_gets_the_images_that_were_wanted_after_the_one_before(
    workers: int, trainer: Callable[..., Trainer], prepared: Path, split: Path
) -> None:
    made = trainer(workers=workers)
    seen = watched(made)
    for _ in range(3):
        made.run_epoch()
    assert len(seen) == 9 and len({tuple(wanted) for wanted, _ in seen}) > 3
    folder = SegmentationFolder(prepared, read_ids(split / "unlabeled.txt"), n_classes=3, ignore_label=255)
    transform = WeakAugmentation(33, pad_label=0, mean=made.spec.dataset.mean)
    for number, (wanted, images) in enumerate(seen):
        epoch, step = divmod(number, 3)
        for slot, place in enumerate(wanted):
            with seeded(0, epoch, 4, 2 * step + slot):
                (expected,) = transform([folder.image(place)])
            assert torch.equal(images[slot], expected.as_subclass(Tensor))


def test_a_resumed_training_loads_them_from_the_state(trainer: Callable[..., Trainer]) -> None:
    whole = trainer()
    expected = watched(whole)
    for _ in range(2):
        whole.run_epoch()
    first = trainer()

    def stopped() -> None:
        if first.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run_epoch(stopped)
    kept = copy.deepcopy(first.state())
    second = trainer()
    found = watched(second)
    assert second.batches.chosen is not None
    second.batches.chosen.ask([0, 0], 0, 2)  # of another course: a restored state overrules it
    second.restore(kept)
    for _ in range(2):
        second.run_epoch()
    assert len(found) == 4
    for (wanted, images), (other, others) in zip(found, expected[2:], strict=True):
        assert wanted == other and torch.equal(images, others)
    state = second.method.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.method.state_dict().items())


def test_they_are_loaded_beside_the_images_that_are_counted(trainer: Callable[..., Trainer]) -> None:
    made = trainer("u2pl_ael")
    made.run_epoch()
    assert isinstance(made.spec.settings, U2PLAEL) and made.images == 3 * 2 * 3, "l, u and l2, of two images each"


def test_what_damages_a_chosen_image_ends_the_training(trainer: Callable[..., Trainer]) -> None:
    made = trainer()

    def damaged(place: int) -> None:
        raise UserError(f"image {place}", "truncated", "a whole file")

    assert made.batches.chosen is not None
    made.batches.chosen.image = damaged  # type: ignore[assignment]
    with pytest.raises(UserError, match="image .: found truncated"):
        made.run_epoch()


def test_nothing_is_loaded_for_a_method_that_wants_nothing(make_spec: Spec, prepared: Path, split: Path) -> None:
    for settings in ({"ael_partner": "batch"}, {"ael_cutmix": False}):
        made = Trainer(make_spec("ael", settings=settings), prepared, split, None, CPU)
        assert made.batches.chosen is None and made.method.wanted is None
        made.run_epoch()
