"""Where a run came from and what it took: the part of run.json that is not the spec."""

import hashlib
import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import features

from u2pl.engine.checkpoints import manifest_hash
from u2pl.experiments.records import PreparedManifest, SplitManifest, plain, read
from u2pl.files import sha256
from u2pl.folders import Prepared, Split

if TYPE_CHECKING:
    from u2pl.experiments.suite import RunSpec

LIBRARIES = ("u2pl", "torchvision", "numpy", "pillow")
# What numbers are made by; other tracked files, such as dvc.lock, change by running.
SOURCES = ("u2pl", "params", "workflow", "Snakefile", "pyproject.toml", "requirements.lock")


def record(spec: "RunSpec", split: Path, prepared: Path, weights: Path | None, device: torch.device) -> dict[str, Any]:
    """Code, params, data, libraries and machine that a training starts from; nothing that names a user or a host.

    split, prepared: folders with a manifest.json, which is hashed and copied: the archives' checksums stand in it.
    Raises UserError if one is missing.
    """
    return {
        "git": git_state(),
        "params_sha256": spec.params_sha256,
        "split_sha256": manifest_hash(split),
        "split": plain(read(SplitManifest, Split(split).manifest)),
        "data_sha256": manifest_hash(prepared),
        "data": plain(read(PreparedManifest, Prepared(prepared).manifest)),
        "encoder_weights": {"file": str(weights), "sha256": sha256(weights)} if weights else None,
        "libraries": library_versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": cpu_name(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "seed": spec.seed,
    }


def git_state(root: Path = Path(__file__).parents[2]) -> dict[str, Any]:
    """The commit of the checkout `root`, whether its sources differ from it, and the SHA-256 of how they differ.

    Hashed is `git diff` and, after it, the name and content of each untracked source. All None where git does not track
    the code, as when it was installed from a wheel.
    """

    def git(*arguments: str) -> bytes | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    tracked = git("ls-files", "--error-unmatch", "--", "u2pl")
    commit = git("rev-parse", "--verify", "HEAD") if tracked else None
    diff = git("diff", "--binary", "--no-color", "--no-ext-diff", "HEAD", "--", *SOURCES) if commit else None
    untracked = git("ls-files", "--others", "--exclude-standard", "-z", "--", *SOURCES) if commit else None
    if commit is None or diff is None or untracked is None:
        return {"commit": None, "dirty": None, "diff_sha256": None}
    changes = diff
    for name in sorted(filter(None, untracked.decode().split("\0"))):
        content = (root / name).read_bytes() if (root / name).is_file() else b""
        changes += name.encode() + b"\n" + content
    digest = hashlib.sha256(changes).hexdigest() if changes else None
    return {"commit": commit.decode().strip(), "dirty": bool(changes), "diff_sha256": digest}


def library_versions() -> dict[str, str | None]:
    """Versions of Python and of the libraries that the numbers may depend on; None for what is not there."""
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": str(cudnn) if cudnn else None,
        "libjpeg": features.version("libjpeg_turbo") or features.version("jpg"),  # decides what a JPEG's pixels are
    }
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def cpu_name() -> str:
    """Model, architecture and the vector instructions that torch's kernels use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or "unknown"
    return f"{model} ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


def peak_memory_mb(device: torch.device) -> float:
    """Most memory held so far in MiB: allocated by torch on a GPU, resident in this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB elsewhere
