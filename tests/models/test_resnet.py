"""The encoder against torchvision's, and what torchvision's cannot do against arithmetic."""

import pytest
import torch
import torchvision
from torch import nn

from u2pl.models.resnet import ResNet

torch.set_num_threads(1)


def rates(model: ResNet, stage: str) -> list[int]:
    """Dilations of a stage's 3x3 convolutions, one per block."""
    blocks = getattr(model, stage)
    found = []
    for block in blocks:
        dilations = {m.dilation[0] for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)}
        assert len(dilations) == 1
        found.append(dilations.pop())
    return found


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101"])
def test_parameters_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        ours = ResNet(name).state_dict()
        theirs = torchvision.models.get_model(name, weights=None).state_dict()
    shapes = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.items()} == shapes


@pytest.mark.parametrize(("output_stride", "replaced"), [(8, [False, True, True]), (16, [False, False, True])])
def test_features_are_torchvisions_without_multi_grid(output_stride: int, replaced: list[bool]) -> None:
    theirs = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=replaced).eval()
    ours = ResNet("resnet50", output_stride=output_stride, multi_grid=(1, 1, 1)).eval()
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    ours.load_state_dict(state)
    images = torch.randn(1, 3, 65, 49)
    expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    with torch.inference_mode():
        features = ours(images)
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            expected = getattr(theirs, stage)(expected)
            torch.testing.assert_close(features[stage], expected)
            assert features[stage].shape[1] == ours.channels[stage]


def test_dilations_and_multi_grid() -> None:
    with torch.device("meta"):
        stride8, stride16 = ResNet("resnet101"), ResNet("resnet101", output_stride=16)
        small = ResNet("resnet18", width=8)
    # The first block of a stage keeps the dilation of the stage before; layer4's are times (2, 2, 4).
    assert rates(stride8, "layer2") == [1] * 4
    assert rates(stride8, "layer3") == [1] + [2] * 22
    assert rates(stride8, "layer4") == [4, 8, 16]
    assert rates(stride16, "layer3") == [1] * 23
    assert rates(stride16, "layer4") == [2, 4, 8]
    assert rates(small, "layer3") == [1, 2]
    assert rates(small, "layer4") == [4, 8]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("stem", ["7x7", "deep"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_sizes_and_widths(name: str, stem: str, output_stride: int) -> None:
    model = ResNet(name, stem=stem, output_stride=output_stride, width=8).eval()
    with torch.inference_mode():
        features = model(torch.randn(1, 3, 65, 97))
    assert features["layer1"].shape[-2:] == (17, 25)
    assert features["layer4"].shape[-2:] == ((9, 13) if output_stride == 8 else (5, 7))
    assert features["layer4"].shape[1] == 64 * (4 if name == "resnet50" else 1) == model.channels["layer4"]


def test_deep_stem() -> None:
    model = ResNet("resnet18", stem="deep", width=64)
    assert isinstance(model.conv1, nn.Sequential)
    shapes = [m.weight.shape[:2] for m in model.conv1 if isinstance(m, nn.Conv2d)]
    assert shapes == [(64, 3), (64, 64), (128, 64)]
    # An even side tells the pooling's rounding: (64 + 2 - 3) / 2 + 1 = 32.5.
    features = model.eval()(torch.randn(1, 3, 128, 128))
    assert features["layer1"].shape[-2:] == (33, 33)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_blocks_start_as_the_identity(name: str) -> None:
    model = ResNet(name, width=8).train()
    block = model.layer1[-1]
    features = torch.rand(2, model.channels["layer1"], 9, 9)
    torch.testing.assert_close(block(features), features)
