from collections import deque

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from u2pl.components.memory_bank import MemoryBank

torch.set_num_threads(1)
D = 3


def compare(bank: MemoryBank, queues: list[deque]) -> None:
    assert bank.count.tolist() == [len(queue) for queue in queues]
    for label, queue in enumerate(queues):
        expected = torch.stack(list(queue)) if queue else torch.zeros(0, D)
        assert torch.equal(bank.held(label), expected)


@settings(max_examples=60, deadline=None)
@given(
    capacities=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    pushes=st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 0.8, 1.0])), max_size=8
    ),
)
def test_holds_what_a_deque_holds(capacities: list[int], pushes: list[tuple[int, int, float]]) -> None:
    bank = MemoryBank(capacities, D)
    queues: list[deque] = [deque(maxlen=capacity) for capacity in capacities]
    for pixels, seed, share in pushes:
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(pixels, D, generator=generator)
        qualified = torch.rand(len(capacities), pixels, generator=generator) < share
        bank.push(features, qualified)
        for queue, chosen in zip(queues, qualified, strict=True):
            queue.extend(F.normalize(features, dim=1)[chosen])
        compare(bank, queues)


def test_rows_are_the_held_vectors_from_the_oldest_on() -> None:
    bank = MemoryBank([4, 6, 5], D)
    features = torch.randn(6, D)
    bank.push(features, torch.tensor([[True] * 6, [True] * 3 + [False] * 3, [False] * 6]))
    classes, places = torch.arange(3)[:, None], torch.arange(4).expand(3, 4)
    index = bank.rows(classes, places)
    # of a ring that has gone round, and of one that has not: oldest first
    for label, pixels in enumerate(([2, 3, 4, 5], [0, 1, 2])):
        assert torch.equal(bank.keys[index[label, : len(pixels)]], F.normalize(features, dim=1)[pixels])
    assert torch.all((index[2] >= 10) & (index[2] < 15))  # empty: in range


def test_a_checkpoint_continues_the_queue() -> None:
    first, second = MemoryBank([3, 3], D), MemoryBank([3, 3], D)
    everything = torch.ones(2, 2, dtype=torch.bool)
    first.push(torch.randn(2, D), everything)
    second.load_state_dict(first.state_dict())
    more = torch.randn(2, D)
    for bank in (first, second):
        bank.push(more, everything)
    assert torch.equal(first.held(1), second.held(1))
    assert set(first.state_dict()) == {"keys", "count", "head"}


def test_a_bank_that_is_not_saved_starts_empty() -> None:
    first, second = MemoryBank([3], D, saved=False), MemoryBank([3], D, saved=False)
    first.push(torch.randn(2, D), torch.ones(1, 2, dtype=torch.bool))
    assert first.state_dict() == {}
    second.load_state_dict(first.state_dict())
    assert second.count.tolist() == [0]


def test_clear_and_bad_capacities() -> None:
    bank = MemoryBank([2], D)
    bank.push(torch.randn(5, D), torch.ones(1, 5, dtype=torch.bool))
    bank.clear()
    assert bank.held(0).shape == (0, D)
    for capacities in ([], [3, 0]):
        with pytest.raises(ValueError):
            MemoryBank(capacities, D)
