"""A toy training by torchrun's ranks: FOLDER RANKS [FAULT STEP RANK].

FOLDER holds arguments.json, as test_resume.py writes it. The fault happens to one rank at one step.
"""

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.elastic.multiprocessing import PContext

from u2pl.errors import UserError
from u2pl.experiments.suite import RunSpec
from u2pl.ranks import launch as launching
from u2pl.ranks.collectives import rank
from u2pl.ranks.launch import launch, run_rank
from u2pl.ranks.layers import is_rank


def arguments(folder: Path) -> dict[str, Any]:
    given = json.loads((folder / "arguments.json").read_text())
    paths = {name: Path(given[name]) for name in ("prepared", "split", "out", "state")}
    return {"spec": RunSpec.model_validate(given["spec"]), "weights": None, "device": "cpu", **paths}


def install(fault: str, step: int, victim: int) -> None:
    from u2pl.engine.train import Trainer

    original, validate = Trainer._step, Trainer.validate

    def faulty(self: Any, batch: dict[str, torch.Tensor], present: int) -> dict[str, torch.Tensor]:
        if present == step and fault == "SIGSTOP":
            _set_pg_timeout(timedelta(seconds=5))
        if (present, rank()) == (step, victim):
            match fault:
                case "user-error":
                    raise UserError("image 7", "truncated", "a whole file")
                case "defect":
                    raise IndexError("one too far")
                case "launcher":  # as the scheduler signals the job's first process
                    os.kill(os.getppid(), signal.SIGUSR1)
                case "orphan":
                    os.kill(os.getppid(), signal.SIGKILL)
                case _:
                    os.kill(os.getpid(), getattr(signal, fault))
        return original(self, batch, present)

    def stopped(self: Any, between: Any) -> None:
        """Only this rank is told, once the others wait for its part of the confusion matrix."""
        if rank() == victim:
            os.kill(os.getpid(), signal.SIGTERM)
        validate(self, between)

    Trainer._step = faulty  # type: ignore[method-assign]
    if fault == "validation":
        Trainer.validate = stopped  # type: ignore[method-assign]


if __name__ == "__main__":
    folder, ranks = Path(sys.argv[1]), int(sys.argv[2])
    if not is_rank():
        if sys.argv[3:4] == ["SIGSTOP"]:
            # The 30 seconds that torchrun waits before SIGKILL, which a test need not wait.
            PContext.close.__defaults__, launching.GRACE_S = (None, 4), 1
        launch(ranks, __file__, *sys.argv[1:])
        sys.exit()
    from u2pl.engine.train import train  # not for the launcher, which is to start fast

    if sys.argv[3:]:
        install(sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    with (folder / "pids").open("a") as stream:
        stream.write(f"{os.getpid()}\n")
    run_rank(train, **arguments(folder))
