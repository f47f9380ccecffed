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
    warmup_epochs: int
    generator: torch.Generator  # on the device of the batch; all sampling of the method draws from it

    @property
    def warming_up(self) -> bool:
        """Only the supervised loss is in force."""
        return self.epoch < self.warmup_epochs

    @property
    def steps_since_warmup(self) -> int:
        """Steps of semi-supervised training already done; 0 during the warm-up."""
        return max(0, self.step - self.warmup_epochs * (self.steps // self.epochs))
