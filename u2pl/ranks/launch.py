"""`torchrun --standalone` around a training, with its report cut down to the reason of the failure."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, record

from u2pl.errors import UserError
from u2pl.ranks.stopping import RESUMABLE, SIGNALS, heeded

USER_ERROR = 2
SHUTDOWN_S = 40  # between the signal to stop and SIGKILL: for a step and for writing a state
# What a rank meets, in the words of gloo and NCCL, when the process at the other end has failed before it.
LOST_PEER = ("Connection reset by peer", "Connection closed by peer", "remote process exited")
GRACE_S = 15  # seconds within which ranks fail together; whom torchrun kills, it kills later


def launch(ranks: int, *command: str) -> None:
    """Run `python <command>` as `ranks` ranks on this machine; returns when all have succeeded.

    The first SIGTERM, SIGUSR1 or SIGHUP is passed on to them. Else exits as the rank that failed first did, with its
    reason as one line for what a user can cause, and with its traceback otherwise. No rank outlives this process for
    more than a step. The command ends in `run_rank`.
    """
    os.environ["PET_SIGNALS_TO_HANDLE"] = ",".join(["SIGINT", *(number.name for number in heeded())])
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(SHUTDOWN_S)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # `deterministic` sets the number that counts
    logging.disable(logging.CRITICAL)  # torchrun tells of each rank that it ends
    try:
        torchrun.run(torchrun.parse_args(["--standalone", f"--nproc-per-node={ranks}", *command]))
    except SignalException as error:
        sys.exit(RESUMABLE if error.sigval in SIGNALS else 128 + error.sigval)
    except ChildFailedError as error:
        _report(_cause(list(error.failures.values())), ranks)
    finally:
        logging.disable(logging.NOTSET)


def _cause(failures: list[ProcessFailure]) -> ProcessFailure:
    """The failure that the others follow from: ranks that lose a peer fail too, and torchrun kills those that wait."""
    first = min(failure.timestamp for failure in failures)

    def order(failure: ProcessFailure) -> tuple[bool, bool, bool, int]:
        soon = failure.timestamp - first < GRACE_S
        died = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM and soon
        lost_peer = any(words in str(failure.message) for words in LOST_PEER)
        return failure.exitcode != USER_ERROR, not died, lost_peer, failure.timestamp  # timestamp: whole seconds

    return min(failures, key=order)


def _report(failure: ProcessFailure, ranks: int) -> NoReturn:
    rank = failure.local_rank
    if failure.exitcode == RESUMABLE:
        sys.exit(RESUMABLE)
    if isinstance(failure.message, str):  # killed, or ended by something that is no exception
        reason = failure.message if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        print(f"u2pl: rank {rank} of {ranks}: {reason}", file=sys.stderr)
        sys.exit(1)
    reason = failure.message["message"]
    if failure.exitcode == USER_ERROR:
        print(f"u2pl: {reason.removeprefix('UserError: ')}", file=sys.stderr)
        sys.exit(USER_ERROR)
    print(failure.message["extraInfo"]["py_callstack"].rstrip(), file=sys.stderr)
    print(f"u2pl: rank {rank} of {ranks}: {reason.splitlines()[0]}", file=sys.stderr)
    sys.exit(1)


def run_rank(function: Callable[..., None], **arguments: Any) -> None:
    """Call `function` in a rank: what it raises is left for `launch` to report, or printed if no torchrun would."""
    try:
        record(function)(**arguments)
    except Exception as error:
        if "TORCHELASTIC_ERROR_FILE" not in os.environ:
            print(f"u2pl: {error}" if isinstance(error, UserError) else traceback.format_exc(), file=sys.stderr)
        sys.stdout.flush()
        # At once: the connections to the other ranks break now, and this rank has to be the first that failed.
        os._exit(USER_ERROR if isinstance(error, UserError) else 1)
