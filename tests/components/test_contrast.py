import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from u2pl.components import contrast
from u2pl.components.memory_bank import MemoryBank

torch.set_num_threads(1)
B, C, D, H, W, IGNORE = 2, 5, 7, 4, 5, 255
PIXELS = list(np.ndindex(B, H, W))


def scene(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    probs = (2 * torch.randn(B, C, H, W, generator=generator)).softmax(1)
    labels = torch.randint(C, (B, H, W), generator=generator)
    labels[0, 0, :3] = IGNORE
    return probs, labels


def rank(p: np.ndarray, c: int) -> int:
    return sum(1 for other in p if other > p[c])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_category_order_counts_more_probable_classes() -> None:
    probs, _ = scene()
    found = contrast.category_order(probs).numpy()
    for i, y, x in PIXELS:
        assert found[i, :, y, x].tolist() == [rank(probs[i, :, y, x].numpy(), c) for c in range(C)]


def anchor_pixels(probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Eq. 9."""
    return contrast.members(labels, C) & (probs > 0.3)


def test_members_have_the_label_and_ignored_pixels_are_of_no_class() -> None:
    _, labels = scene()
    found = contrast.members(labels, C).numpy()
    for i, y, x in PIXELS:
        for c in range(C):
            assert found[i, c, y, x] == (labels[i, y, x] == c)
    assert not found[0, :, 0, :3].any()


def test_labelled_negatives_are_eq_14() -> None:
    probs, labels = scene()
    own, known = contrast.members(labels, C), labels != IGNORE
    found = contrast.labelled_negatives(probs, own, known, r_low=3).numpy()
    as_written = contrast.labelled_negatives(probs, own, torch.ones_like(known), r_low=3).numpy()
    for i, y, x in PIXELS:
        for c in range(C):
            order = rank(probs[i, :, y, x].numpy(), c)
            expected = labels[i, y, x] != c and 0 <= order < 3
            assert as_written[i, c, y, x] == expected
            assert found[i, c, y, x] == (expected and labels[i, y, x] != IGNORE)


@pytest.mark.parametrize("negatives", ["unreliable", "reliable", "all"])
def test_unlabelled_negatives_are_eq_15_with_the_rows_of_table_4(negatives: str) -> None:
    probs, _ = scene()
    entropies = torch.special.entr(probs).sum(1)
    gamma, low = entropies.median(), entropies.flatten().kthvalue(8).values
    chosen = contrast.entropy_condition(entropies, gamma, low, negatives)
    found = contrast.unlabelled_negatives(probs, chosen, r_low=2, r_high=4).numpy()
    condition = {"unreliable": lambda h: h > gamma, "reliable": lambda h: h < low, "all": lambda h: True}[negatives]
    for i, y, x in PIXELS:
        for c in range(C):
            order = rank(probs[i, :, y, x].numpy(), c)
            assert found[i, c, y, x] == bool(condition(entropies[i, y, x]) and 2 <= order < 4)


def test_unknown_entropy_condition_is_refused() -> None:
    one = torch.zeros(1)
    with pytest.raises(ValueError, match="sometimes"):
        contrast.entropy_condition(one, one, one, "sometimes")


def test_positives_are_eq_12() -> None:
    probs, labels = scene()
    probs, labels = (torch.cat([values, values.flip(-1)]) for values in (probs, labels))
    anchors = anchor_pixels(probs, labels)
    anchors[:, 4] = False
    teacher = torch.randn(2 * B, D, H, W)
    for group, parts in ((B, [range(2 * B)]), (1, [(0, B), (1, B + 1)])):
        found = contrast.positives(teacher, anchors, group).numpy()
        present = contrast.presence(anchors, group)
        assert len(found) == len(parts)
        for k, images in enumerate(parts):
            for c in range(C):
                own = [teacher[i, :, y, x].numpy() for i in images for y, x in np.ndindex(H, W) if anchors[i, c, y, x]]
                np.testing.assert_allclose(found[k, c], np.mean(own, axis=0) if own else np.zeros(D), atol=1e-6)
                assert present[k, c] == bool(own)


@pytest.mark.parametrize(("count", "n"), [(7, 3), (5, 5), (1, 1), (9, 8)])
def test_a_choice_without_replacement_is_of_distinct_things_and_uniform_over_all_sets(count: int, n: int) -> None:
    rows = 4000
    draws = torch.rand(rows, n, generator=torch.Generator().manual_seed(0))
    found = contrast.choose(torch.full((rows,), count), draws, replacement=False)
    sets = Counter(frozenset(row) for row in found.tolist())
    assert {len(chosen) for chosen in sets} == {n} and set().union(*sets) == set(range(count))
    each = rows / math.comb(count, n)
    assert all(abs(times - each) < 5 * each**0.5 + 1 for times in sets.values()) and len(sets) == math.comb(count, n)


def test_more_than_there_are_is_drawn_with_replacement() -> None:
    draws = torch.rand(2, 50, generator=torch.Generator().manual_seed(0))
    found = contrast.choose(torch.tensor([3, 60]), draws, replacement=False)
    assert set(found[0].tolist()) == {0, 1, 2} and len(set(found[1].tolist())) == 50
    assert torch.equal(found[0], (draws[0] * 3).long())


def test_sampled_pixels_are_uniform_over_the_qualified() -> None:
    qualified = torch.tensor([[False, True, True, False, True], [False] * 5, [False, False, False, False, True]])
    found = contrast.sample_pixels(qualified, torch.rand(3, 3000, generator=torch.Generator().manual_seed(0)))
    counts = torch.bincount(found[0], minlength=5)
    assert counts[[0, 3]].tolist() == [0, 0]
    assert torch.all((counts[[1, 2, 4]] - 1000).abs() < 5 * (3000 * 2 / 9) ** 0.5)
    assert torch.all(found[1] < 5)
    assert torch.all(found[2] == 4)


def test_info_nce_is_eq_4() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors, positive = torch.randn(2, 3, D, generator=generator), torch.randn(2, D, generator=generator)
    keys = torch.nn.functional.normalize(torch.randn(9, D, generator=generator), dim=1)
    index = torch.randint(9, (2, 3, 4), generator=generator)
    found = contrast.info_nce(anchors, positive, keys, index, 0.5)
    for c, i in np.ndindex(2, 3):
        z = anchors[c, i].numpy()
        to_positive = math.exp(cosine(z, positive[c].numpy()) / 0.5)
        to_negatives = sum(math.exp(cosine(z, keys[j].numpy()) / 0.5) for j in index[c, i])
        assert found[c, i].item() == pytest.approx(-math.log(to_positive / (to_positive + to_negatives)), rel=1e-5)


def test_info_nce_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors = torch.randn(2, 3, D, generator=generator, dtype=torch.float64, requires_grad=True)
    positive = torch.randn(2, D, generator=generator, dtype=torch.float64)
    keys = torch.nn.functional.normalize(torch.randn(9, D, generator=generator, dtype=torch.float64), dim=1)
    index = torch.randint(9, (2, 3, 4), generator=generator)
    assert torch.autograd.gradcheck(lambda a: contrast.info_nce(a, positive, keys, index, 0.5), (anchors,))


def arguments(**changes: Any) -> dict[str, Any]:
    return {"n_anchors": 4, "n_negatives": 3, "tau": 0.5, "generator": torch.Generator().manual_seed(5)} | changes


def test_algorithm_1_with_single_candidates_needs_no_sampling() -> None:
    """One anchor and one negative per class: every sample is that pixel, and Eq. 4 has one value."""
    student, teacher = torch.randn(2, B, D, H, W, generator=torch.Generator().manual_seed(1))
    anchors, negatives = torch.zeros(2, B, C, H, W, dtype=torch.bool)
    expected = 0.0
    for c in range(C):
        if c != 3:  # no anchor
            anchors[0, c, 1, c] = True
        if c != 2:  # no negative
            negatives[1, c, 2, c] = True
        if c not in (2, 3):
            z, key = student[0, :, 1, c].numpy(), teacher[1, :, 2, c].numpy()
            to_positive = math.exp(cosine(z, teacher[0, :, 1, c].numpy()) / 0.5)
            expected -= math.log(to_positive / (to_positive + 3 * math.exp(cosine(z, key) / 0.5)))
    bank = MemoryBank([10] * C, D)
    found = contrast.contrastive_loss(student, teacher, anchors, negatives, bank, **arguments())
    assert found.item() == pytest.approx(expected / C, rel=1e-5)
    assert bank.count.tolist() == [1, 1, 0, 1, 1]


def test_gradient_reaches_anchors_only_and_equal_generators_give_equal_losses() -> None:
    probs, labels = scene()
    anchors = anchor_pixels(probs, labels)
    negatives = contrast.labelled_negatives(probs, contrast.members(labels, C), labels != IGNORE, r_low=3)
    student = torch.randn(B, D, H, W, requires_grad=True)
    teacher = torch.randn(B, D, H, W, requires_grad=True)
    losses = [
        contrast.contrastive_loss(
            student, teacher, anchors, negatives, MemoryBank([50] * C, D), **arguments(n_anchors=200)
        )
        for _ in range(2)
    ]
    assert losses[0] == losses[1]
    losses[0].backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert torch.equal(student.grad.abs().sum(1) > 0, anchors.any(1))


def test_no_anchor_and_no_negative_is_zero_with_zero_gradient() -> None:
    student = torch.randn(B, D, H, W, requires_grad=True)
    nothing = torch.zeros(B, C, H, W, dtype=torch.bool)
    bank = MemoryBank([3] * C, D)
    loss = contrast.contrastive_loss(student, student.detach(), nothing, nothing, bank, **arguments())
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None and torch.all(student.grad == 0)
