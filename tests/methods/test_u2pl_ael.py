"""U2PL with AEL: AEL where the contrast is off, and what the contrast and its slips add."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.small import IGNORE, SIDE, C, batch, beside, build, progress
from u2pl.components.pseudo_labels import alpha_t, entropy, unsupervised_loss

torch.set_num_threads(1)
RELEASED: dict[str, Any] = {
    "unsupervised_term": "equalised",
    "confident_drop": "released",
    "dpa": False,
    "alpha_0": 0.4,
    "unlabelled_anchor_entropy": "released",
}


def data(seed: int = 0) -> dict[str, Tensor]:
    return batch(seed) | beside(("labelled_2", "valid", "ids", "chosen"), seed)


def made(name: str = "u2pl_ael", **changes: Any) -> Any:
    method = build(name, **changes).train()
    method.equaliser.bank.classes.copy_(torch.tensor([2, 3]))
    return method


def trained(method: Any, steps: int = 3) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """The losses of some steps, and the state after them."""
    torch.manual_seed(1)
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    found = []
    for step in range(steps):
        now = progress(step, seed=step)
        losses = method(data(step), now)
        optimiser.zero_grad(set_to_none=True)
        losses["loss"].backward()
        optimiser.step()
        method.after_step(now)
        found.append(losses)
    return found, method.state_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ael_teacher_mode": "eval", "teacher_view": "released", "streams_forward": "separate"},
        {"ael_labelled_consistency": True, "ael_partner": "batch"},
        {"ael_teacher_mode": "eval", "teacher_buffers": "averaged", "warmup_epochs": 1},
    ],
)
def test_without_the_contrast_it_is_ael_to_the_bit(changes: dict[str, Any]) -> None:
    off = {"contrastive_weight": 0.0, "unsupervised_term": "equalised", "confident_drop": "none"}
    own, ael = (
        build(name, **(changes | extra)).train() for name, extra in (("u2pl_ael", off), ("ael", dict[str, Any]()))
    )
    (one, state), (two, other) = trained(own), trained(ael)
    for found, expected in zip(one, two, strict=True):
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert all(torch.equal(state[name], value) for name, value in other.items())
    assert {name for name in state if name not in other} == {f"contrast.bank.{x}" for x in ("keys", "count", "head")}


def spied(method: Any) -> dict[str, Any]:
    """The arguments of the consistency loss and of the contrast, as a step calls them."""
    seen: dict[str, Any] = {}
    loss, term, forward = method.equaliser.loss, method.contrast.term, method.contrast.forward

    def noted_loss(logits: Tensor, taught: Any, *rest: Any) -> Tensor:
        seen.setdefault("logits", logits.detach())
        seen.setdefault("taught", taught)
        seen["labels"] = rest[1] if len(rest) > 1 else None
        return loss(logits, taught, *rest)

    def noted_term(student: Tensor, view: Any, labels: Tensor, trusted: Tensor, candidates: Tensor, g: Any) -> Tensor:
        seen.update(trusted=trusted, candidates=candidates, small=labels)
        return term(student, view, labels, trusted, candidates, g)

    def noted(student: Tensor, view: Any, masks: Tensor, gamma: Tensor, low: Tensor, g: Any) -> Tensor:
        seen.update(view=view, gamma=gamma, low=low)
        return forward(student, view, masks, gamma, low, g)

    method.equaliser.loss, method.contrast.term, method.contrast.forward = noted_loss, noted_term, noted
    return seen


@pytest.mark.parametrize("step", [0, 3, 6])
def test_the_released_drop_takes_exactly_the_lowest_alpha_t_share(step: int) -> None:
    method = made(**RELEASED)
    seen = spied(method)
    now = progress(step)
    method(data(), now)
    entropies, labels = seen["view"].entropies, seen["labels"]
    alpha = alpha_t(0.4, now.epoch, now.epochs)
    dropped = labels == IGNORE
    assert dropped.double().mean().item() == pytest.approx(alpha, abs=2 / dropped.numel())
    assert entropies[dropped].max() < entropies[~dropped].min()
    assert torch.equal(labels[~dropped], seen["taught"].labels[~dropped])
    assert torch.equal(seen["view"].labels, labels), "the contrast sees the same labels"


@pytest.mark.parametrize("step", [0, 6])
def test_released_anchors_lie_between_the_two_percentiles(step: int) -> None:
    """Of equal percentiles in the first epoch none is left; later those of alpha_t to 40 %, for a fixed 40."""
    method = made(**RELEASED)
    seen = spied(method)
    now = progress(step)
    method(data(), now)
    view = seen["view"]
    rows = torch.arange(9) * SIDE // 9
    small = view.entropies[:, rows[:, None], rows]
    anchors = seen["trusted"][2:] & (seen["small"][2:] != IGNORE)
    lowest, highest = (np.percentile(view.entropies.numpy(), q) for q in (100 * alpha_t(0.4, now.epoch, 4), 40))
    expected = (small.numpy() >= lowest) & (small.numpy() <= highest)
    np.testing.assert_array_equal(anchors.numpy(), expected)
    assert (expected.any() if step else not expected.any()) and torch.allclose(
        seen["low"], torch.tensor(highest).float()
    )
    np.testing.assert_allclose(seen["gamma"].flatten().numpy(), np.percentile(view.entropies.numpy(), 60), atol=1e-6)


def test_before_its_epoch_there_is_no_contrast() -> None:
    names = {"loss", "supervised", "unsupervised"}
    for epoch, step in ((0, 1), (1, 3), (2, 5)):
        method = made(contrast_start_epoch=2)
        found = method(data(), progress(step))
        late = epoch >= 2
        assert found.keys() == names | ({"contrastive"} if late else set())
        assert bool(method.contrast.bank.count.any()) == late


def test_the_total_is_the_weighted_sum() -> None:
    found = made(contrastive_weight=0.5, contrastive_world_size=4)(data(), progress())
    assert found["contrastive"] > 0
    expected = found["supervised"] + found["unsupervised"] + 0.5 / 4 * found["contrastive"]
    torch.testing.assert_close(found["loss"].detach(), expected)


@pytest.mark.parametrize("term", ["equalised", "both", "reliable"])
def test_the_unsupervised_terms(term: str) -> None:
    """Recomputed from the student's logits and the teacher's mixed labels, with every pixel that AES may drop kept."""
    method = made(unsupervised_term="equalised", ael_sampling=False, alpha_0=0.4)
    other = made(unsupervised_term=term, ael_sampling=False, alpha_0=0.4, eta=0.5)
    seen = spied(method)
    method(data(), progress())
    found = other(data(), progress())["unsupervised"]
    view, taught = seen["view"], seen["taught"]
    logits = F.interpolate(seen["logits"], size=(SIDE, SIDE), mode="bilinear", align_corners=True)
    gamma = float(np.percentile(view.entropies.numpy(), 60))
    assert seen["gamma"].flatten().tolist() == pytest.approx([gamma] * 2, abs=1e-6)
    reliable = view.entropies < gamma
    if term == "reliable":
        expected = unsupervised_loss(logits, torch.where(reliable, taught.labels, IGNORE), 0.5, IGNORE)
    else:
        weights = taught.confidence**2 * (reliable if term == "both" else 1)
        losses = weights * F.cross_entropy(logits, taught.labels, reduction="none")
        expected = 0.5 * (losses.sum((1, 2)) / weights.sum((1, 2))).mean()
    torch.testing.assert_close(found, expected)


def test_one_view_gives_labels_entropies_probabilities_and_representations_mixed_alike() -> None:
    method = made()
    teacher, student = copy.deepcopy(method.teacher.network), copy.deepcopy(method.student)
    seen, images = spied(method), []
    method.student.register_forward_pre_hook(lambda _, inputs: images.append(inputs[0]))
    given = data()
    method(given, progress())
    mixed = images[0][2:]
    output = teacher(torch.cat([images[0][:2], given["image_u"], given["image_p"]]))
    boxes = (mixed == given["image_p"]).all(1)
    full = F.interpolate(output["logits"], size=(SIDE, SIDE), mode="bilinear", align_corners=True).softmax(1)
    entropies = torch.where(boxes, entropy(full[4:]), entropy(full[2:4]))
    rows = torch.arange(9) * SIDE // 9
    small = boxes[:, rows[:, None], rows][:, None]
    view = seen["view"]
    torch.testing.assert_close(view.entropies, entropies)
    assert torch.equal(view.labels, torch.where(boxes, full[4:].argmax(1), full[2:4].argmax(1)))
    for values, expected in (
        (view.probs, output["logits"].softmax(1)),
        (view.representation, output["representation"]),
    ):
        torch.testing.assert_close(values[:2], expected[:2])
        torch.testing.assert_close(values[2:], torch.where(small, expected[4:], expected[2:4]))
    assert student(images[0])["logits"].shape[1] == C and not torch.equal(view.probs[2:], view.probs[:2])


def test_the_released_view_takes_representations_from_a_further_pass() -> None:
    method = made(teacher_view="released", ael_teacher_mode="eval", streams_forward="separate")
    teacher = copy.deepcopy(method.teacher.network)
    seen, images = spied(method), []
    method.student.register_forward_pre_hook(lambda _, inputs: images.append(inputs[0]))
    method(data(), progress())
    expected = torch.cat([teacher(part)["representation"] for part in images])
    torch.testing.assert_close(seen["view"].representation, expected)
    assert int(method.teacher.network.encoder[1].num_batches_tracked) == 2
