"""ResNet encoder, and DeepLabv3+ with segmentation and representation heads."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from u2pl.errors import UserError
from u2pl.models.deeplab import DeepLab
from u2pl.models.resnet import ResNet, drop_classifier

if TYPE_CHECKING:
    from u2pl.experiments.schema import Network

__all__ = ["DeepLab", "ResNet", "build_network", "load_encoder_weights"]


def build_network(network: "Network", n_classes: int, *, stem: str = "7x7", auxiliary: bool = False) -> DeepLab:
    """The network a recipe asks for, randomly initialised from torch's global generator.

    Its forward maps images (B, 3, H, W) to "logits" (B, n_classes, H/4, W/4), "representation" and, with `auxiliary`,
    "auxiliary" logits. stem: "7x7" or "deep". `network.weights` is not read here, see `load_encoder_weights`.
    """
    encoder = ResNet(
        network.encoder,
        stem=stem,
        output_stride=network.output_stride,
        multi_grid=network.multi_grid,
        width=network.width,
    )
    return DeepLab(
        encoder,
        n_classes,
        output_stride=network.output_stride,
        channels=network.channels,
        representation=network.representation,
        dropout=network.dropout,
        auxiliary=auxiliary,
    )


def load_encoder_weights(model: DeepLab, path: Path) -> None:
    """Fill the encoder from a state dict with torchvision's names; a classifier (`fc.*`) in it is left out.

    Raises UserError, and leaves the model as it is, if the file is missing, is not a state dict or does not fit; the
    message names the first tensor that differs and both shapes.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(path, "no file", "weights of the encoder") from error
    except Exception as error:  # torch.load raises whatever its unpickler met
        raise UserError(path, str(error).splitlines()[0], "a state dict written by torch.save") from error
    if not isinstance(state, dict):
        raise UserError(path, type(state).__name__, "a state dict")
    state = drop_classifier(state)
    own = model.encoder.state_dict()
    for key, value in own.items():
        # Files from before torch 0.4.1 have no such counters, and nothing reads them.
        if key not in state and key.endswith("num_batches_tracked"):
            state[key] = value
        if key not in state:
            raise UserError(path, f"no tensor {key}", f"{key} of shape {tuple(value.shape)}")
        if state[key].shape != value.shape:
            raise UserError(path, f"{key} of shape {tuple(state[key].shape)}", f"shape {tuple(value.shape)}")
    for key in state:
        if key not in own:
            raise UserError(path, f"an additional tensor {key}", "the tensors of the encoder only")
    model.encoder.load_state_dict(state)
