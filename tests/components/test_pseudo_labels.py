import math

import numpy as np
import pytest
import torch

from u2pl.components import pseudo_labels as pl

torch.set_num_threads(1)
B, C, H, W, IGNORE = 2, 4, 5, 6, 255


def probabilities(seed: int = 0) -> torch.Tensor:
    return (2 * torch.randn(B, C, H, W, generator=torch.Generator().manual_seed(seed))).softmax(1)


def cross_entropies(logits: torch.Tensor, labels: torch.Tensor) -> list[list[float]]:
    """Per image, the cross-entropy of each pixel with a label, from the definition."""
    images = []
    for scores, truth in zip(logits.double().numpy(), labels.numpy(), strict=True):
        images.append(
            [
                math.log(sum(math.exp(s) for s in scores[:, y, x])) - scores[truth[y, x], y, x]
                for y, x in np.ndindex(H, W)
                if truth[y, x] != IGNORE
            ]
        )
    return images


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_most_probable_takes_the_first_of_equal_classes(layout: torch.memory_format) -> None:
    scores = torch.randint(3, (B, C, H, W), generator=torch.Generator().manual_seed(0)).float()
    found = pl.most_probable(scores.contiguous(memory_format=layout))
    for i, y, x in np.ndindex(B, H, W):
        column = scores[i, :, y, x].tolist()
        assert found[i, y, x] == column.index(max(column))


def test_entropy_is_eq_5_and_certainty_is_zero() -> None:
    probs = probabilities()
    found = pl.entropy(probs).numpy()
    for i, y, x in np.ndindex(B, H, W):
        assert found[i, y, x] == pytest.approx(-sum(p * math.log(p) for p in probs[i, :, y, x].tolist()), abs=1e-6)
    certain = torch.zeros(1, C, 1, 1)
    certain[0, 2] = 1
    assert pl.entropy(certain).item() == 0
    assert pl.entropy(torch.full((1, C, 1, 1), 1 / C)).item() == pytest.approx(math.log(C))


@pytest.mark.parametrize("q", [0, 0.1, 20, 33.3, 50, 80, 95.5, 100])
@pytest.mark.parametrize("shape", [(1,), (2, 3, 5), (4, 33, 33)])
def test_percentile_is_numpys(q: float, shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).exp()
    assert pl.percentile(values, q).item() == pytest.approx(np.percentile(values.numpy().flatten(), q), rel=1e-6)


def test_percentile_of_equal_values_is_numpys() -> None:
    generator = torch.Generator().manual_seed(3)
    for size in range(1, 12):
        for _ in range(20):
            values = torch.randint(4, (size,), generator=generator).double()
            for q in range(0, 101, 4):
                expected = np.percentile(values.numpy(), q)
                assert pl.percentile(values, q).item() == pytest.approx(expected, abs=1e-12), (values, q)


@pytest.mark.parametrize(("size", "q"), [(0, 50), (3, 101), (3, -1)])
def test_percentile_refuses_nonsense(size: int, q: float) -> None:
    with pytest.raises(ValueError):
        pl.percentile(torch.zeros(size), q)


def test_percentile_is_exact_beyond_the_integers_of_float32() -> None:
    values = torch.arange(2**24 + 3, dtype=torch.float64)
    assert pl.percentile(values, 50).item() == 2**23 + 1


def test_threshold_and_share_follow_eq_6_and_7() -> None:
    entropies = pl.entropy(probabilities())
    threshold = pl.entropy_threshold(entropies, 0.2).item()
    assert threshold == pytest.approx(np.percentile(entropies.numpy().flatten(), 100 * (1 - 0.2)))
    assert [pl.alpha_t(0.2, t, 4) for t in range(4)] == pytest.approx([0.2, 0.15, 0.1, 0.05])
    assert pl.alpha_t(0.2, 3, 4, dynamic=False) == 0.2
    assert [pl.alpha_t(0.2, t, 4, "from_1") for t in range(4)] == pytest.approx([0.15, 0.1, 0.05, 0])
    assert [pl.alpha_t(0.2, t, 5, "after_warmup", 1) for t in range(1, 5)] == pytest.approx([0.2, 0.15, 0.1, 0.05])


def test_pseudo_labels_are_eq_6() -> None:
    probs = probabilities()
    gamma = pl.entropy_threshold(pl.entropy(probs), 0.2)
    found = pl.pseudo_labels(probs, gamma, IGNORE).numpy()
    for i, y, x in np.ndindex(B, H, W):
        p = probs[i, :, y, x].double().numpy()
        reliable = -(p * np.log(p)).sum() < gamma.item()
        assert found[i, y, x] == (p.argmax() if reliable else IGNORE)
    assert 0 < (found == IGNORE).sum() < found.size


def test_unsupervised_loss_is_lambda_u_times_the_mean_over_reliable_pixels() -> None:
    """L_u = (B H W / reliable pixels) * mean cross-entropy over reliable pixels, as the released code has it."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(B, C, H, W, generator=generator)
    labels = torch.randint(C, (B, H, W), generator=generator)
    labels[0, :2] = IGNORE
    labels[1, 4, 1] = IGNORE
    reliable = (labels != IGNORE).sum().item()
    assert reliable < B * H * W
    lambda_u = 0.7 * B * H * W / reliable
    expected = lambda_u * sum(sum(cross_entropies(logits, labels), [])) / reliable
    assert pl.unsupervised_loss(logits, labels, 0.7, IGNORE).item() == pytest.approx(expected, rel=1e-5)
    assert pl.unsupervised_weight(labels, 0.7, IGNORE).tolist() == pytest.approx([lambda_u] * B)


@pytest.mark.parametrize("means", [1, 2, 3, 4, None])
@pytest.mark.parametrize("weights", [1, 2, 3, 4, None])
def test_means_and_weights_are_of_groups_of_images_where_asked(means: int | None, weights: int | None) -> None:
    """Four images, one of them without a label; a last group of three is of one image."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4, C, H, W, generator=generator)
    labels = torch.randint(C, (4, H, W), generator=generator)
    labels[0, :2] = labels[1, 4, 1] = labels[2] = IGNORE

    def groups(size: int | None) -> list[range]:
        return [range(start, min(start + (size or 4), 4)) for start in range(0, 4, size or 4)]

    counts = [int((image != IGNORE).sum()) for image in labels]
    weight = {}
    for group in groups(weights):
        reliable = sum(counts[i] for i in group)
        weight |= {i: 0.7 * len(group) * H * W / reliable if reliable else 0.0 for i in group}
    losses = [sum(image) for image in cross_entropies(logits, labels)]
    supervised, unsupervised = [], []
    for group in groups(means):
        number = sum(counts[i] for i in group) or 1
        supervised.append(sum(losses[i] for i in group) / number)
        unsupervised.append(sum(weight[i] * losses[i] for i in group) / number)
    found = pl.supervised_loss(logits, labels, IGNORE, means).item()
    assert found == pytest.approx(sum(supervised) / len(supervised), rel=1e-5)
    found = pl.unsupervised_loss(logits, labels, 0.7, IGNORE, means, weights).item()
    assert found == pytest.approx(sum(unsupervised) / len(unsupervised), rel=1e-5)
    assert pl.unsupervised_weight(labels, 0.7, IGNORE, weights).tolist() == pytest.approx([weight[i] for i in range(4)])


def test_thresholds_are_numpys_percentiles_of_each_group() -> None:
    entropies = torch.rand(5, H, W, generator=torch.Generator().manual_seed(1))
    expected = [np.percentile(part.numpy(), 80) for part in (entropies[:2], entropies[2:4], entropies[4:])]
    assert pl.group_percentiles(entropies, 80, 2).tolist() == pytest.approx(expected)


def test_supervised_loss_is_the_mean_over_labelled_pixels() -> None:
    logits = torch.randn(B, C, H, W, generator=torch.Generator().manual_seed(3))
    labels = torch.randint(C, (B, H, W), generator=torch.Generator().manual_seed(4))
    labels[0, 0] = IGNORE
    every = sum(cross_entropies(logits, labels), [])
    assert pl.supervised_loss(logits, labels, IGNORE).item() == pytest.approx(sum(every) / len(every), rel=1e-5)


def test_nothing_to_learn_from_is_zero_with_zero_gradient() -> None:
    logits = torch.randn(B, C, H, W, requires_grad=True)
    labels = torch.full((B, H, W), IGNORE)
    for loss in (pl.supervised_loss(logits, labels, IGNORE), pl.unsupervised_loss(logits, labels, 1.0, IGNORE)):
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == 0
        assert torch.all(gradient == 0)
    assert pl.unsupervised_weight(labels, 1.0, IGNORE).tolist() == [0] * B
