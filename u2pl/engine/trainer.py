"""The loop of one run: steps, validations, and the state from which it resumes."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from rich.progress import track
from torch import Tensor

from u2pl.data.augment import normalise
from u2pl.data.batches import TrainBatches
from u2pl.data.chosen import ChosenImages
from u2pl.data.lists import read_ids
from u2pl.engine import checkpoints
from u2pl.engine.diagnosis import Diagnosis, observe_every
from u2pl.engine.evaluate import evaluate, mean_iou, network_of, pad_label, validation_ids
from u2pl.engine.optimisers import assert_all_optimised, poly, set_rates
from u2pl.engine.seeding import random_state, restore_random_state, seed_everything
from u2pl.errors import UserError
from u2pl.experiments.schedule import steps_per_epoch, validates, validation_mode
from u2pl.folders import Split
from u2pl.methods import Progress, Setup, build_method
from u2pl.models import DeepLab, load_encoder_weights
from u2pl.ranks.collectives import rank, world_size
from u2pl.ranks.layers import data_parallel, span_ranks

if TYPE_CHECKING:
    from u2pl.experiments.suite import RunSpec

CHECK_EVERY = 50  # steps


class Batches(Protocol):
    """What a trainer needs of `TrainBatches`."""

    images: int  # of a stream and step, this rank's
    unlabelled: int  # images of the list
    chosen: ChosenImages | None

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]: ...


class Trainer:
    """The method, its optimisers and the loop of one run.

    `epoch` counts the finished epochs, `index` the finished steps of the present one. Of several ranks each has a
    trainer, and all are in the same state.
    """

    def __init__(
        self, spec: "RunSpec", prepared: Path, split: Path, weights: Path | None, device: torch.device
    ) -> None:
        dataset, recipe = spec.dataset, spec.recipe
        self.spec, self.prepared, self.device = spec, prepared, device
        self.generator = seed_everything(spec.seed, device)
        self.layout = torch.channels_last if recipe.channels_last else torch.contiguous_format

        def network() -> DeepLab:
            new = network_of(spec)
            if weights is not None:
                load_encoder_weights(new, weights)
            return new.to(device).to(memory_format=self.layout)

        self.batches, self.val_ids = self.inputs(split)
        setup = Setup(
            network,
            len(dataset.classes),
            dataset.ignore_label,
            unlabelled=self.batches.unlabelled,
            batch=self.batches.images * world_size(),
            normalise=self._normalised,
        )
        self.method = build_method(spec.method, spec.settings, setup).to(device)
        span_ranks(self.method, self.batches.images, device)
        self.forward = data_parallel(self.method)
        self.optimisers = self.method.optimisers(recipe)
        assert_all_optimised(self.method, self.optimisers)
        self.steps = recipe.epochs * len(self.batches)
        self.epoch = self.index = self.images = 0
        self.sums: dict[str, Tensor] = {}  # of the present epoch's losses
        self.diagnosis = Diagnosis(len(dataset.classes), dataset.ignore_label)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] | None = None
        self.bad_step = torch.tensor(-1, device=device)  # the first with a non-finite loss
        self.bad_loss = torch.tensor(0.0, device=device)
        self.started, self.seconds, self.training_seconds = time.perf_counter(), 0.0, 0.0
        self.before = (0, 0.0)  # images and seconds of training before the present epoch

    def inputs(self, split: Path) -> tuple[Batches, list[str]]:
        """This rank's batches, and the ids of the validation list; from the prepared files unless overridden.

        Raises UserError if a list is missing or empty, or a batch has no equal stretches.
        """
        spec = self.spec
        labelled, unlabelled = read_ids(Split(split).list("labeled")), read_ids(Split(split).list("unlabeled"))
        batches = TrainBatches(
            self.prepared,
            labelled,
            unlabelled,
            spec.dataset,
            spec.recipe,
            spec.settings,
            spec.seed,
            rank=rank(),
            ranks=world_size(),
            truth_every=observe_every(steps_per_epoch(spec.recipe, spec.settings, len(labelled), len(unlabelled))),
        )
        return batches, validation_ids(split)

    def finished(self) -> bool:
        """Whether all steps and validations are done."""
        return self.epoch == self.spec.recipe.epochs and not self.validation_due()

    def run_epoch(self, after_step: Callable[[], None] = lambda: None) -> None:
        """What is left of a pass over the batches; appends a row of means to the history.

        after_step: called between steps. If it raises, `state` is that of an interrupted epoch.
        """
        self.method.train()
        started = time.perf_counter()
        for batch in self._shown(self.batches.epoch(self.epoch, start=self.index)):
            step = self.epoch * len(self.batches) + self.index
            set_rates(self.optimisers, poly(step, self.steps, self.spec.recipe.poly_power))
            for name, value in self._step(batch, step).items():
                before = self.sums.get(name, torch.zeros((), device=self.device))
                self.sums[name] = before + torch.as_tensor(value).detach()
            if self.index % CHECK_EVERY == 0:
                self.check_finite()
            images = world_size() * sum(len(value) for name, value in batch.items() if name.startswith("image"))
            self.index, self.images = self.index + 1, self.images + images
            now = time.perf_counter()
            self.training_seconds, started = self.training_seconds + now - started, now
            after_step()
        # Before the epoch counts: the state saved last is then the last good one.
        self.check_finite()
        if self.batches.chosen:
            self.batches.chosen.settle()
        self.training_seconds += time.perf_counter() - started
        self.epoch, self.index = self.epoch + 1, 0
        row: dict[str, float] = {"epoch": self.epoch, "step": self.epoch * len(self.batches)}
        row["lr"] = float(self.optimisers[0].param_groups[0]["lr"])
        row |= {name: float(value) / len(self.batches) for name, value in self.sums.items()}
        row |= self.diagnosis.row()
        images, seconds = self.before
        row["images_per_s"] = (self.images - images) / (self.training_seconds - seconds)
        self.history.append(row)
        self.sums, self.before = {}, (self.images, self.training_seconds)

    def check_finite(self) -> None:
        """Raise UserError if a loss was not finite; on a GPU this waits for all steps so far, so not at each."""
        if (step := int(self.bad_step)) >= 0:
            raise UserError(f"{self.spec.id} step {step}", f"a non-finite loss {float(self.bad_loss)}", "a finite loss")

    def _step(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        recipe = self.spec.recipe
        progress = Progress(
            epoch=self.epoch,
            epochs=recipe.epochs,
            step=step,
            steps=self.steps,
            generator=self.generator,
        )
        truth = {name: value for name, value in batch.items() if name.startswith("truth")}
        batch = {name: value for name, value in batch.items() if name not in truth}  # the method must not see it
        self._ask_for_chosen(step)  # only where no step has: the first one here
        if (chosen := self.batches.chosen) and chosen.coming(*self._place(step)):
            truth |= {"truth_p": chosen.masks(*self._place(step))} if truth else {}
            # In a batch of its own: the images that are counted are the loader's.
            batch |= {"image_p": chosen.take(*self._place(step))}
        half = recipe.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            parts: dict[str, Tensor] = self.forward(self._to_device(batch), progress)
        taught, self.method.taught = self.method.taught, None
        if taught is not None and truth:
            moved = {name: value.to(self.device, non_blocking=True) for name, value in truth.items()}
            self.diagnosis.observe(taught, moved)
        del taught  # its tensors are not to be kept during the backward pass
        self._ask_for_chosen(step + 1)  # they are loaded while the gradients are computed
        loss = parts["loss"]
        bad = ~torch.isfinite(loss.detach()) & (self.bad_step < 0)
        self.bad_step = torch.where(bad, step, self.bad_step)
        self.bad_loss = torch.where(bad, loss.detach(), self.bad_loss)
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser in self.optimisers:
            optimiser.step()
        self.method.after_step(progress)
        return parts

    def _place(self, step: int) -> tuple[int, int]:
        """The epoch of a step of the run, and its number there."""
        return divmod(step, len(self.batches))

    def _ask_for_chosen(self, step: int) -> None:
        """Start to load what the method wants for a step, if it wants anything and that has not been done."""
        chosen, wanted = self.batches.chosen, self.method.wanted
        if chosen and wanted is not None and step < self.steps and not chosen.coming(*self._place(step)):
            chosen.ask(wanted.tolist(), *self._place(step))

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Images become normalised floats only here: bytes are four times cheaper to move."""
        moved = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        for name in moved:
            if name.startswith("image"):
                moved[name] = self._normalised(moved[name])
        return moved

    def _normalised(self, colours: Tensor) -> Tensor:
        """Colours (B, 3, H, W) on 0 to 255 as the networks see them."""
        dataset = self.spec.dataset
        return normalise(colours, dataset.mean, dataset.std).contiguous(memory_format=self.layout)

    def _shown(self, batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The batches, behind a progress bar where someone is watching."""
        if sys.stdout.isatty() and rank() == 0:
            title = f"epoch {self.epoch + 1}/{self.spec.recipe.epochs}"
            yield from track(batches, title, total=len(self.batches) - self.index, transient=True)
        else:
            yield from batches

    def validation_due(self) -> bool:
        """Every `validate_every` epochs and after the last one, unless it has been done."""
        recipe = self.spec.recipe
        if self.index or not self.history or "val_miou" in self.history[-1]:
            return False
        return validates(self.epoch, recipe.epochs, recipe.validate_every)

    def validate(self, between: Callable[[], None] = lambda: None) -> None:
        """Evaluate the method's network, note it in the history and keep the best weights.

        Where centre crops choose the best epoch, windows over whole images are left to `evaluate_run`.
        between: called after every batch of images; if it raises, nothing has changed.
        """
        workers, pad, dataset = self.spec.recipe.workers, pad_label(self.spec), self.spec.dataset
        mode = validation_mode(self.spec.settings.selected_by, dataset.evaluation.mode)
        evaluation = dataset.evaluation.model_copy(update={"mode": mode})
        dataset = dataset.model_copy(update={"evaluation": evaluation})
        place = self.prepared, self.val_ids, dataset, self.device
        miou = mean_iou(evaluate(self.method.evaluated, *place, workers, pad, between))
        self.history[-1]["val_miou"] = miou
        if self.best is None or miou > self.best["miou"]:
            self.best = {"miou": miou, "epoch": self.epoch, "weights": self.weights()}
        row = ", ".join(f"{name} {value:.4g}" for name, value in self.history[-1].items() if name != "epoch")
        if rank() == 0:
            print(f"{self.spec.id} epoch {self.epoch}/{self.spec.recipe.epochs}: {row}", flush=True)

    def weights(self) -> checkpoints.Weights:
        """A copy of the evaluated network's present weights, on the CPU."""
        return checkpoints.cpu_copy(self.method.evaluated)

    def elapsed(self) -> float:
        """Seconds this run has taken, those before an interruption up to the last saved state included."""
        return self.seconds + time.perf_counter() - self.started

    def state(self) -> dict[str, Any]:
        """All that a resumed training needs: the method's state holds every network and memory.

        It is the same on every rank, random state included: all draw the numbers of the global batch.
        """
        return {
            "epoch": self.epoch,
            "index": self.index,
            "sums": self.sums,
            "diagnosis": self.diagnosis.counts,
            "method": self.method.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "random": random_state(self.generator),
            "history": self.history,
            "best": self.best,
            "counters": [self.images, self.elapsed(), self.training_seconds, *self.before],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.epoch, self.index = state["epoch"], state["index"]
        self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self.diagnosis.counts = {name: value.to(self.device) for name, value in state["diagnosis"].items()}
        self.history, self.best = state["history"], state["best"]
        self.images, self.seconds, self.training_seconds, *before = state["counters"]
        self.before = (before[0], before[1])
        self.method.load_state_dict(state["method"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        restore_random_state(state["random"], self.generator)
        if self.batches.chosen:
            self.batches.chosen.forget()
