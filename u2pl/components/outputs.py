"""What goes into a step's result: parts of a network's output, and the sum of the losses."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn


def halves(output: dict[str, Tensor], n: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A network's output on labelled and unlabelled images: that of the first `n`, and the rest.

    The slice decides the memory layout of the gradient, hence its rounding: methods without unlabelled images take it
    too, so that equal losses give equal bits.
    """
    return {name: value[:n] for name, value in output.items()}, {name: value[n:] for name, value in output.items()}


def two_streams(
    network: Callable[[Tensor], dict[str, Tensor]],
    labelled: Tensor,
    unlabelled: Tensor,
    forward: Literal["joint", "separate"],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A network's output on labelled and on unlabelled images, (B, 3, H, W) each: from one pass over both, whose batch
    statistics are common, or from two passes, each with its own.
    """
    if forward == "separate":
        return network(labelled), network(unlabelled)
    return halves(network(torch.cat([labelled, unlabelled])), len(labelled))


def summed(**terms: Tensor) -> dict[str, Tensor]:
    """{"loss": the sum of scalar terms, in their order} and each term, detached, under its name."""
    first, *others = terms.values()
    return {"loss": sum(others, first)} | {name: term.detach() for name, term in terms.items()}


@torch.no_grad()
def channels_of(network: nn.Module, output: str = "representation") -> int:
    """Channels of one of a network's outputs: it is asked, so that any network fits. Eval mode draws nothing."""
    training = network.training
    outputs = network.eval()(next(network.parameters()).new_zeros(1, 3, 64, 64))
    network.train(training)
    return outputs[output].shape[1]
