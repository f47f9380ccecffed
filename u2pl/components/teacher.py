"""The teacher: a network that follows the student and labels images for it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from u2pl.components.ema import ema_update
from u2pl.components.progress import Progress
from u2pl.components.pseudo_labels import most_probable
from u2pl.components.resize import upsample

if TYPE_CHECKING:
    from u2pl.experiments.settings import Averaging


class Teacher(nn.Module):
    """Starts as a copy of the student; no optimiser moves it, `follow` does.

    With `teacher_buffers: own` its batch-norm statistics come from its own passes in train mode, over the images that
    the student sees. With `averaged` they follow the student's like the parameters, and no pass moves them.

    During the warm-up it is a copy of the student after every step, where the released code copies once at the end: the
    parameters are the same from the first semi-supervised step on, and the teacher can be evaluated before; its own
    batch-norm statistics differ, they fit the parameters here.
    """

    def __init__(self, student: nn.Module, settings: Averaging) -> None:
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False)
        self.settings = settings

    @torch.no_grad()
    def view(self, images: Tensor) -> dict[str, Tensor]:
        """Output in eval mode for images (B, 3, H, W): "logits" (B, C, h, w), "representation" (B, D, h, w)."""
        return _kept(self.network.eval()(images))

    def labels(self, images: Tensor) -> Tensor:
        """The most probable class in eval mode, at the size of the images: int64 (B, H, W)."""
        return most_probable(upsample(self.view(images)["logits"], (images.shape[2], images.shape[3])))

    @torch.no_grad()
    def training_view(self, images: Tensor) -> dict[str, Tensor]:
        """Output in train mode: batch statistics and dropout, as the student sees the images."""
        self.network.train()
        if self.settings.teacher_buffers == "own":
            return _kept(self.network(images))
        unmoved = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        return _kept(functional_call(self.network, unmoved, (images,)))

    def observe(self, images: Tensor) -> None:
        """Move its batch-norm statistics by the images, where they are its own."""
        if self.settings.teacher_buffers == "own":
            self.training_view(images)

    def follow(self, student: nn.Module, progress: Progress) -> None:
        """EMA update; a plain copy during warm-up and in a shared first epoch."""
        settings = self.settings
        warming_up = progress.epoch < settings.warmup_epochs
        shared = progress.epoch == settings.warmup_epochs and settings.teacher_first_epoch == "shared"
        decay = 0.0 if warming_up or shared else settings.ema_decay
        averaged = settings.teacher_buffers == "averaged"
        step = progress.steps_since(settings.warmup_epochs)
        ema_update(self.network, student, decay, step, warmup=settings.ema_warmup, buffers=averaged)


def _kept(output: dict[str, Tensor]) -> dict[str, Tensor]:
    """What methods ask a teacher for; the rest of the output is much larger."""
    return {name: output[name] for name in ("logits", "representation")}
