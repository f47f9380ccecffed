"""The two unsupervised terms of PC2Seg against closed forms and a loop."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from u2pl.components.pixel_contrast import contrast_terms, negative_weights, pixel_contrast, squared_distance

torch.set_num_threads(1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def contrast(strong: Tensor, weak: Tensor, probs: Tensor, **changes: Any) -> Tensor:
    everywhere = torch.ones(len(strong), *strong.shape[2:]).bool()
    options: dict[str, Any] = {"anchors": 5, "negatives": 7, "tau": 0.5, "sampling": "uniform"}
    options |= {"shown": everywhere, "valid": everywhere, "generator": torch.Generator().manual_seed(0)} | changes
    return pixel_contrast(strong, weak, probs, **options)


def test_orthogonal_negatives_of_an_equal_pair_have_a_closed_form() -> None:
    anchors, keys = 3 * torch.eye(4, 9), torch.eye(9)[4:]
    found = contrast_terms(anchors, 2 * anchors, keys, torch.ones(4, 5), 0.07)
    torch.testing.assert_close(found, torch.full((4,), math.log(1 + 5 * math.exp(-1 / 0.07))))


def test_the_terms_are_those_of_a_loop() -> None:
    anchors, positives, keys = random(3, 4), random(3, 4, seed=1), random(6, 4, seed=2)
    weights = random(3, 6, seed=3).sigmoid()
    weights[0, 2] = weights[2] = 0
    found = contrast_terms(anchors, positives, keys, weights, 0.3).numpy()

    def e(a: Tensor, b: Tensor) -> float:
        return math.exp(float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)) / 0.3)

    for i in range(3):
        own = e(anchors[i], positives[i])
        others = sum(float(weights[i, n]) * e(anchors[i], keys[n]) for n in range(6))
        assert found[i] == pytest.approx(-np.log(own / (own + others)), rel=1e-12, abs=1e-15)


def test_equal_views_are_consistent_and_certain_opposites_differ_by_two() -> None:
    logits, everywhere = random(2, 4, 3, 3), torch.ones(2, 3, 3).bool()
    assert squared_distance(logits, logits.softmax(1), everywhere) == 0
    certain = 100 * torch.eye(4)[0].view(1, 4, 1, 1).expand(2, 4, 3, 3)
    torch.testing.assert_close(squared_distance(certain, certain.roll(1, 1).softmax(1), everywhere), torch.tensor(2.0))


def test_the_distance_is_a_mean_over_the_counted_pixels() -> None:
    logits, target, counted = random(2, 4, 3, 3), random(2, 4, 3, 3, seed=1).softmax(1), random(2, 3, 3, seed=2) > 0
    expected = (logits.softmax(1) - target).square().sum(1)[counted].mean()
    torch.testing.assert_close(squared_distance(logits, target, counted), expected)


def test_the_weight_is_the_probability_of_another_class_in_another_image() -> None:
    anchors = torch.tensor([[1.0, 0.0], [0.3, 0.7]])
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    places = torch.tensor([0, 1]), torch.tensor([0, 1, 2])
    probabilities = torch.tensor([[0.0, 1.0, 0.5], [0.7, 0.3, 0.5]])
    elsewhere = torch.tensor([[0.0, 1, 1], [1, 0, 1]])
    expected = {"uniform": torch.ones(2, 3), "other_image": elsewhere, "debiased": probabilities}
    expected["other_image_debiased"] = elsewhere * probabilities
    for sampling, weights in expected.items():
        torch.testing.assert_close(negative_weights(anchors, keys, *places, sampling), weights)  # type: ignore[arg-type]


def test_no_negative_comes_from_the_anchors_image() -> None:
    """With each image of one vector and its weak view alike, negatives of the own image are as near as can be."""
    vectors = torch.eye(2, dtype=torch.float64)[:, :, None, None].expand(2, 2, 3, 3)
    probs = torch.full((2, 3, 3, 3), 1 / 3, dtype=torch.float64)
    # all negatives are of image 1, which is orthogonal to image 0
    options = {"valid": torch.tensor([False, True])[:, None, None].expand(2, 3, 3), "negatives": 4}
    found = contrast(vectors, vectors, probs, sampling="other_image", **options)
    torch.testing.assert_close(float(found), math.log(1 + 4 * math.exp(-2)) / 2, rtol=1e-12, atol=0)
    uniform = contrast(vectors, vectors, probs, sampling="uniform", **options)
    torch.testing.assert_close(float(uniform), (math.log(1 + 4 * math.exp(-2)) + math.log(5)) / 2, rtol=1e-12, atol=0)


def test_certain_pixels_of_one_class_are_no_negatives_of_each_other() -> None:
    probs = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    probs[:, 1] = 1
    for sampling in ("debiased", "other_image_debiased"):
        assert contrast(random(2, 6, 4, 4), random(2, 6, 4, 4, seed=1), probs, sampling=sampling) == 0
    assert contrast(random(2, 6, 4, 4), random(2, 6, 4, 4, seed=1), probs) > 0


def test_only_shown_pixels_of_the_strong_view_get_gradients() -> None:
    strong, weak = random(2, 6, 4, 4).requires_grad_(), random(2, 6, 4, 4, seed=1).requires_grad_()
    probs = random(2, 3, 4, 4, seed=2).softmax(1).requires_grad_()
    shown = random(2, 4, 4, seed=3) > 0.3
    contrast(strong, weak, probs, shown=shown, anchors=200, sampling="debiased").backward()
    assert weak.grad is None and probs.grad is None and strong.grad is not None
    assert torch.equal(strong.grad.abs().sum(1) > 0, shown)


def test_negatives_are_drawn_from_valid_pixels_alone() -> None:
    strong, weak, probs = random(2, 6, 4, 4), random(2, 6, 4, 4, seed=1), random(2, 3, 4, 4, seed=2).softmax(1)
    shown = torch.zeros(2, 4, 4).bool()
    shown[:, 0, 0] = True
    valid = torch.ones(2, 4, 4).bool()
    valid[:, 3] = False
    changed = weak.clone()
    changed[:, :, 3] = 5
    one, two = (contrast(strong, w, probs, shown=shown, valid=valid, negatives=100) for w in (weak, changed))
    assert torch.equal(one, two)


@pytest.mark.parametrize("part", ["shown", "valid"])
def test_without_a_pixel_to_draw_the_term_is_0(part: str) -> None:
    strong = random(2, 6, 4, 4).requires_grad_()
    loss = contrast(strong, random(2, 6, 4, 4, seed=1), random(2, 3, 4, 4), **{part: torch.zeros(2, 4, 4).bool()})
    loss.backward()
    assert abs(float(loss.detach())) < 1e-15 and strong.grad is not None and torch.isfinite(strong.grad).all()
