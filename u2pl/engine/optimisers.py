"""What the engine does with a method's optimisers."""

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer


def poly(step: int, steps: int, power: float) -> float:
    """Factor on the learning rate at `step` (from 0) of `steps`: (1 - step / steps) ** power."""
    return (1 - step / steps) ** power


def set_rates(optimisers: Sequence[Optimizer], factor: float) -> None:
    """Multiply the initial rate of every group that has one; the others keep theirs."""
    for group in (group for optimiser in optimisers for group in optimiser.param_groups):
        if "initial_lr" in group:
            group["lr"] = group["initial_lr"] * factor


def assert_all_optimised(method: nn.Module, optimisers: Sequence[Optimizer]) -> None:
    """Every parameter that needs a gradient is in exactly one optimiser: else it would silently stay untrained."""
    held = [id(p) for optimiser in optimisers for group in optimiser.param_groups for p in group["params"]]
    assert len(held) == len(set(held)), "a parameter is in two optimisers"
    for name, parameter in method.named_parameters():
        assert not parameter.requires_grad or id(parameter) in held, f"{name} needs a gradient and is in no optimiser"
