"""A training that was killed or stopped at any step ends with the same bits as one that was never interrupted."""

import csv
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from u2pl.data.batches import outlive_signals
from u2pl.engine import checkpoints
from u2pl.engine.checkpoints import StateFile
from u2pl.engine.train import Trainer, train
from u2pl.errors import UserError
from u2pl.experiments.suite import RunSpec
from u2pl.ranks.collectives import rank
from u2pl.ranks.stopping import RESUMABLE, Stopped

pytestmark = pytest.mark.slow

Spec = Callable[..., RunSpec]
Start = Callable[..., list[int | None]]
KILLED = -signal.SIGKILL


def outcome(out: Path) -> dict[str, Any]:
    """All that a run says, but how long it took."""
    with (out / "history.csv").open(newline="") as stream:
        rows = [
            {name: value for name, value in row.items() if name != "images_per_s"} for row in csv.DictReader(stream)
        ]
    record = json.loads((out / "run.json").read_text())
    kept = {name: record[name] for name in ("best_epoch", "best_miou", "epochs")}
    evaluation = json.loads((out / "evaluation.json").read_text())
    return {"weights": (out / "weights.pt").read_bytes(), "history": rows, "evaluation": evaluation, **kept}


def at_step(step: int, victim: int, what: Callable[[], None]) -> None:
    """Let `what` happen to the rank before the step; for use in a process of its own."""
    original = Trainer._step

    def faulty(self: Trainer, batch: dict[str, torch.Tensor], present: int) -> dict[str, torch.Tensor]:
        if (present, rank()) == (step, victim):
            what()
        return original(self, batch, present)

    Trainer._step = faulty  # type: ignore[method-assign]


def kill_self(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
def start(fork: Any, prepared: Path, split: Path, tmp_path: Path) -> Start:
    """Train in forked ranks after `prepare` has been called there, into "run" and "state"; gives the exit codes."""

    def run(spec: RunSpec, world: int = 1, prepare: Callable[[], None] = lambda: None) -> list[int | None]:
        def work() -> None:
            prepare()
            train(spec, prepared=prepared, split=split, weights=None, out=tmp_path / "run", state=tmp_path / "state")

        return fork(world, work)

    return run


@pytest.fixture(scope="module")
def whole(
    fork: Any, prepared: Path, split: Path, make_spec: Spec, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, Any]]:
    """What a training of a method that nothing happened to says."""

    @functools.cache
    def run(method: str, world: int = 1) -> dict[str, Any]:
        out = tmp_path_factory.mktemp("whole")

        def work() -> None:
            train(make_spec(method), prepared=prepared, split=split, weights=None, out=out, state=out / "state")

        assert fork(world, work) == [0] * world
        return outcome(out)

    return run


def save_every_other_step() -> None:
    """So that what is lost is more than nothing."""
    calls = iter(range(10**6))
    StateFile.due = lambda self: next(calls) % 2 == 1  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("method", "world", "steps"),
    [
        ("suponly", 1, (4, 8)),
        ("u2pl", 1, (1, 2, 3, 4, 6, 8)),
        ("u2pl", 2, (1, 4, 8)),
        ("gct", 1, (1, 4, 8)),  # two optimisers, one of them Adam
        ("gct", 2, (4,)),
        ("ael", 2, (2, 5, 6)),  # a step sees images that the one before has chosen
        ("pseudoseg", 2, (3, 6)),
        ("pc2seg", 1, (5,)),
    ],
)
def test_killed_at_several_steps(
    method: str, world: int, steps: tuple[int, ...], start: Start, whole: Any, make_spec: Spec, tmp_path: Path
) -> None:
    """Nine steps in three epochs, the first of them warm-up, 18 where all images are read as unlabelled.

    Killed before any state, mid-epoch and at epochs' ends.
    """
    spec = make_spec(method)
    for step in steps:
        victim = step % world

        def prepare(step: int = step, victim: int = victim) -> None:
            save_every_other_step()
            at_step(step, victim, kill_self)

        codes = start(spec, world, prepare)
        assert codes[victim] == KILLED and 0 not in codes
        assert not (tmp_path / "run").exists()
    assert start(spec, world) == [0] * world
    assert outcome(tmp_path / "run") == whole(method, world)
    assert not (tmp_path / "state").exists()
    assert json.loads((tmp_path / "run/run.json").read_text())["provenance"]["world_size"] == world


@pytest.mark.parametrize(("number", "world"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 2), (signal.SIGHUP, 1)])
def test_told_to_stop(number: int, world: int, start: Start, whole: Any, make_spec: Spec, tmp_path: Path) -> None:
    """One rank gets the signal; all end after the same step, with the exit code that asks for another start."""
    spec = make_spec("u2pl")

    def prepare() -> None:
        signal.signal(number, signal.SIG_DFL)  # SIGHUP is ignored where these tests run under nohup
        at_step(4, world - 1, lambda: kill_self(number))

    assert start(spec, world, prepare) == [RESUMABLE] * world
    state = checkpoints.load(tmp_path / "state/state.pt")
    assert (state["epoch"], state["index"]) == (1, 2)
    assert start(spec, world) == [0] * world
    assert outcome(tmp_path / "run") == whole("u2pl", world)


def test_a_lost_terminal_does_not_stop_what_nohup_started(start: Start, make_spec: Spec, tmp_path: Path) -> None:
    def prepare() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        at_step(4, 0, lambda: kill_self(signal.SIGHUP))

    assert start(make_spec("suponly"), prepare=prepare) == [0]
    assert len(outcome(tmp_path / "run")["history"]) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_workers_outlive_the_signals_that_end_a_training(number: int, fork: Any) -> None:
    def work() -> None:
        outlive_signals(0)
        kill_self(number)

    assert fork(1, work) == [0]


def test_told_to_stop_amid_a_validation(start: Start, whole: Any, make_spec: Spec, tmp_path: Path) -> None:
    """The state is that before the validation, which is done again."""
    spec = make_spec("u2pl")

    def prepare() -> None:
        original = Trainer.validate

        def signalled(self: Trainer, between: Callable[[], None]) -> None:
            if self.epoch == 2:
                kill_self(signal.SIGTERM)
            original(self, between)

        Trainer.validate = signalled  # type: ignore[method-assign]

    assert start(spec, prepare=prepare) == [RESUMABLE]
    state = checkpoints.load(tmp_path / "state/state.pt")
    assert (state["epoch"], state["index"]) == (2, 0) and "val_miou" not in state["history"][-1]
    assert start(spec) == [0]
    assert outcome(tmp_path / "run") == whole("u2pl")


def test_killed_while_writing_a_state(start: Start, whole: Any, make_spec: Spec, tmp_path: Path) -> None:
    """The state before stays, and what was half-written goes."""
    spec = make_spec("suponly", save_every_minutes=0)

    def prepare() -> None:
        original, calls = torch.save, iter(range(100))

        def torn(value: Any, stream: Any) -> None:
            if next(calls) == 4:
                stream.write(b"half of a")
                stream.flush()
                kill_self()
            original(value, stream)

        torch.save = torn

    assert start(spec, prepare=prepare) == [KILLED]
    assert len(list((tmp_path / "state").iterdir())) == 2
    state = checkpoints.load(tmp_path / "state/state.pt")
    assert (state["epoch"], state["index"]) == (1, 1)
    assert start(spec) == [0]
    assert outcome(tmp_path / "run") == whole("suponly")
    assert not (tmp_path / "state").exists()


def test_a_retraining_killed_at_any_write_leaves_no_evaluation_of_other_weights(
    start: Start, make_spec: Spec, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert start(make_spec("suponly", epochs=1)) == [0]
    other = make_spec("suponly", epochs=1, lr=0.01)

    def dying(number: int) -> None:
        """Killed before the removal or the renaming of that number in the run's folder."""
        calls = iter(range(100))

        def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
            def write(self: Path, *arguments: Any, **more: Any) -> Any:
                if self.parent == out and self.exists() and next(calls) == number:
                    kill_self()
                return original(self, *arguments, **more)

            return write

        Path.unlink, Path.replace = wrapped(Path.unlink), wrapped(Path.replace)  # type: ignore[method-assign]

    names, seen = ("weights.pt", "run.json", "evaluation.json"), []
    for number in range(20):
        codes = start(other, prepare=lambda number=number: dying(number))
        files = [name for name in names if (out / name).exists()]
        found = hashlib.sha256((out / "weights.pt").read_bytes()).hexdigest()
        if "run.json" in files:
            assert json.loads((out / "run.json").read_text())["files"]["weights.pt"] == found
        if "evaluation.json" in files:
            assert json.loads((out / "evaluation.json").read_text())["weights_sha256"] == found
        seen.append(len(files))
        if codes == [0]:
            break
        assert codes == [KILLED] and files == list(names[: len(files)])
        for name in ("run", "state"):  # each time from the old run and the state of the new one
            if number == 0:
                shutil.copytree(tmp_path / name, tmp_path / "before" / name)
            shutil.rmtree(tmp_path / name)
            shutil.copytree(tmp_path / "before" / name, tmp_path / name)
    assert codes == [0] and seen == [3, 2, 2, 1, 1, 1, 2, 2, 3], "images.npz is removed and written, too"


def test_the_released_readings_bank_starts_empty(start: Start, make_spec: Spec, tmp_path: Path) -> None:
    spec = make_spec("u2pl", settings={"bank_in_checkpoint": False, "warmup_epochs": 0})
    start(spec, prepare=lambda: at_step(4, 0, lambda: kill_self(signal.SIGTERM)))
    state = checkpoints.load(tmp_path / "state/state.pt")
    assert not any(name.startswith("bank") for name in state["method"])
    assert start(spec) == [0]


@pytest.fixture
def interrupted(start: Start, make_spec: Spec, prepared: Path, split: Path, tmp_path: Path) -> Callable[..., None]:
    """Goes on, in this process, with a training that was stopped."""
    spec = make_spec("suponly")
    start(spec, prepare=lambda: at_step(4, 0, lambda: kill_self(signal.SIGTERM)))

    def go_on(spec: RunSpec = spec) -> None:
        state, out = tmp_path / "state", tmp_path / "run"
        train(spec, prepared=prepared, split=split, weights=None, out=out, state=state)

    return go_on


@pytest.mark.parametrize(("name", "value"), [("code", "abc"), ("torch", "2.0"), ("device", "cuda"), ("ranks", "2")])
def test_a_state_made_by_another_code_or_world_is_refused(
    name: str, value: str, interrupted: Callable[..., None], tmp_path: Path
) -> None:
    path = tmp_path / "state/state.pt"
    state = torch.load(path, weights_only=True)
    here = re.escape(state["made_by"][name])
    checkpoints.save(path, state | {"made_by": state["made_by"] | {name: value}})
    before = path.read_bytes()
    with pytest.raises(
        UserError, match=f"state.pt: found a state by {name} {value}, expected {name} .*{here}"
    ) as raised:
        interrupted()
    assert "--restart" in str(raised.value) and "\n" not in str(raised.value)
    assert path.read_bytes() == before and not (tmp_path / "run").exists()


def test_what_the_machine_is_asked_for_may_change(
    interrupted: Callable[..., None], make_spec: Spec, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(make_spec("suponly", workers=1, save_every_minutes=3, threads=1, mem_mb=1))
    assert "going on after 1 epochs and 2 steps" in capsys.readouterr().out


def test_other_settings_start_over_and_say_so(
    interrupted: Callable[..., None], make_spec: Spec, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    interrupted(make_spec("suponly", lr=0.01))
    assert "of other settings or data: starting over" in capsys.readouterr().out
    assert len(outcome(tmp_path / "run")["history"]) == 3


def same(one: Any, two: Any) -> bool:
    """Equality of nested containers, of tensors to the bit."""
    if type(one) is not type(two):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and one.shape == two.shape and one.numpy().tobytes() == two.numpy().tobytes()
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return repr(one) == repr(two)


def flipped(content: bytes, bit: int) -> bytes:
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


def test_every_flipped_bit_of_a_state_is_noticed_or_has_no_effect(
    interrupted: Callable[..., None], tmp_path: Path
) -> None:
    path = tmp_path / "state/state.pt"
    before, whole = path.read_bytes(), checkpoints.load(path)
    kept = StateFile(path.parent, whole["key"], whole["made_by"], 10)
    assert same(kept.load(), whole)
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path) as archive:
        pickled = archive.getinfo(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    # Half of them in the pickle, where a bit may be a name, a number, a shape or a reference to another tensor.
    start, length = pickled.header_offset, pickled.file_size
    places = [rng.integers(8 * len(before), size=20), 8 * start + rng.integers(8 * length, size=60)]
    seen = set()
    for bit in np.concatenate(places).tolist():
        path.write_bytes(flipped(before, bit))
        try:
            found = kept.load()
        except UserError as error:
            assert "--restart" in str(error), "a damaged record of what made the state"
            continue
        seen.add(found is None)
        assert found is None or same(found, whole), bit
    assert seen == {True, False}


def test_a_damaged_tensor_of_a_state_starts_over_to_the_same_bits(
    interrupted: Callable[..., None], whole: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "state/state.pt"
    weight = checkpoints.load(path)["method"]["student.encoder.conv1.weight"].numpy().tobytes()
    content = path.read_bytes()
    path.write_bytes(flipped(content, 8 * content.index(weight) + 3))
    interrupted()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "starting over" in line]
    assert re.fullmatch(r".*state\.pt: found content of sha256 \w{64}, expected \w{64}: starting over", line)
    assert outcome(tmp_path / "run") == whole("suponly")


def test_a_state_of_the_right_key_without_its_fields_or_with_others_is_not_resumed(
    interrupted: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "state/state.pt"
    state = checkpoints.load(path)
    kept = StateFile(path.parent, state["key"], state["made_by"], 10)
    for name in state.keys() - {"key"}:
        others: list[dict[str, Any]] = [{name: value} for value in (None, "x", [state[name]])]
        for forged in [{key: part for key, part in state.items() if key != name}, *(state | other for other in others)]:
            checkpoints.save(path, forged)
            assert kept.load() is None, name
            assert capsys.readouterr().out.count(": starting over\n") == 1
    checkpoints.save(path, {"key": state["key"]})
    interrupted()
    assert len(outcome(tmp_path / "run")["history"]) == 3


def test_the_code_version_is_of_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed file of any part that makes the numbers is another version; one of the reports is not."""
    package = tmp_path / "u2pl"
    shutil.copytree(Path(checkpoints.__file__).parents[1], package)
    monkeypatch.setattr(checkpoints, "__file__", str(package / "engine/checkpoints.py"))
    versions = [checkpoints.made_by(torch.device("cpu"))["code"]]
    for part in ("components", "data", "engine", "methods", "models"):
        with next((package / part).glob("[a-z]*.py")).open("a") as source:
            source.write("# changed\n")
        versions.append(checkpoints.made_by(torch.device("cpu"))["code"])
    assert len(set(versions)) == 6
    (package / "report/page.py").write_text("")
    assert checkpoints.made_by(torch.device("cpu"))["code"] == versions[-1]


def test_signal_handlers_come_back(
    prepared: Path, split: Path, make_spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    monkeypatch.setattr(Trainer, "check_finite", lambda self: kill_self(signal.SIGUSR1))
    folders: dict[str, Any] = {"out": tmp_path / "out", "state": tmp_path / "state"}
    with pytest.raises(Stopped) as raised:
        train(make_spec("suponly"), prepared=prepared, split=split, weights=None, **folders)
    assert raised.value.code == RESUMABLE == 75
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


# --- as torchrun's ranks


@pytest.fixture
def job(
    prepared: Path, split: Path, make_spec: Spec, tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Two ranks of a toy training, started as `u2pl train` does; none may be left."""
    paths = {"prepared": prepared, "split": split, "out": tmp_path / "run", "state": tmp_path / "state"}
    given = {name: str(path) for name, path in paths.items()} | {"spec": make_spec("u2pl").model_dump(mode="json")}
    (tmp_path / "arguments.json").write_text(json.dumps(given))

    def start(*fault: object) -> subprocess.CompletedProcess[str]:
        pids = tmp_path / "pids"
        pids.unlink(missing_ok=True)
        command = [sys.executable, str(Path(__file__).parent / "ranks.py"), str(tmp_path), "2", *map(str, fault)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        left = [pid for pid in pids.read_text().split() if Path(f"/proc/{pid}").exists()]
        if "orphan" in fault:
            assert done.returncode == KILLED
            deadline = time.monotonic() + 200
            while left and time.monotonic() < deadline:
                time.sleep(0.1)
                left = [pid for pid in left if Path(f"/proc/{pid}").exists()]
        assert not left
        return done

    return start


def test_a_job_stopped_killed_and_started_again(job: Any, whole: Any, tmp_path: Path) -> None:
    done = job("launcher", 4, 0)
    assert done.returncode == RESUMABLE and "u2pl:" not in done.stderr and "Traceback" not in done.stderr
    done = job("SIGKILL", 7, 1)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("u2pl: rank 1 of 2: Signal 9 (SIGKILL) received by PID")
    done = job()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 3/3") == 1  # one rank speaks
    assert outcome(tmp_path / "run") == whole("u2pl", 2)


def test_a_rank_stopped_amid_a_validation_loses_nothing(job: Any, whole: Any, tmp_path: Path) -> None:
    assert job("validation", -1, 1).returncode != 0
    state = checkpoints.load(tmp_path / "state/state.pt")
    assert state["epoch"] == 1 and len(state["history"]) == 1
    done = job()
    assert done.returncode == 0 and "going on after 1 epochs" in done.stdout, done.stderr
    assert outcome(tmp_path / "run") == whole("u2pl", 2)


def test_ranks_whose_torchrun_is_gone_write_a_state_and_end(job: Any, tmp_path: Path) -> None:
    job("orphan", 4, 0)
    state = checkpoints.load(tmp_path / "state/state.pt")
    assert state["epoch"] == 1 and not (tmp_path / "run").exists()


def test_what_a_rank_meets_is_told_in_one_line(job: Any) -> None:
    done = job("user-error", 2, 1)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "Warning" not in line]
    assert lines == ["u2pl: image 7: found truncated, expected a whole file"]


def test_a_defect_of_a_rank_is_told_once(job: Any) -> None:
    done = job("defect", 2, 1)
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.splitlines()[-1] == "u2pl: rank 1 of 2: IndexError: one too far"


def test_a_rank_that_hangs_ends_the_job(job: Any) -> None:
    done = job("SIGSTOP", 2, 1)
    assert done.returncode == 1
    assert "u2pl: rank 0 of 2:" in done.stderr and "5000ms" in done.stderr.splitlines()[-1]
