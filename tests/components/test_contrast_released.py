import pytest
import torch

from u2pl.components.contrast import sample
from u2pl.components.contrast_released import negatives_of_own_class, positional_banks, stacked_members
from u2pl.components.memory_bank import MemoryBank

torch.set_num_threads(1)


@pytest.mark.parametrize("group", [1, 2, 3, 4])
def test_the_first_image_of_a_group_has_the_classes_of_all_and_the_others_none(group: int) -> None:
    """Pixel by pixel from the description: what the group has there, ignored being 0, none where the first is."""
    labels = torch.randint(4, (4, 5, 6), generator=torch.Generator().manual_seed(0))
    labels[torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.3] = 255
    found = stacked_members(labels, 4, 255, group)
    for i in range(4):
        for y in range(5):
            for x in range(6):
                together = labels[i : i + group, y, x].tolist() if i % group == 0 else []
                union = {0 if label == 255 else label for label in together}
                expected = set() if together and together[0] == 255 else union
                assert {c for c in range(4) if found[i, c, y, x]} == expected
    if group == 1:
        assert torch.equal(found, labels[:, None] == torch.arange(4).view(1, -1, 1, 1))


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


def test_every_group_has_positions_of_its_own() -> None:
    present = torch.tensor([[True, False, True], [False, True, False]])
    assert positional_banks(present).tolist() == [[0, 2, -1], [1, -1, -1]]


def test_anchors_meet_the_bank_of_their_twin_or_none() -> None:
    bank = MemoryBank([2, 3, 4], 5)
    bank.push(torch.randn(4, 5), torch.tensor([[False] * 4, [True] * 4, [True] * 4]))
    anchors, twins = torch.ones(2, 3, 2, 2, dtype=torch.bool), torch.tensor([[2, 0, -1]])
    groups = [torch.tensor([0, 1])]
    found = sample(anchors, groups, bank, twins, 6, 20, torch.Generator().manual_seed(0))
    assert found.valid.tolist() == [[True, False, False]]  # its twin's bank is full; it is empty; there is none
    assert set(found.keys[0, 0].flatten().tolist()) == {5, 6, 7, 8}
    anchors[:, 0] = False
    assert not sample(anchors, groups, bank, twins, 6, 20, torch.Generator()).valid.any()
