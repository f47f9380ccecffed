"""The loss parts of a method's first steps from a stored warm state: rounding has not been amplified yet.

A training amplifies rounding until, on another platform, it is as far off as another seed. Four steps from equal
weights, images and random numbers are not, so that there a small change of the code shows on every platform.
"""

import io
import itertools
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from u2pl.data.chosen import ChosenImages
from u2pl.engine.checkpoints import Weights, cpu_copy
from u2pl.engine.seeding import deterministic
from u2pl.engine.trainer import Batches, Trainer
from u2pl.errors import UserError
from u2pl.experiments.settings import Averaging, Contrast
from u2pl.files import atomic_path
from u2pl.models.weights import difference

if TYPE_CHECKING:
    from u2pl.experiments.suite import RunSpec

STEPS = 4  # by step 16 rounding alone moves the losses by 0.2
# Where the names of a method's state begin, by what the warm state holds for them.
PLACES = {"student.": "student", "first.": "student", "teacher.network.": "teacher", "second.": "teacher"}
PLACES |= {"contrast.bank.": "bank"}
# So that the stored state takes less than a megabyte, whatever the readings' settings are; and no dropout, whose draws
# are made by kernels that a build of torch may have of its own. All other draws are `torch.rand`'s.
NETWORK = {"width": 6, "channels": 16, "representation": 16, "dropout": 0.0}
CROP = 33
SETTINGS = {"bank_size": 64, "bank_size_background": 128, "backbone_stem": "7x7", "bank_in_checkpoint": True}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class WarmState:
    """What the first steps start from.

    epoch: the finished epochs. weights: by "student/", "teacher/" or "bank/" and the tensor's name there. batches: one
    per step, as `TrainBatches.epoch` yields them: image_l and image_u uint8 (B, 3, H, W), mask_l int64 (B, H, W).
    """

    epoch: int
    weights: Weights
    batches: list[dict[str, Tensor]]


def small(spec: "RunSpec") -> "RunSpec":
    """The run with a network, crops and a bank that are small enough to be stored, and without dropout."""
    network = spec.recipe.network.model_copy(update=NETWORK)
    fields = type(spec.settings).model_fields
    settings = {name: value for name, value in SETTINGS.items() if name in fields}
    recipe = spec.recipe.model_copy(update={"network": network, "crop": CROP})
    return spec.model_copy(update={"recipe": recipe, "settings": spec.settings.model_copy(update=settings)})


def warm_up(spec: "RunSpec", prepared: Path, split: Path) -> WarmState:
    """Train the small run on the CPU through its warm-up and two more epochs; the batches are the next ones.

    In the first of the two the teacher still is a copy of the student, which would make the networks of CPS equal.
    Floats are rounded to half precision, as `save` keeps them.

    Raises UserError if the run has no teacher or no memory bank, or an input is missing.
    """
    settings = spec.settings
    if not isinstance(settings, Averaging) or not isinstance(settings, Contrast):
        raise UserError(f"first_steps: {spec.id}", f"the method {spec.method} first", "one with a teacher and a bank")
    with deterministic(1):
        trainer = Trainer(small(spec), prepared, split, None, CPU)
        while trainer.epoch < settings.warmup_epochs + 2:
            trainer.run_epoch()
        parts = ((_place(name), value) for name, value in cpu_copy(trainer.method).items())
        weights = {place: _rounded(value) for place, value in parts if place is not None}
        following = (batch for epoch in itertools.count(trainer.epoch) for batch in trainer.batches.epoch(epoch))
        batches = list(itertools.islice(following, STEPS))
    kept = [{name: value for name, value in batch.items() if not name.startswith("truth")} for batch in batches]
    return WarmState(trainer.epoch, weights, kept)


def _rounded(value: Tensor) -> Tensor:
    return value.half().float() if value.is_floating_point() else value


def _place(name: str) -> str | None:
    """Where the warm state has a tensor of a method's state; None: nowhere."""
    found = (f"{part}/{name.removeprefix(start)}" for start, part in PLACES.items() if name.startswith(start))
    return next(found, None)


def save(warm: WarmState, path: Path) -> None:
    """Write the state as compressed arrays, atomically; floats in half precision, masks as bytes."""
    arrays: dict[str, np.ndarray] = {"epoch": np.array(warm.epoch)}
    for name, value in warm.weights.items():
        arrays[name] = (value.half() if value.is_floating_point() else value).numpy()
    for number, batch in enumerate(warm.batches):
        arrays |= {f"batch/{number}/{name}": value.to(torch.uint8).numpy() for name, value in batch.items()}
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def load(path: Path) -> WarmState:
    """Read what `save` wrote; floats become single precision. Raises UserError if it is missing, damaged or no such."""
    expected = "a warm state, which `u2pl baseline` writes"
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        epoch = int(arrays.pop("epoch"))
        batches: list[dict[str, Tensor]] = [{} for _ in range(STEPS)]
        for name in [name for name in arrays if name.startswith("batch/")]:
            _, number, key = name.split("/")
            value = arrays.pop(name)
            batches[int(number)][key] = value.long() if key.startswith("mask") else value
    except FileNotFoundError as error:
        raise UserError(path, "no file", expected) from error
    except KeyError as error:
        raise UserError(path, f"no array {error}", expected) from error
    except (OSError, ValueError, IndexError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(path, error, expected) from error
    if not all(batch.keys() >= {"image_l", "mask_l", "image_u"} for batch in batches):
        raise UserError(path, "a step without images", expected)
    return WarmState(epoch, {k: v.float() if v.is_floating_point() else v for k, v in arrays.items()}, batches)


class _Stored:
    """The stored batches, as an epoch of a training."""

    chosen: ChosenImages | None = None

    def __init__(self, batches: Sequence[dict[str, Tensor]]) -> None:
        self.batches, self.images = batches, len(batches[0]["image_l"])
        self.unlabelled = sum(len(batch["image_u"]) for batch in batches)

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """The same for every epoch."""
        return iter(self.batches[start:])


class _FirstSteps(Trainer):
    """The engine's own epoch, from the warm state; `parts` are the losses of each step."""

    def __init__(self, spec: "RunSpec", warm: WarmState, path: Path) -> None:
        self.warm = warm
        super().__init__(small(spec), Path(), Path(), None, CPU)
        self.epoch, self.parts = warm.epoch, list[dict[str, float]]()
        state: Weights = {}
        for name, own in self.method.state_dict().items():
            if (place := _place(name)) is None:
                raise UserError(f"first_steps: {spec.id}", f"{name} in its state", "two networks and a bank at most")
            if place not in warm.weights:
                raise UserError(path, f"no tensor {place}", f"one of shape {tuple(own.shape)}, for {spec.id}")
            if differs := difference(warm.weights[place], own):
                raise UserError(path, f"{place} of {differs[0]}", f"{differs[1]}, for {spec.id}")
            state[name] = warm.weights[place]
        self.method.load_state_dict(state)

    def inputs(self, split: Path) -> tuple[Batches, list[str]]:
        return _Stored(self.warm.batches), []

    def _step(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        parts = super()._step(batch, step)
        self.parts.append({name: float(torch.as_tensor(value).detach()) for name, value in parts.items()})
        return parts

    def check_finite(self) -> None:
        """A loss that is not finite is one that moved: to be reported with the others."""


Row = tuple[str, str, int, str, float]


def first_steps(specs: Iterable["RunSpec"], warm: WarmState, path: Path) -> list[Row]:
    """Take the first steps of each run from the warm state of the file `path`, on one thread of the CPU.

    Returns (method, reading, step from 1, loss part, value). Raises UserError if the state does not fit a method's.
    """
    rows = list[Row]()
    for spec in specs:
        with deterministic(1):
            trainer = _FirstSteps(spec, warm, path)
            trainer.run_epoch()
        for step, parts in enumerate(trainer.parts, 1):
            rows += [(spec.method, spec.fidelity, step, part, value) for part, value in parts.items()]
    return rows
