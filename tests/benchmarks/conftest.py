"""Speed and memory as ratios to the plain way of doing the same, compared with the stored ratios.

`make bench` compares; `make bench-baseline`, the same with --renew, stores what it measures.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from u2pl.files import read_json, write_json

BASELINE = Path(__file__).parents[2] / "results" / "baselines" / "benchmarks.json"
MARGIN = 1.5  # times the stored ratio: both sides run in turns, but caches and neighbours differ between machines
FOUND = pytest.StashKey[dict[str, dict[str, float]]]()

Compare = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--renew", action="store_true", help="store the benchmarks' ratios instead of comparing them")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FOUND] = {}


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Store what was renewed beside the other entries; nothing if a benchmark failed."""
    found = session.config.stash[FOUND]
    if session.config.getoption("--renew", False) and found and exitstatus == pytest.ExitCode.OK:
        write_json(BASELINE, (read_json(BASELINE) if BASELINE.exists() else {}) | found)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads waiting for a busy core make timings of short operations meaningless."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ratio(new: Callable[[], Any], plain: Callable[[], Any], rounds: int) -> float:
    """Shortest time of `new` over that of `plain`: load only adds to a time, and taking turns shares it fairly."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for function, seconds in zip((new, plain), times, strict=True):
            begin = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - begin)
    return min(times[0]) / min(times[1])


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most bytes of CPU tensors that were alive at once during a call, above those alive before it.

    From the profiler's record of every allocation: the same on every machine, which the resident size is not.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    assert profile.profiler is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


@pytest.fixture
def judge(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Fail if a ratio is beyond `MARGIN` times the stored one or a hard limit; with --renew note it instead."""

    def check(found: dict[str, float], limit: float | None) -> None:
        name, value = request.node.name.removeprefix("test_"), found["ratio"]
        assert limit is None or value <= limit, f"{name}: ratio {value:.3f}, hard limit {limit}"
        if request.config.getoption("--renew"):
            request.config.stash[FOUND][name] = {key: round(number, 4) for key, number in found.items()}
            return
        stored = read_json(BASELINE) if BASELINE.exists() else {}
        assert name in stored, f"{name}: no ratio in {BASELINE}; `make bench-baseline` stores it"
        allowed = MARGIN * stored[name]["ratio"]
        assert value <= allowed, f"{name}: ratio {value:.3f}, stored {stored[name]['ratio']}, allowed {allowed:.3f}"

    return check


@pytest.fixture
def compare_time(benchmark: Any, judge: Callable[..., None]) -> Compare:
    def compare(new: Callable[[], Any], plain: Callable[[], Any], rounds: int = 7, limit: float | None = None) -> None:
        found = benchmark.pedantic(ratio, args=(new, plain, rounds), rounds=1)
        benchmark.extra_info["ratio"] = found
        judge({"ratio": found}, limit)

    return compare


@pytest.fixture
def compare_memory(benchmark: Any, judge: Callable[..., None]) -> Compare:
    def compare(new: Callable[[], Any], plain: Callable[[], Any]) -> None:
        probe = peak_bytes(lambda: torch.zeros(1 << 20).add(1).sum())
        assert (2 << 22) <= probe < (2 << 22) + 4096, "the profiler's record misses allocations"
        peaks = benchmark.pedantic(lambda: (peak_bytes(new), peak_bytes(plain)), rounds=1)
        found = {"ratio": peaks[0] / peaks[1], "peak_mb": peaks[0] / 2**20}
        benchmark.extra_info.update(found)
        judge(found, None)

    return compare
