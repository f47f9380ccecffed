"""AEL against a straight line of its equations, and what must and must not have a gradient or an effect."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from tests.small import IGNORE, SIDE, C, batch, beside, build, progress
from u2pl.components import equaliser as parts
from u2pl.components.mixing import cutmix_boxes

torch.set_num_threads(1)
OFF: dict[str, Any] = {
    "ael_reweighting": False,
    "ael_sampling": False,
    "ael_cutmix": False,
    "ael_copy_paste": False,
}
RELEASED: dict[str, Any] = {
    "ael_labelled_consistency": True,
    "ael_absent_class": "zero",
    "ael_confidence_groups": "share",
    "ael_weight_normaliser": "share",
    "ael_threshold": 0.3,
    "streams_forward": "separate",
}


def full(logits: Tensor) -> Tensor:
    return F.interpolate(logits, size=(SIDE, SIDE), mode="bilinear", align_corners=True)


def data(seed: int = 0) -> dict[str, Tensor]:
    return batch(seed) | beside(("labelled_2", "valid", "ids", "chosen"), seed)


def prepared(**changes: Any) -> Any:
    """A method whose bank has classes for both images and noted images."""
    method = build("ael", **changes).train()
    bank = method.equaliser.bank
    bank.confidence.copy_(torch.tensor([0.9, 0.2, 0.5, 0.7, 0.4]))
    if method.equaliser.by_bank:
        bank.chosen.copy_(torch.tensor([4, 1]))
        bank.classes.copy_(torch.tensor([2, 3]))
    return method


def oracle(method: Any, given: dict[str, Tensor], seed: int = 0) -> dict[str, Any]:
    """A step with the bank's partners, written down from the equations; with the same draws, on copied networks."""
    s, bank = method.settings, method.equaliser.bank
    student, teacher = copy.deepcopy(method.student), copy.deepcopy(method.teacher.network)
    confidence = bank.confidence.double().numpy().copy()
    generator = torch.Generator().manual_seed(seed)
    released = s.ael_labelled_consistency

    # Copy-Paste
    draws = torch.rand(1 + s.ael_copy_paste_number, 2, generator=generator)
    rates = np.exp(1 - confidence)
    bounds = np.cumsum(rates) / rates.sum()
    images, masks = given["image_l"].clone(), given["mask_l"].clone()
    for i in range(2):
        classes = {int(np.searchsorted(bounds, float(u), side="right")) for u in draws[1:, i]}
        for c in classes if draws[0, i] < s.ael_copy_paste_probability else ():
            where = (given["mask_l2"][i] == c) & given["valid_l2"][i]
            images[i, :, where], masks[i, where] = given["image_l2"][i, :, where], c

    # the teacher, on unmixed images
    unmixed = torch.cat([given["image_u"], given["image_p"]])
    with torch.no_grad():
        if s.streams_forward == "separate":
            logits_l, logits_u = full(teacher(images)["logits"]), full(teacher(unmixed)["logits"])
        else:
            logits_l, logits_u = full(teacher(torch.cat([images, unmixed]))["logits"]).split([2, 4])
    labels = logits_u.argmax(1)

    # boxes
    boxes = cutmix_boxes(2, SIDE, SIDE, probability=1.0, generator=generator, device="cpu", shape="log_uniform_height")
    picks = torch.rand(3, 2, generator=generator)[0]
    for i in range(2):
        components, count = ndimage.label((labels[2 + i] == bank.classes[i]).numpy(), np.ones((3, 3)))
        large = [k for k in range(1, count + 1) if (components == k).sum() > s.ael_component_ratio * SIDE**2]
        if large:
            rows, columns = np.nonzero(components == large[int(float(picks[i]) * len(large))])
            boxes[i] = False
            boxes[i, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    mixed = torch.where(boxes[:, None], given["image_p"], given["image_u"])
    logits_t = torch.where(boxes[:, None], logits_u[2:], logits_u[:2])

    # flags
    flags = bank.flags.clone()
    for k, place in enumerate([*given["index_u"].tolist(), *bank.chosen.tolist()]):
        for c in range(C):
            area = int((labels[k] == c).sum())
            flags[c, place] = area > 0 and area >= s.ael_bank_ratio * SIDE**2

    # the student
    if s.streams_forward == "separate":
        student_l, student_u = full(student(images)["logits"]), full(student(mixed)["logits"])
    else:
        student_l, student_u = full(student(torch.cat([images, mixed]))["logits"]).split(2)

    # Conf
    probs = student_l.detach().softmax(1)
    for c in range(C):
        own = [probs[i, c][masks[i] == c] for i in range(2)]
        if released:  # one share holds both images
            pixels = torch.cat(own)
            value: float | None = float(pixels.mean()) if len(pixels) else 0.0
        else:
            means = [float(p.mean()) for p in own if len(p)]
            value = float(np.mean(means)) if means else None
        if value is not None:
            confidence[c] = s.ael_momentum * confidence[c] + (1 - s.ael_momentum) * value

    # losses
    keep = ((1 - confidence) / (1 - confidence).max()) ** s.ael_beta

    def consistency(logits: Tensor, taught: Tensor) -> Tensor:
        p, y = taught.softmax(1).max(1)
        kept = torch.rand(2, SIDE, SIDE, generator=generator) < torch.tensor(keep)[logits.argmax(1)]
        w = p**s.ael_gamma * kept
        y = torch.where(p < s.ael_threshold, IGNORE, y)
        losses = w * F.cross_entropy(logits, y, ignore_index=IGNORE, reduction="none")
        return losses.sum() / w.sum() if released else (losses.sum((1, 2)) / w.sum((1, 2))).mean()

    found: dict[str, Any] = {"supervised": F.cross_entropy(student_l, masks, ignore_index=IGNORE)}
    found["unsupervised"] = s.eta * consistency(student_u, logits_t)
    if released:
        found["consistency"] = s.eta * consistency(student_l, logits_l)
    losses = list(found.values())
    return found | {
        "loss": sum(losses[1:], losses[0]),
        "confidence": confidence,
        "flags": flags,
        "boxes": boxes,
        "left": generator,
    }


@pytest.mark.parametrize(
    "changes", [{}, {"ael_component_ratio": 0.1}, {"ael_gamma": 1.0, "ael_beta": 2.0, "eta": 0.7}, RELEASED]
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_step_is_the_oracles(changes: dict[str, Any], seed: int) -> None:
    method, given = prepared(**{"ael_momentum": 0.5} | changes), data(seed)
    expected = oracle(method, given, seed)
    found = method(given, progress(seed=seed))
    for name in ("supervised", "unsupervised", "loss", *(["consistency"] if "consistency" in expected else [])):
        torch.testing.assert_close(found[name], expected[name].float(), msg=lambda m, name=name: f"{name}: {m}")
    bank = method.equaliser.bank
    np.testing.assert_allclose(bank.confidence.numpy(), expected["confidence"], atol=1e-6)
    assert torch.equal(bank.flags, expected["flags"])
    wanted = method.wanted.clone()
    bank.choose(torch.rand(2, 2, generator=expected["left"]))
    assert torch.equal(method.wanted, wanted), "chosen last, by the bank as the step has left it"
    assert 0 < expected["flags"].float().mean() < 1, "images differ in the classes that they hold"


def test_the_oracle_meets_components_and_boxes_of_half_the_area() -> None:
    method = prepared(ael_component_ratio=0.1)
    areas = torch.cat([oracle(method, data(seed), seed)["boxes"].float().mean((1, 2)) for seed in range(3)])
    half = (areas - 0.5).abs() < 0.02
    assert half.any() and (~half).any()


def test_without_its_parts_it_is_cutmix_with_pairs_of_a_share() -> None:
    method, given = build("ael", **OFF, streams_forward="separate").train(), batch()
    student, teacher = copy.deepcopy(method.student), copy.deepcopy(method.teacher.network)
    boxes = cutmix_boxes(
        2, SIDE, SIDE, probability=1.0, generator=progress().generator, device="cpu", shape="log_uniform_height"
    )
    assert (boxes.float().mean((1, 2)) - 0.5).abs().max() < 0.02
    with torch.no_grad():
        teacher(given["image_l"])
        labels = full(teacher(given["image_u"])["logits"]).argmax(1)
    mixed = torch.where(boxes[:, None], given["image_u"].flip(0), given["image_u"])
    y = torch.where(boxes, labels.flip(0), labels)
    labelled, unlabelled = full(student(given["image_l"])["logits"]), full(student(mixed)["logits"])
    expected = F.cross_entropy(labelled, given["mask_l"], ignore_index=IGNORE) + F.cross_entropy(unlabelled, y)
    torch.testing.assert_close(method(given, progress())["loss"], expected)


def test_partners_without_cutmix_are_rings_of_the_shares() -> None:
    method = build("ael", **OFF, group_size=3)
    images = {"image_u": torch.zeros(8, 3, SIDE, SIDE)}
    found = method.equaliser.mixture(torch.zeros(8, SIDE, SIDE).long(), images, progress().generator)
    assert found.partners.tolist() == [1, 2, 0, 4, 5, 3, 7, 6]


def test_neither_the_weights_nor_the_teacher_have_gradients() -> None:
    """Scaling p^gamma by hand changes the loss, but no gradient reaches what made it."""
    for whose in ("teacher", "student"):
        equaliser = prepared(ael_sampling=False, ael_confidence=whose).equaliser
        logits = torch.randn(2, C, 9, 9, requires_grad=True)
        taught = parts.guess(torch.randn(2, C, 9, 9), (SIDE, SIDE))
        equaliser.loss(logits, taught, progress().generator).backward()
        own = full(logits)
        sure = taught.confidence if whose == "teacher" else own.detach().softmax(1).amax(1)
        w = sure**2 / (sure**2).sum((1, 2), keepdim=True) / 2
        (expected,) = torch.autograd.grad((w * F.cross_entropy(own, taught.labels, reduction="none")).sum(), logits)
        torch.testing.assert_close(logits.grad, expected)


def test_pixels_below_the_threshold_are_not_learned_but_weigh() -> None:
    equaliser = prepared(ael_sampling=False, ael_threshold=0.6).equaliser
    logits, taught = torch.randn(2, C, 9, 9), parts.guess(2 * torch.randn(2, C, 9, 9), (SIDE, SIDE))
    sure = taught.confidence
    assert 0.1 < (sure < 0.6).float().mean() < 0.9
    losses = F.cross_entropy(full(logits), taught.labels, reduction="none") * (sure >= 0.6)
    expected = ((sure**2 * losses).sum((1, 2)) / (sure**2).sum((1, 2))).mean()
    torch.testing.assert_close(equaliser.loss(logits, taught, progress().generator), expected)


def test_who_decides_what_is_kept() -> None:
    """With all other classes certain, the pixels that count are those where the one says class 1."""
    logits, taught = torch.randn(2, C, 9, 9), parts.guess(torch.randn(2, C, 9, 9), (SIDE, SIDE))
    for whose in ("student", "teacher"):
        equaliser = prepared(ael_keep_by=whose, ael_reweighting=False).equaliser
        equaliser.bank.confidence.copy_(torch.tensor([1.0, 0.3, 1.0, 1.0, 1.0]))
        kept = (full(logits).argmax(1) if whose == "student" else taught.labels) == 1
        losses = F.cross_entropy(full(logits), taught.labels, reduction="none")
        expected = torch.stack([losses[i][kept[i]].mean() for i in range(2)]).mean()
        torch.testing.assert_close(equaliser.loss(logits, taught, progress().generator), expected)


@pytest.mark.parametrize("holding", [(), (0,), (1, 3), (0, 1, 2, 3)])
def test_partners_in_the_batch_are_others_that_hold_the_class(holding: tuple[int, ...]) -> None:
    """Class 1 alone is drawn; an image is its own partner only if it is alone."""
    method = build("ael", ael_partner="batch")
    method.equaliser.bank.confidence.copy_(torch.tensor([1.0, -100.0, 1.0, 1.0, 1.0]))
    labels = torch.zeros(4, SIDE, SIDE, dtype=torch.int64)
    for i in holding:
        labels[i, 4:9, 4:20] = 1
    seen: list[set[int]] = [set() for _ in range(4)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        found = method.equaliser.mixture(labels, {"image_u": torch.zeros(4, 3, SIDE, SIDE)}, generator)
        for i, partner in enumerate(found.partners.tolist()):
            seen[i].add(partner)
            if partner in holding:
                assert found.boxes[i].sum() == 5 * 16, "the bounding box of its blob"
            else:
                assert found.boxes[i].float().mean() == pytest.approx(0.5, abs=0.02)
    for i, partners in enumerate(seen):
        others = set(range(4)) - {i}
        assert partners == (set(holding) & others or others)
    alone = method.equaliser.mixture(labels[:1], {"image_u": torch.zeros(1, 3, SIDE, SIDE)}, generator)
    assert alone.partners.tolist() == [0]


def test_values_of_every_size_are_mixed_by_the_same_boxes() -> None:
    boxes = torch.zeros(2, 8, 8, dtype=torch.bool)
    boxes[0, 2:6, 4:8] = True
    values = torch.arange(4.0)[:, None, None].expand(4, 8, 8)
    found = parts.Mixture(boxes, None)(values)
    assert found[0].unique().tolist() == [0, 2] and torch.equal(found[0] == 2, boxes[0]) and (found[1] == 1).all()
    small = parts.Mixture(boxes, torch.tensor([1, 0]))(values[:2, None, ::2, ::2])
    assert torch.equal(small[0, 0] == 1, boxes[0, ::2, ::2])


def test_the_warm_up_teaches_the_bank_and_nothing_unlabelled_matters() -> None:
    first, other = (prepared(warmup_epochs=2, ael_momentum=0.5) for _ in range(2))
    changed = data() | {name: torch.randn(2, 3, SIDE, SIDE) for name in ("image_u", "image_p")}
    one, two = first(data(), progress(0)), other(changed, progress(0))
    assert one.keys() == {"loss", "supervised"} and torch.equal(one["loss"], two["loss"])
    before = torch.tensor([0.9, 0.2, 0.5, 0.7, 0.4])
    assert (first.equaliser.bank.confidence != before).all() and not first.equaliser.bank.flags.any()


def test_the_next_partners_are_wanted_after_each_step_and_the_first_ones_before() -> None:
    method = prepared()
    wanted = method.wanted.clone()
    assert wanted.shape == (2,) and ((wanted >= 0) & (wanted < 6)).all()
    seen = set()
    for step in range(8):
        method(data(step), progress(step, seed=step))
        seen.add(tuple(method.wanted.tolist()))
    assert len(seen) > 3
    assert build("ael", ael_partner="batch").wanted is None and build("mean_teacher").wanted is None


def test_in_eval_mode_only_labelled_and_mixed_images_move_the_teachers_statistics() -> None:
    counts = {}
    for mode in ("train", "eval"):
        method = prepared(ael_teacher_mode=mode)
        shifted = data() | {"image_p": data()["image_p"] + 100}
        method(shifted, progress())
        counts[mode] = int(method.teacher.network.encoder[1].num_batches_tracked)
    assert counts == {"train": 1, "eval": 2}, "one joint pass; the labelled and the mixed images"


def test_half_precision_gives_a_finite_loss_near_the_single_one() -> None:
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(prepared()(data(), progress())["loss"])
    assert found[1].dtype == torch.float32
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0.05)
