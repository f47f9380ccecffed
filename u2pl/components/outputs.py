"""What goes into a step's result: parts of a network's output, and the sum of the losses."""

from torch import Tensor


def halves(output: dict[str, Tensor], n: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A network's output on labelled and unlabelled images: that of the first `n`, and the rest.

    The slice decides the memory layout of the gradient, hence its rounding: methods without unlabelled images take it
    too, so that equal losses give equal bits.
    """
    return {name: value[:n] for name, value in output.items()}, {name: value[n:] for name, value in output.items()}


def summed(**terms: Tensor) -> dict[str, Tensor]:
    """{"loss": the sum of scalar terms, in their order} and each term, detached, under its name."""
    first, *others = terms.values()
    return {"loss": sum(others, first)} | {name: term.detach() for name, term in terms.items()}
