"""Shapes, parameter counts from arithmetic, and encoder weights that fit or do not."""

from pathlib import Path

import pytest
import torch
import torchvision

from u2pl.errors import UserError
from u2pl.experiments.schema import Network
from u2pl.models import build_network, load_encoder_weights
from u2pl.models.deeplab import upsample

torch.set_num_threads(1)
SMALL = Network(encoder="resnet18", width=8, channels=16, representation=12)


def test_shapes() -> None:
    model = build_network(SMALL, 5, auxiliary=True).eval()
    with torch.inference_mode():
        outputs = model(torch.randn(2, 3, 65, 97))
        torch.testing.assert_close(model.segment[-1](outputs["decoded"]), outputs["logits"])
        torch.testing.assert_close(model.segment(outputs["features"]), outputs["logits"])
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "logits": (2, 5, 17, 25),
        "representation": (2, 12, 17, 25),
        "features": (2, 32, 17, 25),
        "decoded": (2, 16, 17, 25),
        "layer3": (2, 32, 9, 13),
        "layer4": (2, 64, 9, 13),
        "auxiliary": (2, 5, 9, 13),
    }
    assert "auxiliary" not in build_network(SMALL, 5)(torch.randn(2, 3, 33, 33))


def test_parameter_count_of_the_published_network() -> None:
    with torch.device("meta"):
        model = build_network(Network(encoder="resnet101"), 21)
        encoder = torchvision.models.resnet101(weights=None)

    def conv(inputs: int, outputs: int, kernel: int) -> int:
        return inputs * outputs * kernel**2 + 2 * outputs  # with batch norm

    aspp = 2 * conv(2048, 256, 1) + 3 * conv(2048, 256, 3)
    decoder = conv(1280, 256, 3) + conv(256, 256, 1)
    heads = 2 * (conv(512, 256, 3) + conv(256, 256, 3)) + 257 * 21 + 257 * 256
    classifier = 2048 * 1000 + 1000
    expected = sum(p.numel() for p in encoder.parameters()) - classifier
    assert sum(p.numel() for p in model.encoder_parameters()) == expected
    assert sum(p.numel() for p in model.head_parameters()) == aspp + decoder + heads


@pytest.mark.parametrize(("output_stride", "dilations"), [(8, [12, 24, 36]), (16, [6, 12, 18])])
def test_aspp_dilations(output_stride: int, dilations: list[int]) -> None:
    model = build_network(SMALL.model_copy(update={"output_stride": output_stride}), 5)
    assert [branch[0].dilation[0] for branch in model.aspp.branches] == [1, *dilations]


def test_parameter_groups_are_a_partition() -> None:
    model = build_network(SMALL, 5)
    encoder, heads = ({id(p) for p in group} for group in (model.encoder_parameters(), model.head_parameters()))
    assert not encoder & heads
    assert encoder | heads == {id(p) for p in model.parameters()}


def test_heads_see_layer1_and_the_whole_image() -> None:
    model = build_network(SMALL, 5, auxiliary=True).eval()
    images = torch.randn(1, 3, 65, 65, requires_grad=True)
    model(images)["logits"][0, :, 0, 0].sum().backward()
    assert images.grad is not None
    # Image pooling: even the opposite corner counts.
    assert images.grad[0, :, -8:, -8:].abs().sum() > 0


def test_upsample_aligns_corners() -> None:
    values = torch.rand(1, 2, 3, 4)
    larger = upsample(values, (9, 13))
    for corner in [(0, 0), (0, -1), (-1, 0), (-1, -1)]:
        torch.testing.assert_close(larger[..., corner[0], corner[1]], values[..., corner[0], corner[1]])


def test_torchvision_weights_load(tmp_path: Path) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    # Old files have no counters.
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "weights.pth")
    model = build_network(Network(encoder="resnet18", channels=8), 3)
    load_encoder_weights(model, tmp_path / "weights.pth")
    own = model.encoder.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items() if not key.startswith("fc."))


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    model = build_network(SMALL, 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = model.encoder.state_dict()

    def message(value: object) -> str:
        torch.save(value, path)
        with pytest.raises(UserError) as caught:
            load_encoder_weights(model, path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    wide = torchvision.models.resnet18(weights=None).state_dict()
    assert "conv1.weight of shape (64, 3, 7, 7), expected shape (8, 3, 7, 7)" in message(wide)
    assert "no tensor bn1.weight" in message({key: value for key, value in state.items() if key != "bn1.weight"})
    assert "additional tensor layer5.weight" in message({**state, "layer5.weight": torch.zeros(1)})
    assert "expected a state dict" in message([1, 2])
    assert "no tensor conv1.weight" in message({"state_dict": state})
    assert "no tensor conv1.weight" in message({})
    assert "the key 3, expected names" in message({**state, 3: torch.zeros(1)})
    assert "additional tensor epoch" in message({**state, "epoch": 7})
    name = "layer1.0.conv1.weight"
    assert f"{name} of type NoneType, expected a tensor" in message({**state, name: None})
    assert f"{name} of type torch.float16, expected type torch.float32" in message({**state, name: state[name].half()})
    assert f"{name} of type meta, expected" in message({**state, name: state[name].to("meta")})
    assert f"{name} of values inf or nan, expected finite" in message({**state, name: state[name] * float("nan")})
    path.write_bytes(b"")
    with pytest.raises(UserError, match="found .+, expected a state dict"):
        load_encoder_weights(model, path)
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match="state dict"):
        load_encoder_weights(model, path)
    with pytest.raises(UserError, match="no file"):
        load_encoder_weights(model, tmp_path / "absent.pth")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
