"""A training that is told to stop finishes its step and leaves a state to resume from."""

import os
import signal
from types import FrameType

from u2pl.ranks.collectives import world_size

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: not done; the same command resumes


def heeded() -> list[signal.Signals]:
    """The SIGNALS that stop a training: without SIGHUP if `nohup` had it ignored when the process started."""
    return [number for number in SIGNALS if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN)]


class Stopped(SystemExit):
    """The training was told to stop; uncaught, the process ends with exit code RESUMABLE."""

    def __init__(self) -> None:
        super().__init__(RESUMABLE)


class StopRequest:
    """Inside `with`, SIGTERM, SIGUSR1 and SIGHUP only set a mark, to be looked at between steps.

    A rank is also to stop when torchrun is gone: nothing else would end it.
    """

    def __enter__(self) -> "StopRequest":
        self._marked = False
        self._parent = os.getppid()
        self._before = {number: signal.signal(number, self._mark) for number in heeded()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _mark(self, number: int, frame: FrameType | None) -> None:
        self._marked = True

    def pending(self) -> bool:
        """Whether this process has been told to stop."""
        return self._marked or (world_size() > 1 and os.getppid() != self._parent)

    def check(self) -> None:
        """Raise Stopped if it has."""
        if self.pending():
            raise Stopped
