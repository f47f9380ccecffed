"""Weights of finished runs, and the state an interrupted run continues from."""

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from u2pl.errors import UserError
from u2pl.experiments.records import RunRecord, read
from u2pl.files import atomic_path, sha256
from u2pl.folders import MANIFEST, Run
from u2pl.models.weights import difference, read_dict
from u2pl.ranks.collectives import rank, world_size

if TYPE_CHECKING:
    from u2pl.experiments.suite import RunSpec

NUMERICS = (
    "components",
    "data",
    "engine",
    "methods",
    "models",
    "ranks",
)  # the parts of the package that make the numbers
Weights = dict[str, Tensor]


def cpu_copy(module: nn.Module) -> Weights:
    """A copy of the state dict that further training does not change."""
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
    """The content of a file that `save` wrote. Raises UserError if it is missing, damaged or another file."""
    return read_dict(path, "a file written by `u2pl train`")


def load_run(spec: "RunSpec", run_dir: Path) -> tuple[dict[str, Any], str]:
    """weights.pt of a finished run and its SHA-256.

    Raises UserError if a file is missing, or if run.json is of another run or has another hash for weights.pt.
    """
    path, record_path = Run(run_dir).weights, Run(run_dir).record
    if not path.is_file():
        raise UserError(path, "no file", "a file written by `u2pl train`")
    record = read(RunRecord, record_path)
    if record.id != spec.id:
        raise UserError(record_path, f"the run {record.id}", f"the run {spec.id}")
    if (found := sha256(path)) != record.files.weights:
        raise UserError(path, f"sha256 {found}", f"{record.files.weights} of {record_path}")
    return load(path), found


def load_network_weights(network: nn.Module, weights: dict[str, Any], selection: str, path: Path) -> None:
    """Put weights of weights.pt into `network`, which is of the evaluated kind.

    selection: "last" or "best". Raises UserError naming `path` and the first tensor that does not fit or is not finite.
    """
    if selection not in weights:
        raise UserError(path, f"no {selection!r} weights", "a file written by `u2pl train`")
    state = weights[selection]
    if not isinstance(state, dict):
        raise UserError(path, f"{type(state).__name__} as {selection!r} weights", "a state dict")
    own = network.state_dict()
    for key in [*own, *state]:
        if key not in own:
            differs: tuple[str, str] | None = ("a tensor", "no such tensor")
        elif key not in state:
            differs = ("no such tensor", f"shape {tuple(own[key].shape)}")
        else:
            differs = difference(state[key], own[key])
        if differs is not None:
            raise UserError(path, f"{differs[0]} for {key}", f"{differs[1]}, for the run's network")
    network.load_state_dict(state)


def digest(value: Any) -> str:
    """SHA-256 of nested dicts and lists of tensors and plain values: of all that torch.save keeps of them."""
    sums, storages = hashlib.sha256(), dict[int, int]()

    def add(part: Any) -> None:
        if isinstance(part, Tensor):
            # Tensors that share memory do so in the file too; an empty one has none.
            place = storages.setdefault(part.untyped_storage().data_ptr(), len(storages)) if part.numel() else -1
            kept = part.dtype, tuple(part.shape), part.stride(), part.requires_grad, place
            sums.update(f"{kept}\n".encode())
            sums.update(part.detach().cpu().flatten().view(torch.uint8).numpy().data)
            return
        plain = not isinstance(part, (dict, list, tuple))
        sums.update(f"{type(part).__name__} {repr(part) if plain else len(part)}\n".encode())
        if not plain:
            for each in (item for pair in part.items() for item in pair) if isinstance(part, dict) else part:
                add(each)

    add(value)
    return sums.hexdigest()


def state_key(spec: "RunSpec", split: Path, prepared: Path, weights: Path | None) -> str:
    """Hash of what a training is of: settings, split, data and encoder weights."""
    parts: dict[str, Any] = {
        "spec": spec.science(),
        "split": manifest_hash(split),
        "data": manifest_hash(prepared),
        "weights": sha256(weights) if weights else None,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def made_by(device: torch.device) -> dict[str, str]:
    """Code, torch, device and rank count. A state resumes bit-identically only if all four are equal."""
    folder = Path(__file__).parents[1]
    sources = [path for part in NUMERICS for path in sorted((folder / part).rglob("*.py"))]
    sources += [folder / "experiments/schedule.py", *sorted((folder / "experiments/settings").glob("*.py"))]
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    return {"code": code, "torch": str(torch.__version__), "device": device.type, "ranks": str(world_size())}


def manifest_hash(folder: Path) -> str:
    """SHA-256 of the folder's manifest. Raises UserError if there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(path, "no file", "the manifest of a finished step")
    return sha256(path)


class StateFile:
    """The state of an interrupted training, `folder`/state.pt, which one process of all ranks writes.

    key: see `state_key`; made_by: see the function of that name; minutes: between two writings.
    """

    def __init__(self, folder: Path, key: str, made_by: dict[str, str], minutes: float) -> None:
        self.folder, self.path = folder, folder / "state.pt"
        self.key, self.made_by = key, made_by
        self.seconds, self.written = 60 * minutes, time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The state to resume from; None, and a line that says why, if it is damaged or of other settings or data.

        Raises UserError if it is of this training but made by other code, another torch, device or number of ranks.
        """
        if not self.path.exists():
            return None
        try:
            state = load(self.path)
        except UserError as error:
            flaw: str | None = str(error)
        else:
            flaw = self._flaw(state)
        if flaw is not None:
            if rank() == 0:
                print(f"{flaw}: starting over", flush=True)
            return None
        if rank() == 0:
            print(f"{self.path}: going on after {state['epoch']} epochs and {state['index']} steps", flush=True)
        return state

    def _flaw(self, state: dict[str, Any]) -> str | None:
        """Why the state is of no use here, if it is not. Raises UserError as `load` does."""
        if state.get("key") != self.key:
            return f"{self.path}: of other settings or data"
        there, here = state.get("made_by"), self.made_by
        if not isinstance(there, dict):
            return f"{self.path}: found no record of what made it, expected a state"
        # Before the checksum, which a state of other code may not have; that is no damage.
        if differing := [name for name in here if there.get(name) != here[name]]:
            found, expected = (", ".join(f"{name} {by.get(name)}" for name in differing) for by in (there, here))
            raise UserError(self.path, f"a state by {found}", f"{expected}; `u2pl train --restart` starts over")
        try:
            content = digest({name: part for name, part in state.items() if name not in ("key", "made_by", "sha256")})
        except RuntimeError as error:  # a damaged file may hold tensors without memory, or lists of themselves
            content = next(iter(str(error).splitlines()), type(error).__name__)
        if content == state.get("sha256"):
            return None
        return f"{self.path}: found content of sha256 {content}, expected {state.get('sha256')}"

    def due(self) -> bool:
        """Whether it is time to write again."""
        return time.monotonic() - self.written >= self.seconds

    def save(self, state: dict[str, Any]) -> None:
        """Write the state, which is the same on every rank."""
        if rank() == 0:
            self._remove_torn()
            # torch does not check the sums of its own format.
            save(self.path, {"key": self.key, "made_by": self.made_by, "sha256": digest(state)} | state)
        self.written = time.monotonic()

    def _remove_torn(self) -> None:
        """What a process killed while it was writing left behind."""
        for torn in self.folder.glob(f".{self.path.name}.*"):
            torn.unlink(missing_ok=True)

    def remove(self) -> None:
        """Forget the state, and the folder with it."""
        if rank() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
