"""Half precision ends where probabilities and cosines begin."""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """The output of an autocast network as float32; float32 and float64 stay as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
