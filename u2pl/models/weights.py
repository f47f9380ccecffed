"""Files of weights: what may be in them, and how encoder weights get into a network."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from u2pl.errors import UserError
from u2pl.models.deeplab import DeepLab


def read_dict(path: Path, expected: str) -> dict[Any, Any]:
    """torch.load of a dict of tensors and plain values onto the CPU; no pickled code is run.

    expected: what the message calls the file. Raises UserError for any other, damaged or missing file.
    """
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(path, "no file", expected) from error
    except Exception as error:  # torch.load raises whatever its unpickler met
        found = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(path, found, expected) from error
    if not isinstance(value, dict):
        raise UserError(path, type(value).__name__, expected)
    return value


def difference(value: object, like: Tensor) -> tuple[str, str] | None:
    """What was found and what was expected, unless `value` is a tensor on the CPU as `like` is, without inf and nan."""
    if not isinstance(value, Tensor):
        return f"type {type(value).__name__}", "a tensor"
    if value.shape != like.shape:
        return f"shape {tuple(value.shape)}", f"shape {tuple(like.shape)}"
    for found, expected in ((value.dtype, like.dtype), (value.layout, like.layout), (value.device.type, "cpu")):
        if found != expected:
            return f"type {found}", f"type {expected}"
    if value.is_floating_point() and not value.isfinite().all():
        return "values inf or nan", "finite values"
    return None


def load_encoder_weights(model: DeepLab, path: Path) -> None:
    """Fill the encoder from a state dict with torchvision's names; a classifier (`fc.*`) in it is left out.

    Raises UserError, and leaves the model as it is, if the file is missing, is not a state dict or does not fit; the
    message names the first tensor that differs, what it is and what it should be.
    """
    state: dict[str, Tensor] = {}
    for key, value in read_dict(path, "a state dict written by torch.save").items():
        if not isinstance(key, str):
            raise UserError(path, f"the key {key!r}", "names of tensors")
        if not key.startswith("fc."):
            state[key] = value
    own = model.encoder.state_dict()
    for key, tensor in own.items():
        # Files from before torch 0.4.1 have no such counters, and nothing reads them.
        if key not in state and key.endswith("num_batches_tracked"):
            state[key] = tensor
        if key not in state:
            raise UserError(path, f"no tensor {key}", f"{key} of shape {tuple(tensor.shape)}")
        if differs := difference(state[key], tensor):
            raise UserError(path, f"{key} of {differs[0]}", differs[1])
    for key in state:
        if key not in own:
            raise UserError(path, f"an additional tensor {key}", "the tensors of the encoder only")
    model.encoder.load_state_dict(state)
