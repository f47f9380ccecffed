"""The flaw detector of GCT (Ke et al., ECCV 2020): where a network errs in an image."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from u2pl.models.deeplab import upsample

# Pixels. The layers turn 513 into 15 places a side and 128 into 3; of 60 they leave a single one, whose map is constant
# and tells no two pixels apart, and of less nothing.
SMALLEST = 128
# Channels, in units of the width, and stride of each convolution but the last.
LAYERS = ((1, 2), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2), (8, 1))


class HalfNorm(nn.Module):
    """Batch norm of the first half of the channels, instance norm without scale and shift of the second."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.split = [(channels + 1) // 2, channels // 2]
        self.batch = nn.BatchNorm2d(self.split[0])
        self.instance = nn.InstanceNorm2d(self.split[1])

    def forward(self, features: Tensor) -> Tensor:
        first, second = features.split(self.split, dim=1)
        return torch.cat([self.batch(first), self.instance(second)], dim=1)


class FlawDetector(nn.Module):
    """Images (B, 3, H, W) and a network's probabilities (B, C, H, W) to flaws (B, 1, H, W), in at least float32.

    Convolutions of 4 x 4, those of stride 2 five in number. Sides below `SMALLEST` are enlarged to it. Convolutions
    before a norm have no bias, which it would subtract again. `width` is that of the first layer, 64 published.
    """

    def __init__(self, n_classes: int, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3 + n_classes
        for factor, stride in LAYERS:
            outputs = factor * width
            layers += [nn.Conv2d(inputs, outputs, 4, stride, padding=1, bias=False), HalfNorm(outputs)]
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            inputs = outputs
        self.layers = nn.Sequential(*layers, nn.Conv2d(inputs, 1, 4, 2, padding=1))

    def forward(self, images: Tensor, probs: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        seen = upsample(torch.cat([images, probs], dim=1), (max(height, SMALLEST), max(width, SMALLEST)))
        flaws = self.layers(seen)
        return upsample(flaws.to(torch.promote_types(flaws.dtype, torch.float32)), (height, width))

    def frozen(self, images: Tensor, probs: Tensor) -> Tensor:
        """The same, with gradients for `probs` but not for the detector, whose batch-norm statistics stay."""
        state = {name: value.detach() for name, value in self.named_parameters()}
        state |= {name: value.clone() for name, value in self.named_buffers()}
        flaws: Tensor = functional_call(self, state, (images, probs))
        return flaws
