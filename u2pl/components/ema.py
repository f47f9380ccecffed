"""The teacher's weights: an exponential moving average of the student's (section 3.1)."""

import torch
from torch import nn


def ema_decay(decay: float, step: int) -> float:
    """decay_t = min(1 - 1 / (step + 1), decay): 0 at step 0, so the first update copies the student."""
    return min(1 - 1 / (step + 1), decay)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, decay: float, step: int) -> None:
    """theta_t <- d * theta_t + (1 - d) * theta_s with d = `ema_decay(decay, step)`, `step` counted from 0.

    Parameters only: the teacher's batch-norm statistics come from its own forward passes.
    """
    targets: list[torch.Tensor] = list(teacher.parameters())
    sources: list[torch.Tensor] = list(student.parameters())
    if (current := ema_decay(decay, step)) == 0:
        torch._foreach_copy_(targets, sources)  # a lerp by 1 would keep NaN and inf of the old weights
    else:
        torch._foreach_lerp_(targets, sources, 1 - current)
