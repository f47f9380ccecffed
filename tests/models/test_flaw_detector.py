"""The layers of the flaw detector, and what a frozen one leaves alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from u2pl.models.flaw_detector import SMALLEST, FlawDetector, HalfNorm

torch.set_num_threads(1)


def inputs(side: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, side, side, generator=generator)
    return images, torch.randn(2, 5, side, side, generator=generator).softmax(dim=1)


def test_the_published_detector_has_as_many_parameters_as_counted_by_hand() -> None:
    detector = FlawDetector(21)
    kernels = [(24, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 1)]
    scales = 64 + 2 * 128 + 2 * 256 + 2 * 512  # and shifts, of half of the channels
    expected = sum(16 * a * b for a, b in kernels) + 1 + scales
    assert sum(p.numel() for p in detector.parameters()) == expected
    assert 8.2e6 < expected < 8.4e6


def test_layers_are_those_of_the_paper_one_after_the_other() -> None:
    torch.manual_seed(0)
    detector, (images, probs) = FlawDetector(5, width=4), inputs(SMALLEST + 9)
    values = torch.cat([images, probs], dim=1)
    convolutions = [module for module in detector.layers if isinstance(module, nn.Conv2d)]
    for conv, stride in zip(convolutions[:-1], (2, 2, 1, 2, 1, 2, 1), strict=True):
        values = F.conv2d(values, conv.weight, stride=stride, padding=1)
        half = values.shape[1] // 2
        dims = torch.tensor([0, 2, 3]), torch.tensor([2, 3])
        parts = []
        for part, dim in zip((values[:, :half], values[:, half:]), dims, strict=True):
            mean, variance = part.mean(tuple(dim), keepdim=True), part.var(tuple(dim), unbiased=False, keepdim=True)
            parts.append((part - mean) / (variance + 1e-5).sqrt())
        values = torch.cat(parts, dim=1)
        values = torch.where(values > 0, values, 0.2 * values)
    last = convolutions[-1]
    assert last.bias is not None
    values = F.conv2d(values, last.weight, last.bias, stride=2, padding=1)
    expected = F.interpolate(values, size=images.shape[2:], mode="bilinear", align_corners=True)
    torch.testing.assert_close(detector(images, probs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [17, 33, 49, 65, 140])
def test_small_crops_have_maps_of_their_size_that_are_not_constant(side: int) -> None:
    found = FlawDetector(5, width=4)(*inputs(side))
    assert found.shape == (2, 1, side, side)
    assert (found.amax((1, 2, 3)) > found.amin((1, 2, 3))).all()


def test_only_batch_norm_has_scale_and_shift() -> None:
    assert {name for name, _ in HalfNorm(6).named_parameters()} == {"batch.weight", "batch.bias"}


def test_a_frozen_detector_says_the_same_and_passes_gradients_to_probabilities_alone() -> None:
    torch.manual_seed(0)
    detector, (images, probs) = FlawDetector(5, width=4), inputs(33)
    before = copy.deepcopy(detector.state_dict())
    probs.requires_grad_()
    found = detector.frozen(images, probs)
    found.sum().backward()
    assert probs.grad is not None and probs.grad.abs().sum() > 0
    assert all(p.grad is None for p in detector.parameters())
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    torch.testing.assert_close(found, detector(images, probs))
    assert not torch.equal(detector.layers[1].batch.running_mean, before["layers.1.batch.running_mean"])


def test_autocast_ends_with_the_last_layer() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert FlawDetector(5, width=4)(*inputs(33)).dtype == torch.float32
