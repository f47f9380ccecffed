"""Training of one run, from its spec to the run directory."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from u2pl.engine import checkpoints
from u2pl.engine.evaluate import evaluate_run
from u2pl.engine.origin import record
from u2pl.engine.run_folder import write_run
from u2pl.engine.run_lock import lock_path, locked_run
from u2pl.engine.seeding import choose_device, deterministic
from u2pl.engine.trainer import Trainer
from u2pl.ranks.collectives import all_reduce_max, rank, world_size
from u2pl.ranks.layers import process_group, wait_for_files
from u2pl.ranks.stopping import Stopped, StopRequest

if TYPE_CHECKING:
    from u2pl.experiments.suite import RunSpec


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
    with StopRequest() as stop, process_group(choose_device(device, recipe.gpus)) as target, ExitStack() as stack:
        check: Callable[[], None] = lambda: None  # noqa: E731
        if rank() == 0:
            check = stack.enter_context(locked_run(lock_path(state), between=stop.check)).check
        wait_for_files()  # the state may be read by no rank before the first one has the lock
        with deterministic(max(1, recipe.threads // world_size()), tf32=recipe.tf32):
            trainer = Trainer(spec, prepared, split, weights, target)
            # Now: files may change during a long training.
            start = record(spec, split, prepared, weights, target) if rank() == 0 else {}
            key = checkpoints.state_key(spec, split, prepared, weights)
            kept = checkpoints.StateFile(state, key, checkpoints.made_by(target), recipe.save_every_minutes)
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


def run_to_the_end(trainer: Trainer, kept: checkpoints.StateFile, stop: StopRequest, check: Callable[[], None]) -> None:
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
        agreed = all_reduce_max(wish)  # ranks hear of a signal at different steps
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
