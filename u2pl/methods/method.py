"""The contract between a method and the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from u2pl.components.progress import Progress
from u2pl.components.taught import Taught
from u2pl.models import DeepLab

if TYPE_CHECKING:
    from u2pl.experiments.schema import Recipe
    from u2pl.experiments.settings import Training

Batch = dict[str, Tensor]
Losses = dict[str, Tensor]


def _unit(colours: Tensor) -> Tensor:
    """Colours on 0 to 255, of any type, as floats on 0 to 1."""
    return colours / 255


@dataclass(frozen=True)
class Setup:
    """What a method is built on."""

    # A new network per call: encoder weights loaded, heads drawn afresh, equal on all ranks. It maps images
    # (B, 3, H, W) to the outputs of `DeepLab`, and its `encoder` to "layer3" and "layer4" alone.
    network: Callable[[], nn.Module]
    n_classes: int
    ignore: int  # the label that no loss counts
    # For methods that choose images by their place in the unlabelled list (see `Method.wanted`).
    unlabelled: int = 0  # images of that list; of the labelled one, if nothing is unlabelled
    batch: int = 0  # unlabelled images per step, of all ranks
    # Colours (B, 3, H, W) on 0 to 255, bytes or floats, to what the networks see: zero for the data set's mean colour.
    normalise: Callable[[Tensor], Tensor] = _unit


class Method(nn.Module, ABC):
    """Owns its networks and its state, and knows one step. The engine calls what is declared here, and nothing else.

    Whatever is to be resumed is a parameter, a buffer or a submodule: the state dict is saved as a whole.
    """

    settings: Training  # of the method's own class

    def __init__(self, settings: Training, setup: Setup) -> None:
        super().__init__()
        self.settings, self.n_classes, self.ignore = settings, setup.n_classes, setup.ignore
        # What `forward` taught by pseudo-labels, left there for the engine, which takes it away: diagnostics alone.
        self.taught: Taught | None = None

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> Losses:
        """One step: {"loss": scalar to minimise, further names: scalars to log}.

        `batch` holds what `settings.streams` asks for: image_l float (B, 3, H, W), mask_l int64 (B, H, W), image_u and
        image_u2 like image_l, and what else `TrainBatches.epoch` lists; images are normalised. With several ranks,
        `batch` is this rank's share; the losses are those of the global batch.
        """

    @property
    def wanted(self) -> Tensor | None:
        """With the stream "chosen": the images that the next step is to get as image_p, one per unlabelled image.

        int64 (images per step of all ranks,), places in the unlabelled list; None if the method chooses none. The
        engine reads it after each `forward`, and after a start or resume: it must be part of the state, and equal on
        all ranks.
        """
        return None

    def after_step(self, progress: Progress) -> None:
        """After the optimisers' step, with the progress that the step's forward got; averages move here."""

    @property
    @abstractmethod
    def evaluated(self) -> nn.Module:
        """The network that is validated, kept in weights.pt and shown in figures; maps images to "logits"."""

    @classmethod
    def new_evaluated(cls, settings: Any, network: Callable[[], nn.Module]) -> nn.Module:
        """A network that the weights of `evaluated` fit, built of new ones from `network`."""
        return network()

    def optimisers(self, recipe: Recipe) -> list[torch.optim.Optimizer]:
        """SGD over every parameter that needs a gradient.

        A group's "initial_lr" is what the schedule multiplies; groups without one keep their rate.
        """
        return [self.sgd(recipe, self)]

    def sgd(self, recipe: Recipe, *parts: nn.Module) -> torch.optim.SGD:
        """SGD over the trained parameters of `parts`, encoders at the recipe's rate, the rest at its multiple."""
        networks = [module for module in self.modules() if isinstance(module, DeepLab)]
        encoders = {id(p) for network in networks for p in network.encoder_parameters()}
        trained = [p for part in parts for p in part.parameters() if p.requires_grad]
        groups = []
        for of_encoders, rate in ((True, recipe.lr), (False, recipe.lr * self.settings.decoder_lr_multiplier)):
            params = [p for p in trained if (id(p) in encoders) == of_encoders]
            groups.append({"params": params, "lr": rate, "initial_lr": rate})
        # None is torch's choice: lists of tensors ("foreach") on GPUs, one by one on the CPU
        fused = recipe.fused_sgd or None
        momentum, decay = recipe.momentum, recipe.weight_decay
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=momentum, weight_decay=decay, fused=fused)
