"""The folder of a finished run: weights, history and record."""

from pathlib import Path
from typing import Any

from dvclive import Live

from u2pl.engine import checkpoints
from u2pl.engine.origin import peak_memory_mb
from u2pl.engine.trainer import Trainer
from u2pl.errors import UserError
from u2pl.experiments.read import validate
from u2pl.experiments.records import RunRecord, write, write_history
from u2pl.files import sha256
from u2pl.folders import Run
from u2pl.ranks.collectives import world_size


def write_run(out: Path, trainer: Trainer, start: dict[str, Any]) -> None:
    """Write the run directory. run.json is its token, written last: it holds the others' hashes.

    An older evaluation is removed before everything else, so that none is ever beside weights that are not its own.

    start: what `u2pl.engine.origin.record` found when the training began.
    """
    assert trainer.best is not None
    run = Run(out)
    for path in (run.evaluation, run.images, run.record):
        path.unlink(missing_ok=True)
    spec, best = trainer.spec, trainer.best
    meta = {"run": spec.id, "epochs": trainer.epoch, "best_epoch": best["epoch"], "best_miou": best["miou"]}
    checkpoints.save(run.weights, {"last": trainer.weights(), "best": best["weights"], "meta": meta})
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
