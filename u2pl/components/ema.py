"""The teacher's weights: an exponential moving average of the student's (section 3.1)."""

import torch
from torch import Tensor, nn


def ema_decay(decay: float, step: int) -> float:
    """decay_t = min(1 - 1 / (step + 1), decay): 0 at step 0, so the first update copies the student."""
    return min(1 - 1 / (step + 1), decay)


@torch.no_grad()
def ema_update(
    teacher: nn.Module, student: nn.Module, decay: float, step: int, *, warmup: bool = True, buffers: bool = False
) -> None:
    """theta_t <- d * theta_t + (1 - d) * theta_s with d = `ema_decay(decay, step)`, `step` counted from 0.

    Without `warmup`, d = decay at every step. With `buffers` the batch-norm statistics are averaged like the parameters
    and counters copied; else the statistics come from the teacher's own forward passes.
    """
    current = ema_decay(decay, step) if warmup else decay
    targets, sources = _averaged(teacher, buffers), _averaged(student, buffers)
    if current == 0:
        torch._foreach_copy_(targets, sources)  # a lerp by 1 would keep NaN and inf of the old weights
    else:
        torch._foreach_lerp_(targets, sources, 1 - current)
    if buffers:
        for target, source in zip(teacher.buffers(), student.buffers(), strict=True):
            if not target.is_floating_point():
                target.copy_(source)


def _averaged(network: nn.Module, buffers: bool) -> list[Tensor]:
    extra = [buffer for buffer in network.buffers() if buffer.is_floating_point()] if buffers else []
    return [*network.parameters(), *extra]
