"""What run.json says about the code: a commit, and whether the sources still are those of the commit."""

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from u2pl.engine.origin import git_state, record
from u2pl.experiments.suite import RunSpec

Spec = Callable[..., RunSpec]
NOWHERE = {"commit": None, "dirty": None, "diff_sha256": None}


def git(root: Path, *arguments: str) -> bytes:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("u2pl/__init__.py", "params/methods.yaml", "README.md", ".gitignore"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("*.log\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_a_clean_checkout_is_its_commit(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD").decode().strip()
    clean = {"commit": commit, "dirty": False, "diff_sha256": None}
    assert git_state(checkout) == clean
    # What no number is made by, or what git ignores, changes nothing.
    (checkout / "README.md").write_text("other")
    (checkout / "u2pl/x.log").write_text("other")
    assert git_state(checkout) == clean


@pytest.mark.parametrize("staged", [False, True])
def test_a_changed_source_is_dirty(checkout: Path, staged: bool) -> None:
    (checkout / "params/methods.yaml").write_text("eta: 2\n")
    if staged:
        git(checkout, "add", "params")
    state = git_state(checkout)
    assert state["dirty"] and state["diff_sha256"] == hashlib.sha256(git(checkout, "diff", "HEAD")).hexdigest()


def test_an_untracked_source_is_dirty_and_its_content_counts(checkout: Path) -> None:
    hashes = []
    for content in ("a", "b"):
        (checkout / "u2pl/new.py").write_text(content)
        state = git_state(checkout)
        assert state["dirty"]
        hashes.append(state["diff_sha256"])
    assert len(set(hashes)) == 2


def test_code_that_git_does_not_track_has_no_commit(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As in a virtual environment inside the checkout, whose commit would be another code's."""
    installed = checkout / "env/site-packages"
    (installed / "u2pl").mkdir(parents=True)
    assert git_state(installed) == NOWHERE
    assert git_state(tmp_path_factory.mktemp("elsewhere")) == NOWHERE


def test_inputs_are_recorded_by_content(prepared: Path, split: Path, make_spec: Spec, tmp_path: Path) -> None:
    weights = tmp_path / "encoder.pth"
    weights.write_bytes(b"weights")
    spec = make_spec("suponly")
    found = record(spec, split, prepared, weights, torch.device("cpu"))
    assert found["encoder_weights"] == {"file": str(weights), "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert found["data_sha256"] == hashlib.sha256((prepared / "manifest.json").read_bytes()).hexdigest()
    assert found["data"] == json.loads((prepared / "manifest.json").read_text())
    assert found["threads"] == torch.get_num_threads() and found["device"] == "cpu"
    assert found["libraries"]["torch"] == torch.__version__ and found["libraries"]["libjpeg"]
    assert record(spec, split, prepared, None, torch.device("cpu"))["encoder_weights"] is None
    # What the machine is asked for is no param, every other number is.
    other = {"threads": spec.params_sha256, "lr": make_spec("suponly", lr=0.5).params_sha256}
    assert make_spec("suponly", threads=2).params_sha256 == other["threads"] != other["lr"]
