"""ResNet encoders whose last stages are dilated instead of strided.

The residual blocks and the names of the parameters are torchvision's, so that its ImageNet weights load unchanged
into the standard network (width 64, 7x7 stem). torchvision's own `ResNet` has neither a width below 64, a deep stem,
dilation for the 18-layer network nor a multi-grid.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

# encoder: block and number of blocks per stage
ENCODERS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
    """Encoder of DeepLabv3+.

    encoder: a key of ENCODERS; stem: "7x7" or "deep" (three 3x3 convolutions); output_stride: 8 or 16;
    multi_grid: factors on the dilations of layer4's blocks; width: channels of the first stage, 64 is the standard.
    forward maps images (B, 3, H, W) to {"layer1": (B, channels["layer1"], H/4, W/4), "layer3": ..., "layer4":
    (B, channels["layer4"], H/output_stride, W/output_stride)}, sizes rounded up.
    """

    def __init__(
        self,
        encoder: str = "resnet101",
        *,
        stem: str = "7x7",
        output_stride: int = 8,
        multi_grid: Sequence[int] = (2, 2, 4),
        width: int = 64,
    ) -> None:
        super().__init__()
        assert output_stride in (8, 16), output_stride
        block, depths = ENCODERS[encoder]
        self._stem(stem, width)
        dilations = (1, 1, 2, 4) if output_stride == 8 else (1, 1, 1, 2)
        channels = 2 * width if stem == "deep" else width
        previous = 1
        for index, (depth, dilation) in enumerate(zip(depths, dilations, strict=True)):
            # A stage trades its stride for dilation. Its first block still sees its input on the grid of the stage
            # before and so keeps that dilation, as where it was strided in pre-training.
            stride = 1 if index == 0 or dilation > previous else 2
            grid = [multi_grid[i % len(multi_grid)] if index == 3 else 1 for i in range(depth)]
            rates = [(previous if i == 0 else dilation) * grid[i] for i in range(depth)]
            stage = _stage(block, channels, width * 2**index, stride, rates)
            setattr(self, f"layer{index + 1}", stage)
            channels, previous = width * 2**index * block.expansion, dilation
        self.channels = {f"layer{index + 1}": width * 2**index * block.expansion for index in range(4)}
        self._initialise()

    def _stem(self, stem: str, width: int) -> None:
        if stem == "deep":
            self.conv1: nn.Module = nn.Sequential(
                _conv3x3(3, width, stride=2),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                _conv3x3(width, width),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                _conv3x3(width, 2 * width),
            )
            self.bn1 = nn.BatchNorm2d(2 * width)
        else:
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=stem == "deep")

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        # Residual branches start at zero, so that a block is the identity at first (arXiv:1706.02677).
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        stages: dict[str, Tensor] = {}
        for name in ("layer1", "layer2", "layer3", "layer4"):
            features = getattr(self, name)(features)
            stages[name] = features
        return stages


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, planes: int, stride: int, rates: list[int]
) -> nn.Sequential:
    outputs = planes * block.expansion
    blocks: list[nn.Module] = []
    for index, rate in enumerate(rates):
        downsample = None
        if index == 0 and (stride != 1 or inputs != outputs):
            downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        residual = block(inputs if index == 0 else outputs, planes, stride if index == 0 else 1, downsample)
        # Set afterwards because torchvision's BasicBlock refuses a dilation in its constructor.
        for module in (residual.conv1, residual.conv2):
            assert isinstance(module, nn.Conv2d)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (rate, rate)
        blocks.append(residual)
    return nn.Sequential(*blocks)
