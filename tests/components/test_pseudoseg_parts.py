"""Class activation maps, self-attention and calibrated fusion against closed forms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from u2pl.components.calibrated_fusion import calibrated_fusion, soft_cross_entropy
from u2pl.components.class_activation import SelfAttention, class_activation, coarse, image_label_loss, image_labels

torch.set_num_threads(1)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_maps_are_grad_cam_of_a_mean_and_a_linear_layer() -> None:
    features, weight = random(2, 6, 4, 5).requires_grad_(), random(3, 6, seed=1)
    found = class_activation(features, weight, torch.ones(2, 3).bool())
    for c in range(3):
        score = (features.mean((2, 3)) @ weight.T)[:, c].sum()
        gradient = torch.autograd.grad(score, features)[0].mean((2, 3), keepdim=True)
        cam = (gradient * features).sum(1).relu()
        torch.testing.assert_close(found[:, c], (cam / cam.amax((1, 2), keepdim=True)).detach())


def test_a_present_class_has_maximum_1_and_an_absent_one_is_0() -> None:
    present = torch.tensor([[True, False, True], [False, False, True]])
    maps = class_activation(random(2, 6, 4, 5).abs(), random(3, 6, seed=1).abs(), present)
    assert torch.equal(maps.amax((2, 3)), present.double())
    negative = class_activation(random(2, 6, 4, 5).abs(), -random(3, 6, seed=1).abs(), present)
    assert (negative == 0).all(), "no evidence is no division by zero"


def test_image_labels_leave_out_background_and_ignored_pixels() -> None:
    masks = torch.tensor([[[0, 2], [255, 2]], [[0, 0], [0, 255]], [[3, 1], [0, 1]]])
    assert image_labels(masks, 4).tolist() == [[False, True, False], [False] * 3, [True, False, True]]


def test_an_image_without_a_labelled_pixel_says_nothing_of_its_classes() -> None:
    logits, present = random(3, 4), torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]).bool()
    known = torch.tensor([True, True, False])
    expected = F.binary_cross_entropy_with_logits(logits[:2], present[:2].double())
    torch.testing.assert_close(image_label_loss(logits, present, known), expected)
    assert image_label_loss(logits, present, torch.zeros(3).bool()) == 0


def test_equal_queries_attend_to_the_mean_of_what_is_not_padding() -> None:
    attention = SelfAttention(6, 4, 8).double()
    attention.query.weight.data.zero_()
    attention.norm = torch.nn.Identity()
    maps, valid = torch.rand(2, 3, 4, 5, dtype=torch.float64), torch.ones(2, 4, 5).bool()
    valid[1, 2:] = False
    found = attention(random(2, 6, 4, 5), maps, valid)
    means = torch.stack([maps[0].mean((1, 2)), maps[1, :, :2].mean((1, 2))])
    torch.testing.assert_close(found[:, 1:], maps + means[:, :, None, None])
    torch.testing.assert_close(found[:, 0], 2 - found[:, 1:].amax(1))


def test_attention_is_a_softmax_of_scaled_products_per_pixel() -> None:
    attention = SelfAttention(6, 4, 8).double()
    attention.norm = torch.nn.Identity()
    features, maps = random(1, 6, 2, 3), torch.rand(1, 3, 2, 3, dtype=torch.float64)
    found = attention(features, maps, torch.ones(1, 2, 3).bool()).detach().numpy()
    columns = features[0].flatten(1).numpy()
    q, k = (layer.weight.detach().numpy()[:, :, 0, 0] @ columns for layer in (attention.query, attention.key))
    values = maps[0].flatten(1).numpy()
    for pixel in range(6):
        weights = np.exp(q[:, pixel] @ k / np.sqrt(8))
        expected = values @ (weights / weights.sum()) + values[:, pixel]
        np.testing.assert_allclose(found[0, 1:].reshape(3, 6)[:, pixel], expected, rtol=1e-12)


def test_only_the_attention_gets_gradients() -> None:
    attention = SelfAttention(6, 4, 8).double()
    features, maps = random(2, 6, 4, 5).requires_grad_(), random(2, 3, 4, 5).requires_grad_()
    attention(features, maps, torch.ones(2, 4, 5).bool()).square().sum().backward()
    assert features.grad is None and maps.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in attention.parameters())


@pytest.mark.parametrize(
    ("size", "stride", "image", "expected"), [(65, 16, 513, 33), (65, 8, 513, 65), (33, 16, 513, 33)]
)
def test_the_grid_has_the_output_stride(size: int, stride: int, image: int, expected: int) -> None:
    found = coarse(torch.ones(1, 2, size, size), image, stride)
    assert found.shape[2:] == (expected, expected) and (found == 1).all()


OPTIONS = {"weight": 0.5, "temperature": 0.5, "normaliser": "root_mean_square", "over": "batch", "share": 2}


def fused(first: torch.Tensor, other: torch.Tensor, **changes: object) -> torch.Tensor:
    return calibrated_fusion(first, other, **(OPTIONS | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("normaliser", ["root_mean_square", "root_sum_square"])
@pytest.mark.parametrize("over", ["batch", "share", "image", "pixel"])
def test_the_fusion_is_that_of_numpy(over: str, normaliser: str) -> None:
    first, other = random(3, 4, 2, 2), 5 * random(3, 4, 2, 2, seed=1)
    found = fused(first, other, over=over, normaliser=normaliser, weight=0.3, temperature=0.25).numpy()
    a, b = first.numpy(), other.numpy()
    regions = {"batch": [[0, 1, 2]], "share": [[0, 1], [2]], "image": [[0], [1], [2]], "pixel": [[0], [1], [2]]}[over]
    function = np.mean if normaliser == "root_mean_square" else np.sum
    for images in regions:
        axis = 1 if over == "pixel" else None
        both = np.concatenate([a[images], b[images]], axis=1)
        norm = np.sqrt(function(both**2, axis=axis, keepdims=True))
        p, q = (np.exp(x[images] / norm) for x in (a, b))
        mean = 0.3 * p / p.sum(1, keepdims=True) + 0.7 * q / q.sum(1, keepdims=True)
        np.testing.assert_allclose(found[images], mean**4 / (mean**4).sum(1, keepdims=True), rtol=1e-6)


def test_the_fusion_of_equal_logits_is_their_sharpened_softmax() -> None:
    logits = random(2, 4, 3, 3)
    expected = (logits / logits.square().mean().sqrt() / 0.5).softmax(1)
    torch.testing.assert_close(fused(logits, logits), expected)


def test_a_common_factor_of_both_logits_changes_nothing() -> None:
    first, other = random(2, 4, 3, 3), random(2, 4, 3, 3, seed=1)
    torch.testing.assert_close(fused(first, other), fused(7 * first, 7 * other))
    assert not torch.allclose(fused(first, other), fused(7 * first, other))


def test_the_least_soft_cross_entropy_is_the_entropy_of_the_target() -> None:
    target = random(2, 4, 3, 3).softmax(1)
    logits = target.log().requires_grad_()
    loss = soft_cross_entropy(logits, target, torch.ones(2, 3, 3).bool())
    loss.backward()
    torch.testing.assert_close(loss.detach(), -(target * target.log()).sum(1).mean())
    assert logits.grad is not None and logits.grad.abs().max() < 1e-12


def test_pixels_that_are_not_counted_carry_no_loss() -> None:
    target, logits = random(2, 4, 3, 3).softmax(1), random(2, 4, 3, 3, seed=1).requires_grad_()
    counted = torch.zeros(2, 3, 3).bool()
    counted[0, 0] = counted[1, 2, 1] = True
    loss = soft_cross_entropy(logits, target, counted)
    loss.backward()
    losses = -(target * logits.detach().log_softmax(1)).sum(1)
    torch.testing.assert_close(loss.detach(), losses[counted].mean())
    assert logits.grad is not None and torch.equal(logits.grad.abs().sum(1) > 0, counted)
