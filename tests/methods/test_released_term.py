"""The contrastive term against numbers that the authors' public functions gave, where their folder is at hand."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.methods.released_oracle import (
    Seen,
    Share,
    Term,
    contrastive_loss,
    new_queues,
    push,
)
from u2pl.components import contrast as contrast_module
from u2pl.components.unreliable_contrast import UnreliableContrast, View
from u2pl.experiments.read import read_yaml
from u2pl.experiments.schema import Preset
from u2pl.experiments.settings import U2PL

torch.set_num_threads(1)
REAL = Path(os.environ.get("U2PL_REAL_DATA", Path(__file__).parents[3] / "shared/data/real"))
FILES = sorted((REAL.parent / "released-term").glob("*.npz"))
# A file gives steps of one GPU each; what its arrays are is in the README beside it.
Fixture = dict[str, Any]


@dataclass
class Found:
    """What a term gives in one step."""

    loss: Tensor  # before any weight
    grad: Tensor  # (2B, D, S, S), with respect to the student's representations
    keys: list[Tensor]  # (count, D) per class, oldest first


def oracle_term(fixture: Fixture) -> Iterator[Found]:
    """Step by step, by the loops of `released_oracle`."""
    term = term_of(fixture)
    queues, seen = new_queues(term), Seen()
    for step in range(len(fixture["loss"])):
        share = share_of(fixture, step)
        share.student.requires_grad_()
        push(share, queues, term, seen)
        draws = fixture["anchor_draws"][step], fixture["negative_draws"][step]
        loss = contrastive_loss(share, queues, *draws, term, seen)
        loss.backward()
        none = share.teacher.new_empty(0, share.teacher.shape[1])
        keys = [torch.cat([none, *(key[None] for key in queue)]) for queue in queues]
        yield Found(loss.detach(), share.student.grad, keys)


def term_of(fixture: Fixture) -> Term:
    return Term(*(fixture[name] for name in ("capacities", "r_low", "r_high", "delta_p", "tau")))


def share_of(fixture: Fixture, step: int) -> Share:
    names = ("student", "teacher", "probs", "labels", "pseudo_labels", "low", "high")
    return Share(**{name: fixture[name][step].clone() for name in names})


def suite_term(fixture: Fixture) -> Iterator[Found]:
    """Step by step, by the suite's component under the released preset; keys as the bank holds them, of length one."""
    preset = Preset.model_validate(read_yaml(Path(__file__).parents[2] / "params/fidelity.yaml")["released"])
    background, size, *_ = fixture["capacities"]
    sizes = {"bank_size_background": background, "bank_size": size, "group_size": fixture["labels"].shape[1]}
    own = {"anchors_per_class": fixture["M"], "negatives_per_anchor": fixture["N"]}
    own |= {name: fixture[name] for name in ("r_low", "r_high", "delta_p", "tau")}
    settings = U2PL(**preset.of(U2PL, "pascal") | sizes | own)
    n_classes, channels = len(fixture["capacities"]), fixture["teacher"].shape[2]
    contrast = UnreliableContrast(settings, n_classes, 255, channels).double()
    for step in range(len(fixture["loss"])):
        draws = [fixture[f"{name}_draws"][step][None] for name in ("anchor", "negative")]

        def uniform(shape: tuple[int, ...], *_: Any, draws: list[Tensor] = draws) -> Tensor:
            return draws.pop(0).view(shape)

        student = fixture["student"][step].clone().requires_grad_()
        nothing = torch.empty(0)
        view = View(nothing, nothing, fixture["probs"][step], fixture["teacher"][step])
        labels = torch.cat([fixture["labels"][step], fixture["pseudo_labels"][step]])
        pixels = labels, fixture["low"][step], fixture["high"][step]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(contrast_module, "uniform", uniform)
            loss = contrast.term(student, view, *pixels, torch.Generator())
        loss.backward()
        assert not draws
        yield Found(loss.detach(), student.grad, [contrast.bank.held(c) for c in range(n_classes)])


def load(path: Path) -> Fixture:
    """Tensors by name, labels as int64, and numbers as Python's."""
    with np.load(path) as arrays:
        found = {name: arrays[name].tolist() if arrays[name].ndim == 0 else arrays[name] for name in arrays}
    found["capacities"] = found["capacities"].tolist()
    found |= {name: torch.from_numpy(value) for name, value in found.items() if isinstance(value, np.ndarray)}
    found |= {name: found[name].long() for name in ("labels", "pseudo_labels")}
    return found | {"negative_draws": found["negative_draws"].unflatten(2, (found["M"], found["N"]))}


@pytest.mark.skipif(not FILES, reason="needs the fixtures released-term beside the real data")
@pytest.mark.parametrize("term", [oracle_term, suite_term])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_term_is_the_released_one(path: Path, term: Callable[[Fixture], Iterator[Found]]) -> None:
    fixture = load(path)
    steps = list(term(fixture))
    assert len(steps) == len(fixture["loss"])
    for step, found in enumerate(steps):
        close = {"rtol": 1e-12, "atol": 1e-12}
        torch.testing.assert_close(found.loss, fixture["loss"][step], **close)
        torch.testing.assert_close(found.grad, fixture["grad"][step], **close)
        assert found.grad.any()
        assert [len(keys) for keys in found.keys] == fixture["bank_count"][step].tolist()
        for keys, stored in zip(found.keys, fixture["bank_keys"][step], strict=True):
            expected = stored[: len(keys)]  # not normalised
            expected = F.normalize(expected, dim=1) if term is suite_term else expected
            torch.testing.assert_close(keys, expected, **close)
