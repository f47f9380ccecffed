"""Weights of finished runs, and the state an interrupted run continues from."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from u2pl.errors import UserError
from u2pl.files import atomic_path, sha256

if TYPE_CHECKING:
    from u2pl.experiments.schema import RunSpec

Weights = dict[str, dict[str, Tensor] | None]


def cpu_copy(module: nn.Module | None) -> dict[str, Tensor] | None:
    """A copy of the state dict that further training does not change; None stays None."""
    if module is None:
        return None
    return {key: value.detach().to("cpu", copy=True) for key, value in module.state_dict().items()}


def save(path: Path, value: dict[str, Any]) -> None:
    """torch.save, atomically; equal values give equal bytes."""
    # Given a path, torch.save writes the file's name, here a random one, into the file.
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        torch.save(value, stream)


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


def state_key(spec: "RunSpec", split: Path, prepared: Path, weights: Path | None, device: torch.device) -> str:
    """Hash of all that a continued training must share with the interrupted one to give the same weights."""
    parts: dict[str, Any] = {
        "spec": spec.science(),
        "split": manifest_hash(split),
        "data": manifest_hash(prepared),
        "weights": sha256(weights) if weights else None,
        "torch": torch.__version__,
        "device": device.type,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def manifest_hash(folder: Path) -> str:
    """SHA-256 of the folder's manifest. Raises UserError if there is none."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(path, "no file", "the manifest of a finished step")
    return sha256(path)


def load_state(path: Path, key: str) -> dict[str, Any] | None:
    """The state to continue from, or None where there is none or it belongs to another training; says which."""
    if not path.exists():
        return None
    try:
        state = load(path)
    except UserError as error:
        print(f"{error}: starting over", flush=True)
        return None
    if state.get("key") != key:
        print(f"{path}: written under other settings or data, starting over", flush=True)
        return None
    print(f"{path}: continuing after epoch {state['epoch'] + 1}", flush=True)
    return state
