"""Everything that makes a training a function of its spec: seeds, deterministic kernels, threads and the device."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from u2pl.errors import UserError


@contextmanager
def deterministic(threads: int, *, tf32: bool = False) -> Iterator[None]:
    """Deterministic kernels on `threads` CPU threads inside the block; the settings before it come back after it.

    Sums depend on how many threads share them, so the number of threads is a part of the result. tf32: whether a GPU
    may round the inputs of float32 products; torch by itself lets it in convolutions but not in matrix products.
    """
    # cuBLAS reads its workspace from here, once, when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = torch.are_deterministic_algorithms_enabled(), cudnn.benchmark, torch.get_num_threads()
    rounded = cudnn.allow_tf32, matmul.allow_tf32
    torch.use_deterministic_algorithms(True)
    cudnn.benchmark = False
    torch.set_num_threads(threads)
    cudnn.allow_tf32 = matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.benchmark = before[1]
        torch.set_num_threads(before[2])
        cudnn.allow_tf32, matmul.allow_tf32 = rounded


def seed_everything(seed: int, device: torch.device) -> torch.Generator:
    """Seed Python's, NumPy's and torch's global generators; return the methods' own generator, on `device`."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    # A seed of its own: with the same one, mixing boxes would repeat the numbers that initialised the network.
    # Below 2**32, because the CPU's generator reads no more than 32 bits.
    return torch.Generator(device).manual_seed(2**31 + seed)


def random_state(generator: torch.Generator) -> dict[str, Any]:
    """The state of torch's generators, which dropout and the methods draw from."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "generator": generator.get_state()}
    if generator.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(generator.device)
    return state


def restore_random_state(state: dict[str, Any], generator: torch.Generator) -> None:
    """Continue where `random_state` was taken."""
    torch.set_rng_state(state["torch"])
    generator.set_state(state["generator"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], generator.device)


def choose_device(name: str, gpus: int) -> torch.device:
    """The device called `name`; "auto" is the GPU if the recipe asks for one and the CPU if it does not.

    Raises UserError if the name is unknown or there is no such GPU: training on the CPU instead would take weeks.
    """
    wanted = ("cuda" if gpus else "cpu") if name == "auto" else name
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UserError("device", repr(name), "auto, cpu, cuda or cuda:<index>") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError("device", repr(name), "auto, cpu, cuda or cuda:<index>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError("device", f"{torch.cuda.device_count()} GPUs", f"{wanted}, or the device cpu to go without")
    return device
