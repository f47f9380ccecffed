"""Weights of finished runs, and the state an interrupted run continues from."""

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from u2pl.components.collectives import rank, world_size
from u2pl.errors import UserError
from u2pl.files import atomic_path, sha256

if TYPE_CHECKING:
    from u2pl.experiments.schema import RunSpec

NUMERICS = ("components", "data", "engine", "methods", "models")  # the parts of the package that make the numbers
Weights = dict[str, dict[str, Tensor] | None]


def cpu_copy(module: nn.Module | None) -> dict[str, Tensor] | None:
    """A copy of the state dict that further training does not change; None stays None."""
    if module is None:
        return None
    return {key: value.detach().to("cpu", copy=True) for key, value in module.state_dict().items()}


def save(path: Path, value: dict[str, Any]) -> None:
    """torch.save, atomically; equal values give equal bytes. Raises UserError as `atomic_path` does."""
    # Given a path, torch.save writes the file's name, here a random one, into the file.
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        try:
            torch.save(value, stream)
        except RuntimeError as error:  # torch's writer hides what the stream has raised
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def load(path: Path) -> dict[str, Any]:
    """torch.load of tensors and plain values onto the CPU. Raises UserError for any other or damaged file."""
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(path, "no file", "a file written by `u2pl train`") from error
    except Exception as error:  # torch.load raises whatever its unpickler met
        found = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(path, found, "a file written by `u2pl train`") from error
    if not isinstance(value, dict):
        raise UserError(path, type(value).__name__, "a file written by `u2pl train`")
    return value


def load_network_weights(network: nn.Module, weights: dict[str, Any], selection: str, path: Path) -> None:
    """Put the evaluated weights of weights.pt into `network`: the teacher's, or the student's where there is none.

    selection: "last" or "best". Raises UserError naming `path` and the first tensor that does not fit.
    """
    entry = weights.get(selection)
    if not isinstance(entry, dict) or "student" not in entry:
        raise UserError(path, f"no {selection!r} weights", "a file written by `u2pl train`")
    state = entry.get("teacher") or entry["student"]
    own = network.state_dict()
    for key in [*own, *state]:
        found = f"shape {tuple(state[key].shape)}" if key in state else "no such tensor"
        expected = f"shape {tuple(own[key].shape)}" if key in own else "no such tensor"
        if found != expected:
            raise UserError(path, f"{found} for {key}", f"{expected}, for the run's network")
    network.load_state_dict(state)


def state_key(spec: "RunSpec", split: Path, prepared: Path, weights: Path | None) -> str:
    """Hash of what a training is of: settings, split, data and encoder weights."""
    parts: dict[str, Any] = {
        "spec": spec.science(),
        "split": manifest_hash(split),
        "data": manifest_hash(prepared),
        "weights": sha256(weights) if weights else None,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def maker(device: torch.device) -> dict[str, str]:
    """What a training is done by; a state goes on to the same bits under an equal one only."""
    folder = Path(__file__).parents[1]
    sources = [path for part in NUMERICS for path in sorted((folder / part).glob("*.py"))]
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    return {"code": code, "torch": str(torch.__version__), "device": device.type, "ranks": str(world_size())}


def manifest_hash(folder: Path) -> str:
    """SHA-256 of the folder's manifest. Raises UserError if there is none."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(path, "no file", "the manifest of a finished step")
    return sha256(path)


class StateFile:
    """The state of an interrupted training, `folder`/state.pt, which one process of all ranks writes.

    key: see `state_key`; made_by: see `maker`; minutes: between two writings.
    """

    def __init__(self, folder: Path, key: str, made_by: dict[str, str], minutes: float) -> None:
        self.folder, self.path = folder, folder / "state.pt"
        self.key, self.made_by = key, made_by
        self.seconds, self.written = 60 * minutes, time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The state to go on from; None, and a line that says why, if it is damaged or of other settings or data.

        Raises UserError if it is of this training but made by other code, another torch, device or number of ranks.
        """
        if not self.path.exists():
            return None
        try:
            state = load(self.path)
            refusal = None if state.get("key") == self.key else f"{self.path}: of other settings or data"
        except UserError as error:
            refusal = str(error)
        if refusal is not None:
            if rank() == 0:
                print(f"{refusal}: starting over", flush=True)
            return None
        there, here = state["made_by"], self.made_by
        if there != here:
            differing = [name for name in here if there.get(name) != here[name]]
            found, expected = (", ".join(f"{name} {by.get(name)}" for name in differing) for by in (there, here))
            raise UserError(self.path, f"a state by {found}", f"{expected}; `u2pl train --restart` starts over")
        if rank() == 0:
            print(f"{self.path}: going on after {state['epoch']} epochs and {state['index']} steps", flush=True)
        return state

    def due(self) -> bool:
        """Whether it is time to write again."""
        return time.monotonic() - self.written >= self.seconds

    def save(self, state: dict[str, Any]) -> None:
        """Write the state, which is the same on every rank."""
        if rank() == 0:
            self._remove_torn()
            save(self.path, {"key": self.key, "made_by": self.made_by} | state)
        self.written = time.monotonic()

    def _remove_torn(self) -> None:
        """What a process killed while it was writing left behind."""
        for torn in self.folder.glob(f".{self.path.name}.*"):
            torn.unlink(missing_ok=True)

    def remove(self) -> None:
        """Forget the state, and the folder with it."""
        if rank() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
