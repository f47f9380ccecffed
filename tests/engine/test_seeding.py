"""Seeds, devices, and the settings that a training borrows."""

import pytest
import torch

from u2pl.engine.seeding import choose_device, deterministic, random_state, restore_random_state, seed_everything
from u2pl.errors import UserError

CPU = torch.device("cpu")


def test_equal_seeds_give_equal_numbers_from_both_generators() -> None:
    def numbers(seed: int) -> tuple[list[float], list[float]]:
        generator = seed_everything(seed, CPU)
        return torch.rand(4).tolist(), torch.rand(4, generator=generator).tolist()

    assert numbers(3) == numbers(3)
    assert numbers(3) != numbers(4)
    assert numbers(3)[0] != numbers(3)[1]


def test_random_state_round_trip() -> None:
    generator = seed_everything(0, CPU)
    state = random_state(generator)
    first = torch.rand(3), torch.rand(3, generator=generator)
    restore_random_state(state, generator)
    assert torch.equal(first[0], torch.rand(3))
    assert torch.equal(first[1], torch.rand(3, generator=generator))


def test_settings_come_back() -> None:
    threads = torch.get_num_threads()

    def failing() -> None:
        with deterministic(2):
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.get_num_threads() == 2
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        failing()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == threads


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("auto", gpus=0).type == "cpu"
    assert choose_device("auto", gpus=1).type == "cuda"
    assert choose_device("cpu", gpus=1).type == "cpu"
    with pytest.raises(UserError, match="1 GPUs"):
        choose_device("cuda:1", gpus=1)
    for name in ("gpu", "meta"):
        with pytest.raises(UserError, match=f"found '{name}'"):
            choose_device(name, gpus=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="device cpu to go without"):
        choose_device("auto", gpus=1)
