"""Trainings by the released preset are those of an oracle, written from the prose about the released code alone.

Ten semi-supervised steps (on VOC after a warm-up) in float64, with whole shares on one rank, several on one, and one
spread over two. `tests/methods/test_released_term.py` checks the oracle's contrastive term against published code.
"""

import copy
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.methods.released_oracle import IGNORE, Numbers, Oracle, Seen, Term
from u2pl.components import supervised
from u2pl.components.ohem import ohem_loss
from u2pl.engine.optimisers import poly
from u2pl.experiments.read import read_yaml
from u2pl.experiments.schema import Preset
from u2pl.experiments.settings import SETTINGS
from u2pl.methods import Progress, Setup, build_method
from u2pl.ranks.collectives import share, world_size
from u2pl.ranks.layers import data_parallel, span_ranks

torch.set_num_threads(1)

OnRanks = Callable[[int, Callable[[], Any]], list[Any]]
FIDELITY = Path(__file__).parents[2] / "params/fidelity.yaml"
C, BATCH, HEIGHT, WIDTH = 7, 8, 33, 29
STEPS_PER_EPOCH, SEMI_SUPERVISED, RATE, MIN_KEPT = 2, 10, 0.05, 500
OCCURRING = [0, 1, 3, 4, 6]  # in the masks: others shift the place of a class in the list of present ones
# Sizes of the test; everything else is the preset's.
SIZES = {"r_low": 1, "r_high": 4, "anchors_per_class": 6, "negatives_per_anchor": 5, "alpha_0": 0.4}
SIZES |= {"bank_size": 20, "bank_size_background": 30}
RELEASED = {
    "pascal": {"group": 4, "warmup_epochs": 1, "gpus": 4, "ohem": False},
    "cityscapes": {"group": 2, "warmup_epochs": 0, "gpus": 8, "ohem": True},
}


class Network(nn.Module):
    """Of stride 2, with batch norm in the encoder and before the representation.

    Every output depends on the whole image, so that CutMix makes no two pixels with the same entropy.
    """

    def __init__(self, auxiliary: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.decoder = nn.Sequential(nn.Conv2d(8, 12, 3, 1, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.pooled = nn.Conv2d(8, 12, 1)
        self.head = nn.Conv2d(12, C, 1)
        self.representation = nn.Sequential(nn.Conv2d(12, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1))
        self.auxiliary = nn.Conv2d(8, C, 1) if auxiliary else None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        early = self.encoder(images)
        late = self.decoder(early) + self.pooled(early.mean((2, 3), keepdim=True))
        output = {"logits": 2 * self.head(late), "representation": self.representation(late)}
        return output | ({"auxiliary": 2 * self.auxiliary(early)} if self.auxiliary else {})


@cache  # once before the fork: all ranks start from the same bits
def trained(auxiliary: bool) -> nn.Module:
    """A network that knows the classes a little: an untrained one predicts two or three."""
    torch.manual_seed(0)
    network = Network(auxiliary).double()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(25):
        images, masks = batch(1000 + step)["image_l"], batch(1000 + step)["mask_l"]
        output = network(images)
        logits = [F.interpolate(value, masks.shape[1:]) for value in output.values() if value.shape[1] == C]
        optimiser.zero_grad()
        sum(F.cross_entropy(value, masks, ignore_index=IGNORE) for value in logits).backward()
        optimiser.step()
    return network


def networks(kind: str) -> list[nn.Module]:
    """A student and a teacher that differ, in float64."""
    student = copy.deepcopy(trained(RELEASED[kind]["ohem"]))
    teacher = copy.deepcopy(student).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in teacher.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return [student, teacher]


def batch(step: int) -> dict[str, Tensor]:
    """Rectangles of the classes' colours under noise.

    Ignored: a margin of every second image, all of the third one, and in odd steps all of the seventh one, which is the
    first of a share on Cityscapes.
    """
    generator = torch.Generator().manual_seed(step)
    colours = torch.randn(C, 3, generator=torch.Generator().manual_seed(100), dtype=torch.float64)
    drawn = torch.randint(len(OCCURRING), (2 * BATCH, 5), generator=generator)
    labels = torch.tensor(OCCURRING)[drawn].tolist()
    masks = torch.empty(2 * BATCH, HEIGHT, WIDTH, dtype=torch.int64)
    for mask, (ground, *others) in zip(masks, labels, strict=True):
        mask[:] = ground
        for label in others:
            top, left = (int(torch.randint(size - 10, (), generator=generator)) for size in (HEIGHT, WIDTH))
            mask[top : top + 14, left : left + 12] = label
    noise = torch.randn(2 * BATCH, HEIGHT, WIDTH, 3, generator=generator, dtype=torch.float64)
    images = (1.5 * colours[masks] + noise).permute(0, 3, 1, 2).contiguous()
    masks = masks[:BATCH].clone()
    masks[::2, :3] = masks[1::2, :, :2] = masks[2] = IGNORE
    if step % 2:
        masks[6] = IGNORE
    return {"image_l": images[:BATCH], "image_u": images[BATCH:], "mask_l": masks}


def progresses(kind: str) -> list[Progress]:
    epochs = RELEASED[kind]["warmup_epochs"] + SEMI_SUPERVISED // STEPS_PER_EPOCH
    generator = torch.Generator().manual_seed(1)
    steps = epochs * STEPS_PER_EPOCH
    return [Progress(step // STEPS_PER_EPOCH, epochs, step, steps, generator) for step in range(steps)]


def train(
    kind: str,
    parameters: dict[str, nn.Parameter],
    forward: Callable[[dict[str, Tensor], Progress], dict[str, Tensor]],
    after_step: Callable[[Progress], None],
) -> dict[str, Tensor]:
    """The losses of every step, by step and name."""
    optimiser = torch.optim.SGD(parameters.values(), lr=RATE, momentum=0.9, weight_decay=1e-3)
    found = {}
    for progress in progresses(kind):
        optimiser.param_groups[0]["lr"] = RATE * poly(progress.step, progress.steps, 0.9)
        optimiser.zero_grad(set_to_none=True)
        losses = forward(batch(progress.step), progress)
        losses["loss"].backward()
        optimiser.step()
        after_step(progress)
        found |= {f"{progress.step} {name}": value.detach() for name, value in losses.items()}
    return found


def state(student: nn.Module, teacher: nn.Module, keys: list[Tensor]) -> dict[str, Tensor]:
    """What is left at the end: parameters, batch-norm statistics, and the keys of each class."""
    nets = {"student": student, "teacher": teacher}.items()
    found = {f"{name} {key}": value.detach() for name, net in nets for key, value in net.state_dict().items()}
    return found | {f"bank {c}": value for c, value in enumerate(keys)}


def by_oracle(kind: str) -> tuple[dict[str, Tensor], Seen]:
    term = Term([SIZES["bank_size_background"], *[SIZES["bank_size"]] * (C - 1)], SIZES["r_low"], SIZES["r_high"])
    sizes = {"anchors": SIZES["anchors_per_class"], "negatives": SIZES["negatives_per_anchor"]}
    numbers = Numbers(term=term, alpha_0=SIZES["alpha_0"], min_kept=MIN_KEPT, **sizes, **RELEASED[kind])
    oracle = Oracle(*networks(kind), numbers)
    losses = train(
        kind,
        dict(oracle.student.named_parameters()),
        lambda batch, progress: oracle.step(batch, progress.epoch, progress.epochs, progress.generator),
        lambda progress: oracle.after_step(progress.epoch, progress.step, STEPS_PER_EPOCH),
    )
    keys = [
        F.normalize(torch.stack([*queue]), dim=1) if queue else torch.empty(0, 6).double() for queue in oracle.queues
    ]
    return losses | state(oracle.student, oracle.teacher, keys), oracle.seen


def by_suite(kind: str) -> dict[str, Tensor]:
    """The preset's method, on this rank's share of the batches."""
    preset = Preset.model_validate(read_yaml(FIDELITY)["released"])
    settings = SETTINGS["u2pl"](**preset.of(SETTINGS["u2pl"], kind) | SIZES)
    method = build_method("u2pl", settings, Setup(lambda: Network(RELEASED[kind]["ohem"]), C, IGNORE)).double()
    for network, initial in zip((method.student, method.teacher.network), networks(kind), strict=True):
        network.load_state_dict(initial.state_dict())
    span_ranks(method, BATCH // world_size(), torch.device("cpu"))
    forward = data_parallel(method)
    losses = train(
        kind,
        {name: p for name, p in method.named_parameters() if p.requires_grad},
        lambda batch, progress: forward({name: share(value) for name, value in batch.items()}, progress),
        method.after_step,
    )
    keys = [method.contrast.bank.held(c) for c in range(C)]
    return losses | state(method.student, method.teacher.network, keys)


@pytest.fixture(scope="module", autouse=True)
def few_hard_pixels() -> Any:
    """The published minimum is more than these images have; the forked ranks inherit the change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervised, "ohem_loss", partial(ohem_loss, min_kept=MIN_KEPT))
        yield


@pytest.fixture(scope="module")
def oracles() -> dict[str, tuple[dict[str, Tensor], Seen]]:
    return {kind: by_oracle(kind) for kind in RELEASED}


@pytest.mark.parametrize("kind", RELEASED)
def test_the_data_reach_every_branch(kind: str, oracles: dict[str, tuple[dict[str, Tensor], Seen]]) -> None:
    found, seen = oracles[kind]
    capacities = [SIZES["bank_size_background"], *[SIZES["bank_size"]] * (C - 1)]
    gone_round = [c for c in range(C) if seen.pushed[c] > capacities[c]]
    assert len(gone_round) >= 4, seen.pushed
    assert any(present != list(range(len(present))) for present in seen.present)
    assert {anchors == bank for anchors, bank in seen.contributing} == {True, False}
    assert seen.unmet and len({*seen.mixed}) == 2
    assert len({*seen.by_count}) == (2 if RELEASED[kind]["ohem"] else 0)
    last = progresses(kind)[-1].step
    assert found[f"{last} supervised"] < found["0 supervised"] and found[f"{last} contrastive"] > 0
    assert min(len(present) for present in seen.present) <= 1 or kind == "pascal"


@pytest.mark.parametrize("world", [1, *(pytest.param(world, marks=pytest.mark.slow) for world in (2, 4))])
@pytest.mark.parametrize("kind", RELEASED)
def test_ten_steps_of_the_preset_are_those_of_the_oracle(
    kind: str, world: int, oracles: dict[str, tuple[dict[str, Tensor], Seen]], on_ranks: OnRanks
) -> None:
    expected, _ = oracles[kind]
    for found in on_ranks(world, lambda: by_suite(kind)):
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-12, msg=lambda m, key=key: f"{key}: {m}")
