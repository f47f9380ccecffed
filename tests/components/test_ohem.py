import numpy as np
import pytest
import torch
import torch.nn.functional as F

from u2pl.components.ohem import ohem_loss

torch.set_num_threads(1)
B, C, H, W, IGNORE = 2, 4, 7, 9, 255


def scene(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(C, (B, H, W), generator=generator)
    logits = torch.randn(B, C, H, W, generator=generator) + 2 * F.one_hot(labels, C).movedim(-1, 1)
    labels[0, :2] = IGNORE
    return logits, labels


def oracle(logits: torch.Tensor, labels: torch.Tensor, threshold: float, min_kept: int) -> tuple[float, np.ndarray]:
    """Sort the labelled pixels by the probability of their class; also tells which pixels are kept."""
    scores, truth = logits.detach().double().numpy(), labels.numpy()
    probs = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    pixels = [
        (probs[i, truth[i, y, x], y, x], i, y, x) for i, y, x in np.ndindex(truth.shape) if truth[i, y, x] != IGNORE
    ]
    pixels.sort()
    kept = [pixel for rank, pixel in enumerate(pixels) if rank < min_kept or pixel[0] <= threshold]
    where = np.zeros(truth.shape, dtype=bool)
    for _, i, y, x in kept:
        where[i, y, x] = True
    return -float(np.mean([np.log(pixel[0]) for pixel in kept])), where


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("min_kept", [1, 10, 107, 108, 109, 10**6])
def test_is_the_mean_over_the_hardest_pixels(threshold: float, min_kept: int) -> None:
    logits, labels = scene()
    assert (labels != IGNORE).sum() == 108
    logits.requires_grad_()
    loss = ohem_loss(logits, labels, IGNORE, threshold=threshold, min_kept=min_kept)
    expected, kept = oracle(logits, labels, threshold, min_kept)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    np.testing.assert_array_equal((gradient.abs().sum(1) > 0).numpy(), kept)


@pytest.mark.parametrize("means", [1, 2, None])
@pytest.mark.parametrize("kept_group", [1, 2, None])
@pytest.mark.parametrize("min_kept", [5, 30, 60])
def test_least_numbers_and_means_are_of_groups_where_asked(
    means: int | None, kept_group: int | None, min_kept: int
) -> None:
    logits, labels = (torch.cat(parts) for parts in zip(scene(1), scene(2), strict=True))
    where = np.concatenate(
        [
            oracle(*part, 0.2, min_kept)[1]
            for part in zip(*(v.split(kept_group or 4) for v in (logits, labels)), strict=True)
        ]
    )
    losses = F.cross_entropy(logits.double(), labels, ignore_index=IGNORE, reduction="none").numpy()
    parts = [slice(start, start + (means or 4)) for start in range(0, 4, means or 4)]
    expected = np.mean([losses[part][where[part]].mean() for part in parts])
    found = ohem_loss(logits, labels, IGNORE, means, kept_group, threshold=0.2, min_kept=min_kept)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_few_pixels_are_all_kept_by_default() -> None:
    logits, labels = scene()
    torch.testing.assert_close(ohem_loss(logits, labels, IGNORE), F.cross_entropy(logits, labels, ignore_index=IGNORE))


def test_nothing_labelled_is_zero_with_zero_gradient_and_nothing_kept_is_refused() -> None:
    logits, labels = scene()
    logits.requires_grad_()
    loss = ohem_loss(logits, torch.full_like(labels, IGNORE), IGNORE, min_kept=3)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0 and torch.all(gradient == 0)
    with pytest.raises(ValueError, match="min_kept 0"):
        ohem_loss(logits, labels, IGNORE, min_kept=0)
