"""The contrastive term in both readings, against two oracles that follow the text line by line.

The networks' outputs are given tensors, so that every class, rank and entropy is under control; the sampled indices are
those the method drew. `Queues` are plain lists. Nothing here calls the functions under test.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from u2pl.components import contrast
from u2pl.components.unreliable_contrast import View
from u2pl.experiments.settings import SETTINGS
from u2pl.methods import Progress, Setup, build_method

torch.set_num_threads(1)
C, D, N, SIDE, IGNORE, PRESENT = 21, 6, 2, 9, 255, (0, 7, 12, 15)
ALPHA, TAU, DELTA_P, R_LOW, R_HIGH = 0.4, 0.5, 0.3, 3, 20
PIXELS = list(np.ndindex(2 * N, SIDE, SIDE))
RELEASED = {
    "anchor_class_indexing": "released",
    "negative_label_mask": "released",
    "unlabelled_anchor_entropy": "released",
    "positive_filter": "released",
    "contrastive_normaliser": "released",
}
Queues = list[list[np.ndarray]]


class Blank(nn.Module):
    """Has the shape of a network; the tests give its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, C, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(images), "representation": images.new_zeros(len(images), D, 2, 2)}


@dataclass
class Scene:
    masks: Tensor  # (N, SIDE, SIDE)
    labels: Tensor  # pseudo-labels, of another view than probs
    entropies: Tensor
    probs: Tensor  # (2 N, C, SIDE, SIDE)
    teacher: Tensor
    student: Tensor

    @property
    def view(self) -> View:
        return View(self.labels, self.entropies, self.probs, self.teacher)

    @property
    def output(self) -> dict[str, Tensor]:
        return {"logits": self.probs.roll(1, 1), "representation": self.student}


def scene(seed: int = 0, present: tuple[int, ...] = PRESENT) -> Scene:
    """Labels are of the present classes only; probabilities favour them, often with another of them in front."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.tensor(present)
    labels = classes[torch.randint(len(classes), (2 * N, SIDE, SIDE), generator=generator)]
    logits = torch.randn(2 * N, C, SIDE, SIDE, generator=generator)
    favoured = nn.functional.one_hot(labels, C).movedim(-1, 1) * torch.rand(2 * N, 1, SIDE, SIDE, generator=generator)
    probs = (logits + 5 * favoured).softmax(1)
    masks = labels[:N].clone()
    masks[0, :2] = IGNORE
    entropies = -(probs[N:] * probs[N:].log()).sum(1)
    teacher, student = torch.randn(2, 2 * N, D, SIDE, SIDE, generator=generator)
    return Scene(masks, labels[N:], entropies, probs, teacher, student.requires_grad_())


def build(**changes: Any) -> Any:
    base: dict[str, Any] = {"alpha_0": ALPHA, "anchors_per_class": 5, "negatives_per_anchor": 7, "bank_size": 10**4}
    return build_method("u2pl", SETTINGS["u2pl"](**(base | changes)), Setup(Blank, C, IGNORE))


# Images of each group, in the order in which their keys enter the bank.
TOGETHER, APART = [[0, 1, 2, 3]], [[0, 2], [1, 3]]


def run(method: Any, given: Scene, seed: int = 0) -> dict[str, Tensor]:
    """A step in which teacher and student say what the scene holds; the student learns from its representations."""
    progress = Progress(0, 4, 1, 8, torch.Generator().manual_seed(seed))
    method.one_view = method.two_views = lambda *_: given.view
    method.student.forward = lambda _: given.output
    images = torch.zeros(N, 3, SIDE, SIDE)
    return method({"image_l": images, "image_u": images, "mask_l": given.masks}, progress)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[contrast.Samples]:
    """The samples of every step, in order."""
    found: list[contrast.Samples] = []
    original = contrast.sample

    def recording(*args: Any, **kwargs: Any) -> contrast.Samples:
        found.append(original(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(contrast, "sample", recording)
    return found


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def vector(representation: Tensor, pixel: tuple[int, ...]) -> np.ndarray:
    i, y, x = pixel
    return representation[i, :, y, x].detach().double().numpy()


def one_anchor(anchor: np.ndarray, positive: np.ndarray, negatives: list[np.ndarray]) -> float:
    """The logarithm in Eq. 4."""
    numerator = math.exp(cosine(anchor, positive) / TAU)
    return -math.log(numerator / (numerator + sum(math.exp(cosine(anchor, key) / TAU) for key in negatives)))


def paper_term(
    given: Scene, queues: Queues, picked: Tensor, slots: Tensor, groups: list[list[int]], **reading: bool
) -> float:
    """Algorithm 1 with Eq. 4 and 9 to 16, for each group. `picked` (G, C, M): pixels; `slots` (G, C, M, N): rows of the
    class's queue. `reading`: ignored pixels as negatives of every class, and Eq. 14 and 15 without their ranks.
    """
    gamma = np.percentile(given.entropies.double().numpy(), 100 * (1 - ALPHA))
    anchors: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for k, images in enumerate(groups):
        for c in range(C):
            own = anchors[k, c] = []
            for i, y, x in ((i, y, x) for i in images for y, x in np.ndindex(SIDE, SIDE)):
                p = given.probs[i, :, y, x]
                order = int((p > p[c]).sum())
                if i < N:
                    truth = given.masks[i, y, x]
                    if truth == c and p[c] > DELTA_P:  # Eq. 9
                        own.append((i, y, x))
                    near = reading.get("no_ranks") or 0 <= order < R_LOW
                    negative = truth != c and (truth != IGNORE or reading.get("ignored")) and near  # Eq. 14
                else:
                    entropy = given.entropies[i - N, y, x].double()
                    if entropy < gamma and given.labels[i - N, y, x] == c and p[c] > DELTA_P:  # Eq. 6 and 10
                        own.append((i, y, x))
                    near = reading.get("no_ranks") or R_LOW <= order < R_HIGH
                    negative = entropy > gamma and near  # Eq. 15
                if negative:
                    queues[c].append(vector(given.teacher, (i, y, x)))
    loss = 0.0
    for (k, c), own in anchors.items():
        if not own or not queues[c]:
            continue
        positive = np.mean([vector(given.teacher, pixel) for pixel in own], axis=0)  # Eq. 12
        for m, pixel in enumerate(picked[k, c].tolist()):
            assert PIXELS[pixel] in own
            negatives = [queues[c][slot] for slot in slots[k, c, m]]
            loss += one_anchor(vector(given.student, PIXELS[pixel]), positive, negatives)
    return loss / picked.numel()


def released_term(given: Scene, queues: Queues, picked: Tensor, slots: Tensor) -> tuple[float, list[int]]:
    """The released code's term with a right one-hot stack, of one group, and the classes whose anchors add to it.

    `picked` (C, M), `slots` (C, M, N): places in the queue of the twin.
    """
    low, high = (np.percentile(given.entropies.double().numpy(), 100 * q) for q in (ALPHA, 1 - ALPHA))
    present, anchors, prototypes = [], [], []
    for c in range(C):
        low_entropy, own = [], []
        for i, y, x in PIXELS:
            p = given.probs[i, :, y, x]
            order = int((p > p[c]).sum())
            if i < N:
                label, reliable = int(given.masks[i, y, x]), True
                candidate = label != c and label != IGNORE and order < R_LOW
            else:
                label, entropy = int(given.labels[i - N, y, x]), given.entropies[i - N, y, x].double()
                reliable = bool(entropy <= low)
                candidate = bool(entropy > high) and R_LOW <= order < R_HIGH
            if label == c and reliable:
                low_entropy.append((i, y, x))
                if p[c] > DELTA_P:
                    own.append((i, y, x))
            if candidate and label == c:
                queues[c].append(vector(given.teacher, (i, y, x)))
        if low_entropy:
            present.append(c)
        anchors.append(own)
        prototypes.append([vector(given.teacher, pixel) for pixel in low_entropy])
    loss, contributing = 0.0, []
    for position, twin in enumerate(present):  # the position indexes lists that have one entry for every class
        if not anchors[position] or not queues[twin]:
            continue
        contributing.append(position)
        positive = np.mean(prototypes[position], axis=0)
        losses = []
        for m, pixel in enumerate(picked[position].tolist()):
            assert PIXELS[pixel] in anchors[position]
            negatives = [queues[twin][slot] for slot in slots[position, m]]
            losses.append(one_anchor(vector(given.student, PIXELS[pixel]), positive, negatives))
        loss += sum(losses) / len(losses)
    return (loss / len(present) if len(present) > 1 else 0.0), contributing


def queues_agree(method: Any, queues: Queues) -> bool:
    for c, queue in enumerate(queues):
        expected = np.array([key / np.linalg.norm(key) for key in queue]).reshape(-1, D)
        np.testing.assert_allclose(method.contrast.bank.held(c).numpy(), expected, atol=1e-6)
    return sum(map(len, queues)) > 0


READINGS: dict[str, tuple[dict[str, Any], list[list[int]], dict[str, bool]]] = {
    "default": ({}, TOGETHER, {}),
    "groups": ({"contrastive_groups": "share", "group_size": 1}, APART, {}),
    "per image": ({"anchors_drawn": "per_image"}, TOGETHER, {}),
    "ignored": ({"ignored_negatives": True}, TOGETHER, {"ignored": True}),
    "no ranks": ({"prt": False}, TOGETHER, {"no_ranks": True}),
    "distinct": ({"replacement": False}, TOGETHER, {}),
}


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("present", [PRESENT, (3,), tuple(range(C))])
def test_the_papers_term_equals_its_oracle(drawn: list, present: tuple[int, ...], reading: str) -> None:
    changes, groups, other = READINGS[reading]
    method, queues = build(**changes), [[] for _ in range(C)]
    for step in range(2):  # the second step samples what the first left in the bank
        given = scene(step, present)
        found = run(method, given, step)["contrastive"].item()
        picked, slots = drawn[-1].anchors, drawn[-1].keys - method.contrast.bank.start[:, None, None]
        assert picked.shape == (len(groups), C, 5 * (4 if reading == "per image" else 1))
        assert found == pytest.approx(paper_term(given, queues, picked, slots, groups, **other), rel=1e-5)
        assert found > 0 and queues_agree(method, queues)
        if reading == "distinct":
            full = drawn[-1].valid & (method.contrast.bank.count >= slots.shape[-1])
            assert all(len(set(row)) == slots.shape[-1] for row in slots[full].flatten(0, 1).tolist())


@pytest.mark.parametrize("present", [PRESENT, (0, 1, 2, 5), (2, 3, 4, 5), (0,), tuple(range(C))])
def test_the_released_term_equals_its_oracle(drawn: list, present: tuple[int, ...]) -> None:
    method, queues = build(**RELEASED), [[] for _ in range(C)]
    for step in range(2):
        given = scene(step, present)
        found = run(method, given, step)["contrastive"].item()
        twins = list(present) + [0] * (C - len(present))
        slots = drawn[-1].keys[0] - method.contrast.bank.start[twins][:, None, None]
        expected, contributing = released_term(given, queues, drawn[-1].anchors[0], slots)
        assert found == pytest.approx(expected, rel=1e-5)
        # class c needs anchors of its own, at least c + 1 present classes, and negatives in the bank of the c-th
        filled = [method.contrast.bank.count[twin] > 0 for twin in present]
        assert contributing == [c for c in range(len(present)) if c in present and filled[c]]
        assert (found > 0) == (len(present) > 1) and queues_agree(method, queues)


def classes_that_learn(method: Any) -> set[int]:
    """The classes whose pixels the term's gradient reaches."""
    given = scene()
    run(method, given)["loss"].backward()
    assert given.student.grad is not None
    labels = torch.cat([given.masks, given.labels])
    return set(labels[given.student.grad.abs().sum(1) > 0].tolist())


def test_of_classes_0_7_12_15_only_0_contributes_in_the_released_reading() -> None:
    assert classes_that_learn(build()) == set(PRESENT)
    assert classes_that_learn(build(**RELEASED)) == {0}
    assert classes_that_learn(build(anchor_class_indexing="released")) == {0}


@pytest.mark.parametrize(("mask", "enter"), [("paper", True), ("released", False)])
def test_labelled_pixels_enter_the_papers_bank_only(mask: str, enter: bool) -> None:
    method, given = build(negative_label_mask=mask), scene()
    run(method, given)
    held = torch.cat([method.contrast.bank.held(c) for c in range(C)])
    cosines = nn.functional.normalize(given.teacher, dim=1).movedim(1, -1).flatten(1, 2) @ held.T
    labelled, unlabelled = (cosines[part].amax(dim=(0, 1)) > 1 - 1e-5 for part in (slice(0, N), slice(N, None)))
    assert len(held) > 0 and bool(unlabelled.any())
    assert bool(labelled.any()) is enter
    assert bool((labelled | unlabelled).all())


def keys_pushed(label_stacking: str) -> int:
    """Of a batch whose pseudo-labels are the most probable class of the view that ranks the classes."""
    method, given = build(**RELEASED, label_stacking=label_stacking, group_size=N), scene()
    given.labels = given.probs[N:].argmax(1)
    run(method, given)
    return int(method.contrast.bank.count.sum())


def test_with_equal_teacher_views_only_the_stacking_fills_the_released_bank() -> None:
    """With a right one-hot stack the pseudo-label has rank 0, and r_low <= rank never holds; another image's may."""
    assert keys_pushed("paper") == 0
    assert keys_pushed("released") > 5


OTHERS = {
    "anchors_per_class": 9,
    "label_stacking": "released",
    "contrastive_groups": "share",
    "threshold_groups": "share",
    "weight_groups": "share",
    "loss_groups": "share",
    "anchors_drawn": "per_image",
    "ignored_negatives": True,
    "prt": False,
    "replacement": False,
    "alpha_epochs": "from_1",
}


@pytest.mark.parametrize("factor", [*RELEASED, *OTHERS])
def test_each_factor_alone_changes_the_loss(factor: str) -> None:
    """Groups of one image but for stacking, whose slip a single image does not have."""
    group = {"group_size": N if factor == "label_stacking" else 1}
    given = scene()
    given.student = given.student.detach()
    base, flipped = (
        run(build(**group, **changes), given)["loss"] for changes in ({}, {factor: (RELEASED | OTHERS)[factor]})
    )
    assert flipped != base


def test_the_normalisers_differ_by_the_share_of_present_classes() -> None:
    base, flipped = (
        run(build(contrastive_normaliser=value), scene())["contrastive"] for value in ("paper", "released")
    )
    torch.testing.assert_close(flipped, base * C / len(PRESENT))


def test_the_world_size_divides_the_weight_but_not_the_logged_term() -> None:
    alone, spread = (run(build(contrastive_weight=2, contrastive_world_size=size), scene()) for size in (1, 4))
    assert alone["contrastive"] == spread["contrastive"]
    torch.testing.assert_close(alone["loss"] - spread["loss"], 2 * (1 - 1 / 4) * alone["contrastive"])


def test_without_any_label_the_released_term_is_zero() -> None:
    given = scene()
    given.masks[:], given.labels[:] = IGNORE, IGNORE
    parts = run(build(**RELEASED), given)
    assert parts["contrastive"] == 0 and torch.isfinite(parts["loss"])
