"""Where a training is: what a method needs to know besides the batch."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Progress:
    """The present step. All counts start at 0; `steps` is the total of the run, `steps / epochs` those of an epoch."""

    epoch: int
    epochs: int
    step: int  # over the whole run
    steps: int
    generator: torch.Generator  # on the device of the batch; all sampling of the method draws from it

    def steps_since(self, epochs: int) -> int:
        """Steps already done after the first `epochs` epochs; 0 during these."""
        return max(0, self.step - epochs * (self.steps // self.epochs))
