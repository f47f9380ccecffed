"""Recipe switches for speed: each gives the reference's numbers within what it rounds. Most run on the CPU as well."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from u2pl.engine.seeding import deterministic
from u2pl.engine.train import Trainer
from u2pl.experiments.suite import RunSpec

Spec = Callable[..., RunSpec]
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
CPU = torch.device("cpu")
ALL = {"precision": "bf16", "tf32": True, "channels_last": True, "fused_sgd": True}


@pytest.fixture
def epoch(prepared: Path, split: Path, make_spec: Spec) -> Callable[..., Trainer]:
    """One epoch of three steps, or more."""

    def run(device: torch.device = CPU, method: str = "u2pl", count: int = 1, **recipe: Any) -> Trainer:
        spec = make_spec(method, settings={"warmup_epochs": 0}, lr=0.005, **recipe)
        with deterministic(1, tf32=spec.recipe.tf32):
            trainer = Trainer(spec, prepared, split, None, device)
            for _ in range(count):
                trainer.run_epoch()
        return trainer

    return run


def losses(trainer: Trainer) -> dict[str, float]:
    return {name: trainer.history[0][name] for name in ("loss", "supervised", "unsupervised", "contrastive")}


@pytest.mark.parametrize(
    ("switch", "tolerance"),
    [({"channels_last": True}, 1e-3), ({"fused_sgd": True}, 1e-3), ({"precision": "bf16"}, 0.1)],
)
def test_a_switch_rounds_and_no_more(switch: dict[str, Any], tolerance: float, epoch: Callable[..., Trainer]) -> None:
    reference, other = epoch(), epoch(**switch)
    assert losses(other) == pytest.approx(losses(reference), rel=tolerance)
    assert all(parameter.dtype == torch.float32 for parameter in other.method.parameters())
    if "precision" in switch:
        assert losses(other) != losses(reference)
    if "channels_last" in switch:
        for network in (other.method.student, other.method.teacher.network):
            weight = network.encoder.layer1[0].conv1.weight  # type: ignore[union-attr]
            assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    if "fused_sgd" in switch:
        assert other.optimisers[0].param_groups[0]["fused"]


def test_what_only_moves_data_changes_no_bit(epoch: Callable[..., Trainer]) -> None:
    """Kept workers and pinned memory, over two epochs: the second one reuses the workers."""
    one = epoch(count=2)
    other = epoch(count=2, workers=2, persistent_workers=True, pinned_memory=False)
    pairs = zip(one.method.state_dict().values(), other.method.state_dict().values(), strict=True)
    assert all(torch.equal(value, same) for value, same in pairs)


def test_tf32_is_declared_and_the_setting_before_comes_back() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    for wanted in (True, False):
        with deterministic(1, tf32=wanted):
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (wanted, wanted)
        assert (matmul.allow_tf32, cudnn.allow_tf32) == before


def test_switches_and_the_machine_make_other_runs_only_where_numbers_change(make_spec: Spec) -> None:
    science = make_spec("u2pl").science()
    for name, value in ALL.items():
        assert name not in science["recipe"]
        assert make_spec("u2pl", **{name: value}).science()["recipe"] == science["recipe"] | {name: value}
    machine = {"gpus": 4, "workers": 3, "persistent_workers": True, "pinned_memory": False, "save_every_minutes": 1}
    assert make_spec("u2pl", **machine).science() == science


@cuda
def test_cuda_agrees_with_the_cpu(epoch: Callable[..., Trainer]) -> None:
    # Without dropout, which draws from the device's generator.
    network = {"encoder": "resnet18", "width": 8, "channels": 8, "representation": 8, "dropout": 0.0}
    one, other = (epoch(torch.device(name), "suponly", network=network) for name in ("cpu", "cuda"))
    assert other.history[0]["loss"] == pytest.approx(one.history[0]["loss"], rel=1e-3)


@cuda
def test_all_switches_on_a_gpu(epoch: Callable[..., Trainer]) -> None:
    device = torch.device("cuda")
    reference, other = epoch(device), epoch(device, **ALL)
    assert losses(other) == pytest.approx(losses(reference), rel=0.1)
    assert other.optimisers[0].param_groups[0]["fused"]
