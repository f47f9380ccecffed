"""ResNet encoder, and DeepLabv3+ with segmentation and representation heads."""

from typing import TYPE_CHECKING

from u2pl.models.deeplab import DeepLab
from u2pl.models.resnet import ResNet
from u2pl.models.weights import load_encoder_weights

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
