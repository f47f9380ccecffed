"""DeepLabv3+ with a segmentation and a representation head (section 3.1 of the paper)."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from u2pl.models.resnet import ResNet


def upsample(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation (B, C, h, w) -> (B, C, *size); corners aligned, as everywhere in the method."""
    if features.shape[-2:] == size:
        return features
    return functional.interpolate(features, size=size, mode="bilinear", align_corners=True)


def conv_bn_relu(inputs: int, outputs: int, kernel: int, dilation: int = 1, dropout: float | None = None) -> nn.Module:
    """Convolution that keeps the size, batch norm, ReLU and, where `dropout` is given, Dropout2d."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]
    if dropout is not None:
        layers.append(nn.Dropout2d(dropout))
    return nn.Sequential(*layers)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (arXiv:1706.05587): (B, inputs, h, w) -> (B, 5 * channels, h, w).

    The branch of the whole image normalises one value per image and channel: in training mode a batch of a single
    image has no variance and torch raises ValueError.
    """

    def __init__(self, inputs: int, channels: int, dilations: tuple[int, int, int]) -> None:
        super().__init__()
        self.pool = conv_bn_relu(inputs, channels, 1)
        self.branches = nn.ModuleList(
            [conv_bn_relu(inputs, channels, 1), *(conv_bn_relu(inputs, channels, 3, d) for d in dilations)]
        )

    def forward(self, features: Tensor) -> Tensor:
        # A mean, because the gradient of adaptive pooling has no deterministic kernel on GPUs.
        pooled = self.pool(features.mean((2, 3), keepdim=True)).expand(-1, -1, *features.shape[-2:])
        return torch.cat([pooled, *(branch(features) for branch in self.branches)], dim=1)


def head(inputs: int, channels: int, outputs: int, dropout: float) -> nn.Sequential:
    """Two 3x3 convolutions and a 1x1 one: (B, inputs, h, w) -> (B, outputs, h, w)."""
    return nn.Sequential(
        conv_bn_relu(inputs, channels, 3, dropout=dropout),
        conv_bn_relu(channels, channels, 3, dropout=dropout),
        nn.Conv2d(channels, outputs, 1),
    )


class DeepLab(nn.Module):
    """Encoder, ASPP, decoder and heads.

    forward maps normalised images (B, 3, H, W) to {"logits": (B, n_classes, h, w), "representation":
    (B, representation, h, w), "features": (B, 2 * channels, h, w), what both heads see, "decoded": (B, channels, h, w),
    what the classifier sees} at layer1's size, 1/4 of the image's; and to {"layer3", "layer4"} of the encoder. With
    `auxiliary` also {"auxiliary": (B, n_classes, H/8, W/8)} from layer3 (1/16 at output stride 16). Training mode needs
    two images or more, see ASPP.
    """

    def __init__(
        self,
        encoder: ResNet,
        n_classes: int,
        *,
        output_stride: int = 8,
        channels: int = 256,
        representation: int = 256,
        dropout: float = 0.1,
        auxiliary: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        # The dilations cover the same part of the image at either output stride.
        dilations = (12, 24, 36) if output_stride == 8 else (6, 12, 18)
        self.aspp = ASPP(encoder.channels["layer4"], channels, dilations)
        self.context = conv_bn_relu(5 * channels, channels, 3, dropout=dropout)
        self.detail = conv_bn_relu(encoder.channels["layer1"], channels, 1)
        self.segment = head(2 * channels, channels, n_classes, dropout)
        self.represent = head(2 * channels, channels, representation, dropout)
        self.auxiliary = None
        if auxiliary:
            self.auxiliary = nn.Sequential(
                conv_bn_relu(encoder.channels["layer3"], channels, 3, dropout=dropout),
                nn.Conv2d(channels, n_classes, 1),
            )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        stages = self.encoder(images)
        detail = self.detail(stages["layer1"])
        height, width = detail.shape[-2:]
        context = upsample(self.context(self.aspp(stages["layer4"])), (height, width))
        features = torch.cat([detail, context], dim=1)
        decoded = self.segment[:-1](features)
        outputs = {
            "logits": self.segment[-1](decoded),
            "representation": self.represent(features),
            "features": features,
            "decoded": decoded,
            "layer3": stages["layer3"],
            "layer4": stages["layer4"],
        }
        if self.auxiliary is not None:
            outputs["auxiliary"] = self.auxiliary(stages["layer3"])
        return outputs

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that start from ImageNet weights and learn at the recipe's rate."""
        return self.encoder.parameters()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """All other parameters; they learn `decoder_lr_multiplier` times faster."""
        return (p for name, p in self.named_parameters() if not name.startswith("encoder."))
