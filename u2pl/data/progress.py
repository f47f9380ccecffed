"""How far a long step has come: a bar where someone is watching, else a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

COUNT = (MofNCompleteColumn(),)
EVERY = 30.0  # seconds between two lines in a log


@contextmanager
def progress(
    title: str,
    total: int | None,
    *,
    start: int = 0,
    shown: Callable[[int], str] = str,
    columns: Sequence[ProgressColumn] = COUNT,
    every: float = EVERY,
) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how much more is done, of `total` (None: unknown), beginning at `start`.

    shown, columns: how an amount is written in a line, and in the bar; every: seconds between two lines. The last line
    comes at the end, and without an error only.
    """
    if sys.stdout.isatty():
        with Progress(
            TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn(), transient=True
        ) as bar:
            task = bar.add_task(title, total=total, completed=start)
            yield lambda count: bar.advance(task, count)
        return
    done, began = start, time.monotonic()
    reported = began

    def line() -> str:
        rate = (done - start) / max(time.monotonic() - began, 1e-3)
        return f"{title}: {shown(done)} of {'unknown' if total is None else shown(total)}, {shown(int(rate))}/s"

    def advance(count: int) -> None:
        nonlocal done, reported
        done += count
        if (now := time.monotonic()) - reported >= every:
            reported = now
            print(line(), flush=True)

    yield advance
    print(line(), flush=True)
