"""The bank of AEL, step by step against NumPy."""

import numpy as np
import pytest
import torch

from u2pl.components.confidence_bank import ConfidenceBank, one_of

torch.set_num_threads(1)


def bank() -> ConfidenceBank:
    torch.manual_seed(0)
    return ConfidenceBank(4, 7, 3)


def test_confidences_move_by_eq_7_and_unknown_ones_stay() -> None:
    made = bank()
    before = made.confidence.numpy().copy()
    assert ((before >= 0) & (before < 1)).all()
    new, known = torch.tensor([0.5, 0.0, 1.0, 0.25]), torch.tensor([True, False, True, True])
    expected = before
    for _ in range(3):
        made.update(new, known, 0.9)
        expected = np.where(known, 0.9 * expected + 0.1 * new.numpy(), expected)
    np.testing.assert_allclose(made.confidence.numpy(), expected, atol=1e-6)
    assert made.confidence[1] == before[1]


def test_of_an_image_noted_twice_the_last_counts() -> None:
    made, places = bank(), torch.tensor([2, 5, 2, 6, 5, 2])
    held = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    made.flags[:, 0] = True
    made.note(places, held)
    expected = np.zeros((4, 7), dtype=bool)
    expected[:, 0] = True
    for place, row in zip(places.tolist(), held.numpy(), strict=True):
        expected[:, place] = row
    np.testing.assert_array_equal(made.flags.numpy(), expected)


def test_the_next_images_hold_the_drawn_class_or_are_any() -> None:
    made = bank()
    made.confidence.copy_(torch.tensor([0.1, 0.9, 0.5, 0.3]))
    made.flags[1, [2, 4, 6]] = True
    made.flags[2, 5] = True
    seen: dict[int, set[int]] = {c: set() for c in range(4)}
    counts = np.zeros(4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        made.choose(torch.rand(2, 3, generator=generator))
        for c, image in zip(made.classes.tolist(), made.chosen.tolist(), strict=True):
            seen[c].add(image)
            counts[c] += 1
    assert seen == {0: set(range(7)), 1: {2, 4, 6}, 2: {5}, 3: set(range(7))}
    rates = np.exp(1 - made.confidence.numpy())
    np.testing.assert_allclose(counts / counts.sum(), rates / rates.sum(), atol=0.02)


def test_before_the_first_step_any_image_may_be_chosen() -> None:
    made = {int(image) for seed in range(40) for image in (torch.manual_seed(seed), ConfidenceBank(4, 7, 3))[1].chosen}
    assert made == set(range(7))


def test_a_bank_that_chooses_nothing_holds_confidences_alone() -> None:
    assert ConfidenceBank(4).state_dict().keys() == {"confidence"}
    assert bank().state_dict().keys() == {"confidence", "flags", "chosen", "classes"}
    with pytest.raises(AssertionError, match="number of unlabelled images"):
        ConfidenceBank(4, 0, 3)


def test_one_of_a_row_without_a_qualified_place_is_any() -> None:
    qualified = torch.tensor([[False, True, False, True], [False] * 4])
    draws = torch.tensor([[0.0, 0.0], [0.49, 0.3], [0.51, 0.6], [0.99, 0.99]])
    assert [one_of(qualified, draw).tolist() for draw in draws] == [[1, 0], [1, 1], [3, 2], [3, 3]]
