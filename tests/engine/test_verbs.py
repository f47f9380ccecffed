"""`u2pl train` and `u2pl evaluate` as a shell calls them: what they check first, and what they refuse in one line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from u2pl.cli import data as cli_data
from u2pl.cli import main as cli
from u2pl.errors import UserError
from u2pl.experiments import load_suite
from u2pl.models import build_network

pytestmark = pytest.mark.slow

RUN = "pascal_classic-4-suponly-seed0"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, small_checkout: Callable[..., Path]) -> Iterator[Path]:
    """A checkout with prepared data, splits and encoder weights, which is the working directory."""
    folder = small_checkout(tmp_path_factory.mktemp("checkout"))
    (folder / "weights").mkdir()
    path = folder / "params/scales/demo.yaml"
    scale = yaml.safe_load(path.read_text())
    scale["recipes"]["pascal"] |= {"epochs": 40, "validate_every": 40, "save_every_minutes": 0}
    scale["recipes"]["pascal"]["network"]["weights"] = {"7x7": "weights/tiny.pth", "deep": None}
    path.write_text(yaml.safe_dump(scale))
    (folder / "params/weights.yaml").write_text("tiny.pth: {file: tiny.pth, url: 'file:tiny.pth'}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli_data.synthesize("pascal")
        for archive in ("voc", "sbd"):
            cli_data.fetch("pascal", archive)
        cli_data.prepare("pascal")
        cli_data.split("pascal_classic", 4)
        network = load_suite("demo").runs[RUN].recipe.network
        torch.save(build_network(network, 3).encoder.state_dict(), "tiny.pth")
        cli_data.fetch("weights", "tiny.pth")
        yield folder


def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "u2pl", *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | variables, **pipes)


def line(process: subprocess.Popen[str]) -> str:
    """The one line of a process that refuses something."""
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and err.count("\n") == 1 and err.startswith("u2pl: "), err
    return err


@pytest.fixture(scope="module")
def alone(checkout: Path) -> bytes:
    """weights.pt of a training that nothing disturbed; its folder is left in place."""
    cli.train(RUN, scale="demo", device="cpu", restart=False)
    return (checkout / "results/demo/runs" / RUN / "weights.pt").read_bytes()


def test_of_two_trainings_at_once_the_second_names_the_first_which_ends_as_if_alone(
    checkout: Path, alone: bytes
) -> None:
    results, lock = checkout / "results/demo/runs" / RUN, checkout / "results/demo/state" / f"{RUN}.lock"
    state = checkout / "results/demo/state" / RUN / "state.pt"
    before = (results / "run.json").read_bytes()
    first = start("train", RUN)
    try:
        deadline = time.monotonic() + 60
        while not state.exists() and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        first.send_signal(signal.SIGSTOP)  # so that no machine is too fast for the others
        # RANK alone, which another launcher left, must not silence it.
        seconds = [start("train", RUN, "--restart", RANK="0"), start("evaluate", RUN)]
        for second in seconds:
            assert f"{lock.relative_to(checkout)}: found process {first.pid} on " in line(second)
        assert state.exists() and (results / "run.json").read_bytes() == before
        first.send_signal(signal.SIGCONT)
        _, err = first.communicate(timeout=120)
        assert first.returncode == 0, err
    finally:
        with suppress(ProcessLookupError):
            first.kill()
    assert (results / "weights.pt").read_bytes() == alone
    assert not lock.exists() and not state.parent.exists()


def test_every_rank_checks_the_prepared_data(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torchrun that was started by hand has nobody else who does."""

    def found(*_: object) -> None:
        raise UserError("images", "a damaged file", "the prepared one")

    def ended(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(cli, "restored", found)
    monkeypatch.setattr("os._exit", ended)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="2"):
        cli.train(RUN, scale="demo", device="cpu", restart=False)


def test_ranks_are_told_to_start_over(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state goes under the lock, which the first rank has, and not in the process that starts torchrun."""
    commands: list[tuple[object, ...]] = []
    monkeypatch.setattr("u2pl.ranks.launch.launch", lambda *command: commands.append(command))
    suite = load_suite("demo")
    recipe = suite.runs[RUN].recipe.model_copy(update={"gpus": 2})
    spec = suite.runs[RUN].model_copy(update={"recipe": recipe})
    monkeypatch.setattr(cli, "load_suite", lambda _: suite.model_copy(update={"runs": {RUN: spec}}))
    state = checkout / "results/demo/state" / RUN / "state.pt"
    state.parent.mkdir(parents=True, exist_ok=True)
    state.write_text("")
    for restart in (False, True):
        cli.train(RUN, scale="demo", device="cpu", restart=restart)
    assert [command[-1] for command in commands] == ["cpu", "--restart"] and state.exists()
    state.unlink()


@pytest.mark.parametrize("declared", [True, False])
def test_encoder_weights_that_changed_after_the_fetch_are_refused(
    declared: bool, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, manifest = checkout / "weights/tiny.pth", checkout / "weights/tiny.pth.json"
    before, recorded = path.read_bytes(), manifest.read_bytes()
    sha = json.loads(recorded)["sha256"]
    if declared:  # a manifest that was made of the changed file is no excuse
        archive = load_suite("demo").weights["tiny.pth"].model_copy(update={"sha256": sha[:8]})
        suite = load_suite("demo").model_copy(update={"weights": {"tiny.pth": archive}})
        monkeypatch.setattr(cli, "load_suite", lambda _: suite)
        manifest.unlink()
    try:
        path.write_bytes(before[:-9000] + bytes([before[-9000] ^ 1]) + before[-8999:])
        with pytest.raises(UserError, match=rf"tiny\.pth: found sha256 \w{{64}}, expected {sha[:8]}"):
            cli.train(RUN, scale="demo", device="cpu", restart=False)
    finally:
        path.write_bytes(before)
        manifest.write_bytes(recorded)


def test_evaluate_refuses_weights_that_are_not_those_of_run_json(checkout: Path, alone: bytes) -> None:
    path = checkout / "results/demo/runs" / RUN / "weights.pt"
    evaluation = path.with_name("evaluation.json").read_bytes()
    try:
        path.write_bytes(alone[:9000] + bytes([alone[9000] ^ 1]) + alone[9001:])
        with pytest.raises(UserError, match=r"weights\.pt: found sha256 \w{64}, expected \w{64} of .*run\.json"):
            cli.evaluate([RUN], scale="demo", device="cpu")
    finally:
        path.write_bytes(alone)
    assert path.with_name("evaluation.json").read_bytes() == evaluation
    cli.evaluate([RUN], scale="demo", device="cpu")
    assert path.with_name("evaluation.json").read_bytes() == evaluation


def test_evaluate_refuses_a_validation_list_that_was_edited(checkout: Path, alone: bytes) -> None:
    path = checkout / "data/demo/splits/pascal_classic/drawn/4/seed0/val.txt"
    before = path.read_text()
    try:
        path.write_text("".join(before.splitlines(keepends=True)[1:]))
        with pytest.raises(UserError, match=r"val\.txt: found a difference"):
            cli.evaluate([RUN], scale="demo", device="cpu")
    finally:
        path.write_text(before)
