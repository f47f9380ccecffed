import pytest
import torch

from u2pl.components.contrast import sample
from u2pl.components.contrast_released import negatives_of_own_class, positional_banks
from u2pl.components.memory_bank import MemoryBank

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ({0, 7, 12, 15}, [0, 7, 12, 15]),
        ({1, 2, 5}, [1, 2, 5]),
        (set(range(21)), list(range(21))),
        (set(), []),
    ],
)
def test_the_k_th_class_meets_the_bank_of_the_k_th_present_one(present: set[int], expected: list[int]) -> None:
    found = positional_banks(torch.tensor([c in present for c in range(21)]))
    assert found.tolist() == expected + [-1] * (21 - len(expected))


def test_negatives_keep_only_pixels_of_the_same_label() -> None:
    negatives = torch.tensor([True, True, False, False]).view(1, 4, 1, 1)
    own = torch.tensor([True, False, True, False]).view(1, 4, 1, 1)
    assert negatives_of_own_class(negatives, own).flatten().tolist() == [True, False, False, False]


def test_anchors_meet_the_bank_of_their_twin_or_none() -> None:
    bank = MemoryBank([2, 3, 4], 5)
    bank.push(torch.randn(4, 5), torch.tensor([[False] * 4, [True] * 4, [True] * 4]))
    anchors, twins = torch.ones(1, 3, 2, 2, dtype=torch.bool), torch.tensor([2, 0, -1])
    found = sample(anchors, bank, twins, 6, 20, torch.Generator().manual_seed(0))
    assert found.valid.tolist() == [True, False, False]  # its twin's bank is full; it is empty; there is none
    assert set(found.keys[0].flatten().tolist()) == {5, 6, 7, 8}
    anchors[:, 0] = False
    assert not sample(anchors, bank, twins, 6, 20, torch.Generator()).valid.any()
