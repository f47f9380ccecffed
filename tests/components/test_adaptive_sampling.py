"""What AEL's confidences decide, against plain NumPy."""

import numpy as np
import pytest
import torch

from u2pl.components import adaptive_sampling as sampling

torch.set_num_threads(1)
C, IGNORE = 4, 255


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and masks of four images: class 3 in the last alone, class 2 nowhere, the first without any label."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(4, C, 6, 7, generator=generator, dtype=torch.float64)
    masks = torch.randint(2, (4, 6, 7), generator=generator)
    masks[0], masks[1, 0], masks[3, 2:4] = IGNORE, IGNORE, 3
    return logits, masks


def confidence_oracle(logits: np.ndarray, masks: np.ndarray, size: int, absent: str) -> list[float | None]:
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found: list[float | None] = []
    for c in range(C):
        means = []
        for first in range(0, len(masks), size):
            own = [probs[i, c][masks[i] == c] for i in range(first, min(first + size, len(masks)))]
            pixels = np.concatenate(own)
            if len(pixels):
                means.append(pixels.mean())
            elif absent == "zero":
                means.append(0.0)
        found.append(float(np.mean(means)) if means else None)
    return found


@pytest.mark.parametrize("absent", ["skip", "zero"])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_batchs_confidence_is_the_oracles(absent: str, size: int) -> None:
    logits, masks = data()
    values, known = sampling.batch_confidence(logits, masks, IGNORE, size, absent)
    for c, expected in enumerate(confidence_oracle(logits.numpy(), masks.numpy(), size, absent)):
        assert bool(known[c]) == (expected is not None)
        if expected is not None:
            assert values[c].item() == pytest.approx(expected, abs=1e-12)


def test_an_unknown_rule_for_absent_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="expected skip or zero"):
        sampling.batch_confidence(*data(), IGNORE, 1, "drop")


def test_class_rates_are_eq_9_and_its_released_variant() -> None:
    confidence = torch.tensor([0.9, 0.1, 0.5, 0.3, 1.0])
    gap = 1 - confidence.double().numpy()
    expected = np.exp(gap) / np.exp(gap).sum()
    rates = sampling.class_rates(confidence)
    np.testing.assert_allclose((rates / rates.sum()).numpy(), expected, atol=1e-7)
    released = sampling.class_rates(confidence, "released")
    np.testing.assert_allclose(released[3:].numpy(), np.exp(np.sqrt(gap[3:])), atol=1e-7)
    assert (released[:3] == 0).all()


def test_classes_are_drawn_by_the_inverse_of_their_distribution() -> None:
    rates = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0], dtype=torch.float64)
    draws = torch.tensor([[0.0, 0.2, 0.2499], [0.25, 0.6, 1 - 2**-24]])
    assert sampling.draw_classes(rates, draws).tolist() == [[1, 1, 1], [3, 3, 3]]
    assert sampling.draw_classes(torch.zeros(5), draws).unique().tolist() == [5], "of no class"
    many = sampling.draw_classes(sampling.class_rates(torch.tensor([0.0, 1.0])), torch.rand(100_000))
    assert (many == 0).double().mean().item() == pytest.approx(np.e / (np.e + 1), abs=0.01)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_least_confident_class_is_always_kept_and_the_others_by_eq_10(beta: float) -> None:
    confidence = torch.tensor([0.2, 0.6, 1.0, 0.9])
    rates = sampling.pixel_rates(confidence, beta)
    np.testing.assert_allclose(rates.numpy(), (np.array([0.8, 0.4, 0.0, 0.1]) / 0.8) ** beta, atol=1e-6)
    classes = torch.arange(4).repeat_interleave(10_000).view(4, 100, 100)
    kept = sampling.kept_pixels(classes, rates, torch.Generator().manual_seed(0)).flatten(1).double().mean(1)
    assert kept[0] == 1 and kept[2] == 0
    np.testing.assert_allclose(kept.numpy(), rates.numpy(), atol=0.02)


def test_the_keep_map_of_each_image_is_its_own() -> None:
    kept = sampling.kept_pixels(torch.zeros(2, 50, 50).long(), torch.tensor([0.5]), torch.Generator().manual_seed(0))
    assert not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize("size", [1, 3, 4])
def test_the_weighted_mean_is_eq_12(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    losses, weights = torch.rand(2, 4, 30, generator=generator, dtype=torch.float64)
    weights[1] = 0
    means = []
    for first in range(0, 4, size):
        w, x = weights[first : first + size].numpy(), losses[first : first + size].numpy()
        means.append((w * x).sum() / w.sum() if w.sum() else 0.0)
    assert sampling.weighted_mean(losses, weights, size).item() == pytest.approx(np.mean(means), abs=1e-12)
    ones = torch.ones_like(weights)
    assert sampling.weighted_mean(losses, ones, size if size != 3 else 4).item() == pytest.approx(losses.mean().item())


def test_a_class_is_held_from_its_ratio_on() -> None:
    labels = torch.zeros(2, 10, 10, dtype=torch.int64)
    labels[0, 0, :5], labels[1, 0, :4] = 1, 1
    assert sampling.held_classes(labels, 3, 0.05).tolist() == [[True, True, False], [True, False, False]]
    assert sampling.held_classes(labels, 3, 0.0).tolist() == [[True, True, False], [True, True, False]]
