"""Training of one run, from its spec to the run directory."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from dvclive import Live
from rich.progress import track
from torch import Tensor

from u2pl.components.collectives import largest, rank, world_size
from u2pl.data.augment import normalise
from u2pl.data.batches import TrainBatches
from u2pl.data.lists import read_ids
from u2pl.engine import checkpoints
from u2pl.engine.distributed import data_parallel, joined, span_ranks, wait_for_files
from u2pl.engine.evaluate import evaluate, evaluate_run, mean_iou, network_of, pad_label, validation_ids
from u2pl.engine.provenance import peak_memory_mb, record
from u2pl.engine.run_lock import lock_path, locked_run
from u2pl.engine.seeding import choose_device, deterministic, random_state, restore_random_state, seed_everything
from u2pl.engine.stopping import Stopped, StopRequest
from u2pl.errors import UserError
from u2pl.experiments.params import validate
from u2pl.experiments.records import RunRecord, write, write_history
from u2pl.experiments.schedule import validates
from u2pl.files import sha256
from u2pl.folders import Run, Split
from u2pl.methods import Progress, build_method
from u2pl.models import DeepLab, load_encoder_weights

if TYPE_CHECKING:
    from u2pl.experiments.schema import Recipe, RunSpec

CHECK_EVERY = 50  # steps


def train(
    spec: "RunSpec",
    *,
    prepared: Path,
    split: Path,
    weights: Path | None,
    out: Path,
    state: Path,
    device: str = "auto",
    restart: bool = False,
) -> None:
    """Train `spec`, write weights.pt, history.csv and run.json into `out`, and evaluate that weights.pt.

    prepared, split: folders with a manifest.json; weights: of the encoder, None for random ones; state: folder that
    keeps what an interrupted run continues from, removed at the end; device: "auto" follows the recipe; restart: start
    over, whatever `state` keeps.
    A continued run ends with the same weights, bit for bit, as one that was never interrupted, unless the settings keep
    the memory bank out of the state, as the released code does. Called in every rank that torchrun started, it trains
    on the batches of one process; the first rank writes.

    Raises UserError if an input is missing or does not fit, the loss is not finite, or another process trains or
    evaluates the run; `out` is then left alone and `state` keeps the last one written. Raises Stopped after SIGTERM,
    SIGUSR1 or SIGHUP.
    """
    recipe = spec.recipe
    with StopRequest() as stop, joined(choose_device(device, recipe.gpus)) as target, ExitStack() as stack:
        check: Callable[[], None] = lambda: None  # noqa: E731
        if rank() == 0:
            check = stack.enter_context(locked_run(lock_path(state), between=stop.check)).check
        wait_for_files()  # the state may be read by no rank before the first one has the lock
        with deterministic(max(1, recipe.threads // world_size()), tf32=recipe.tf32):
            trainer = Trainer(spec, prepared, split, weights, target)
            # Now: files may change during a long training.
            start = record(spec, split, prepared, weights, target) if rank() == 0 else {}
            key = checkpoints.state_key(spec, split, prepared, weights)
            kept = checkpoints.StateFile(state, key, checkpoints.maker(target), recipe.save_every_minutes)
            if restart:
                kept.remove()
            elif (saved := kept.load()) is not None:
                trainer.restore(saved)
            run_to_the_end(trainer, kept, stop, check)
            if rank() == 0:
                write_run(out, trainer, start)
        wait_for_files()
        # From the file, as `u2pl evaluate` does. The state stays until then: a failed evaluation costs no training.
        evaluate_run(spec, prepared, split, out, target, between=stop.check)
        check()
        kept.remove()


def run_to_the_end(
    trainer: "Trainer", kept: checkpoints.StateFile, stop: StopRequest, check: Callable[[], None]
) -> None:
    """All steps and validations that are left; writes states on the way, and one at the end.

    check: called before each writing, raises UserError if the run is no longer this process's to write.
    Raises Stopped when a rank has been told to stop: after the step, or amid a validation, which is then done again.
    """

    def save() -> None:
        check()
        kept.save(trainer.state())
        wait_for_files()  # none is to end, or to miss the first rank, before the state is written

    def after_step() -> None:
        go_on, write, end = 0, 1, 2
        wish = end if stop.pending() else write if rank() == 0 and kept.due() else go_on
        agreed = largest(wish)  # ranks hear of a signal at different steps
        if agreed != go_on:
            trainer.check_finite()
            save()
        if agreed == end:
            raise Stopped

    while not trainer.finished():
        if trainer.validation_due():
            if world_size() > 1:  # a rank that is told to stop leaves the others amid their exchange
                save()
            try:
                trainer.validate(between=stop.check)
            except Stopped:
                if world_size() == 1:
                    save()
                raise
        else:
            trainer.run_epoch(after_step)
    save()


def optimiser_for(student: DeepLab, recipe: "Recipe", multiplier: float) -> torch.optim.SGD:
    """SGD with the encoder's parameters at the recipe's rate and all others at `multiplier` times it."""
    groups = [
        {"params": list(student.encoder_parameters()), "lr": recipe.lr, "initial_lr": recipe.lr},
        {
            "params": list(student.head_parameters()),
            "lr": recipe.lr * multiplier,
            "initial_lr": recipe.lr * multiplier,
        },
    ]
    # None is torch's choice: lists of tensors ("foreach") on GPUs, one by one on the CPU
    fused = recipe.fused_sgd or None
    return torch.optim.SGD(
        groups, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=fused
    )


def poly(step: int, steps: int, power: float) -> float:
    """Factor on the learning rate at `step` (from 0) of `steps`: (1 - step / steps) ** power."""
    return (1 - step / steps) ** power


class Trainer:
    """The networks, the optimiser and the loop of one run.

    `epoch` counts the finished epochs, `index` the finished steps of the present one. Of several ranks each has a
    trainer, and all are in the same state.
    """

    def __init__(
        self, spec: "RunSpec", prepared: Path, split: Path, weights: Path | None, device: torch.device
    ) -> None:
        dataset, recipe = spec.dataset, spec.recipe
        n_classes = len(dataset.classes)
        self.spec, self.prepared, self.device = spec, prepared, device
        self.generator = seed_everything(spec.seed, device)
        student = network_of(spec)
        if weights is not None:
            load_encoder_weights(student, weights)
        self.layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.student = student.to(device).to(memory_format=self.layout)
        self.method = build_method(spec.method, spec.settings, student, n_classes, dataset.ignore_label).to(device)
        self.teacher: torch.nn.Module | None = self.method.teacher
        labelled, unlabelled = read_ids(Split(split).list("labeled")), read_ids(Split(split).list("unlabeled"))
        # A method without a teacher cannot learn from unlabelled images; its epoch is one pass over the labelled ones.
        self.batches = TrainBatches(
            prepared,
            labelled,
            unlabelled,
            dataset,
            recipe,
            spec.settings,
            spec.seed,
            supervised_only=self.teacher is None,
            rank=rank(),
            ranks=world_size(),
        )
        span_ranks(self.method, self.batches.images, device)
        self.forward = data_parallel(self.method)
        self.optimiser = optimiser_for(student, recipe, spec.settings.decoder_lr_multiplier)
        self.val_ids = validation_ids(split)
        self.steps = recipe.epochs * len(self.batches)
        self.epoch = self.index = self.images = 0
        self.sums: dict[str, Tensor] = {}  # of the present epoch's losses
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] | None = None
        self.bad_step = torch.tensor(-1, device=device)  # the first with a non-finite loss
        self.bad_loss = torch.tensor(0.0, device=device)
        self.started, self.seconds, self.training_seconds = time.perf_counter(), 0.0, 0.0
        self.before = (0, 0.0)  # images and seconds of training before the present epoch

    def finished(self) -> bool:
        """Whether all steps and validations are done."""
        return self.epoch == self.spec.recipe.epochs and not self.validation_due()

    def run_epoch(self, after_step: Callable[[], None] = lambda: None) -> None:
        """What is left of a pass over the batches; appends a row of means to the history.

        after_step: called between steps. If it raises, `state` is that of an interrupted epoch.
        """
        self.student.train()
        started = time.perf_counter()
        for batch in self._shown(self.batches.epoch(self.epoch, start=self.index)):
            step = self.epoch * len(self.batches) + self.index
            self._set_rates(step)
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
        self.training_seconds += time.perf_counter() - started
        self.epoch, self.index = self.epoch + 1, 0
        row: dict[str, float] = {"epoch": self.epoch, "step": self.epoch * len(self.batches)}
        row["lr"] = float(self.optimiser.param_groups[0]["lr"])
        row |= {name: float(value) / len(self.batches) for name, value in self.sums.items()}
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
            warmup_epochs=self.spec.settings.warmup_epochs,
            generator=self.generator,
        )
        half = recipe.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            parts: dict[str, Tensor] = self.forward(self._to_device(batch), progress)
        loss = parts["loss"]
        bad = ~torch.isfinite(loss.detach()) & (self.bad_step < 0)
        self.bad_step = torch.where(bad, step, self.bad_step)
        self.bad_loss = torch.where(bad, loss.detach(), self.bad_loss)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.method.after_step(progress)
        return parts

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Images become normalised floats only here: bytes are four times cheaper to move."""
        dataset = self.spec.dataset
        moved = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        for name in moved:
            if name.startswith("image"):
                moved[name] = normalise(moved[name], dataset.mean, dataset.std).contiguous(memory_format=self.layout)
        return moved

    def _set_rates(self, step: int) -> None:
        factor = poly(step, self.steps, self.spec.recipe.poly_power)
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * factor

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
        """Evaluate the teacher (the student where there is none), note it in the history and keep the best weights.

        between: called after every batch of images; if it raises, nothing has changed.
        """
        network = self.student if self.teacher is None else self.teacher
        workers, pad = self.spec.recipe.workers, pad_label(self.spec)
        place = self.prepared, self.val_ids, self.spec.dataset, self.device
        miou = mean_iou(evaluate(network, *place, workers, pad, between))
        self.history[-1]["val_miou"] = miou
        if self.best is None or miou > self.best["miou"]:
            self.best = {"miou": miou, "epoch": self.epoch, **self.weights()}
        row = ", ".join(f"{name} {value:.4g}" for name, value in self.history[-1].items() if name != "epoch")
        if rank() == 0:
            print(f"{self.spec.id} epoch {self.epoch}/{self.spec.recipe.epochs}: {row}", flush=True)

    def weights(self) -> checkpoints.Weights:
        """Copies of the present weights on the CPU."""
        return {"student": checkpoints.cpu_copy(self.student), "teacher": checkpoints.cpu_copy(self.teacher)}

    def elapsed(self) -> float:
        """Seconds this run has taken, those before an interruption up to the last saved state included."""
        return self.seconds + time.perf_counter() - self.started

    def state(self) -> dict[str, Any]:
        """All that decides how the training goes on: the method's state holds both networks and the memory bank.

        It is the same on every rank, random state included: all draw the numbers of the global batch.
        """
        return {
            "epoch": self.epoch,
            "index": self.index,
            "sums": self.sums,
            "method": self.method.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "random": random_state(self.generator),
            "history": self.history,
            "best": self.best,
            "counters": [self.images, self.elapsed(), self.training_seconds, *self.before],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.epoch, self.index = state["epoch"], state["index"]
        self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self.history, self.best = state["history"], state["best"]
        self.images, self.seconds, self.training_seconds, *before = state["counters"]
        self.before = (before[0], before[1])
        self.method.load_state_dict(state["method"])
        self.optimiser.load_state_dict(state["optimiser"])
        restore_random_state(state["random"], self.generator)


def write_run(out: Path, trainer: Trainer, start: dict[str, Any]) -> None:
    """Write the run directory. run.json is its token, written last: it holds the others' hashes.

    An older evaluation is removed before everything else, so that none is ever beside weights that are not its own.

    start: what `u2pl.engine.provenance.record` found when the training began.
    """
    assert trainer.best is not None
    run = Run(out)
    for path in (run.evaluation, run.record):
        path.unlink(missing_ok=True)
    spec, best = trainer.spec, trainer.best
    meta = {"run": spec.id, "epochs": trainer.epoch, "best_epoch": best["epoch"], "best_miou": best["miou"]}
    kept = {"student": best["student"], "teacher": best["teacher"]}
    checkpoints.save(run.weights, {"last": trainer.weights(), "best": kept, "meta": meta})
    write_history(run.history, trainer.history)
    write_live(run.live, trainer.history)
    provenance = start | {
        "world_size": world_size(),
        "steps": trainer.steps,
        "wall_time_s": trainer.elapsed(),
        "images_per_s": trainer.images / trainer.training_seconds,
        "peak_memory_mb": peak_memory_mb(trainer.device),
    }
    files = {path.name: sha256(path) for path in (run.weights, run.history)}
    parts = {"id": spec.id, "spec": spec.model_dump(mode="json"), "files": files, "provenance": provenance}
    write(run.record, validate(RunRecord, parts | meta, run.record))


def write_live(folder: Path, history: list[dict[str, float]]) -> None:
    """The history as dvclive metrics and plots, one step an epoch; written whole, for resumed runs too.

    Raises UserError if they cannot be written.
    """
    try:
        _write_live(folder, history)
    except OSError as error:
        raise UserError(error.filename or folder, error.strerror, "a file that can be written") from error


def _write_live(folder: Path, history: list[dict[str, float]]) -> None:
    with Live(str(folder), save_dvc_exp=False, report=None, dvcyaml=None) as live:
        for row in history:
            for name, value in row.items():
                if name != "epoch":
                    live.log_metric(name, value)
            live.next_step()
