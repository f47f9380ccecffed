import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.small import IGNORE, SIDE, C, Encoder, Network, batch, build, progress, settings_for
from u2pl.components.mixing import Shape, boxes_for, cutmix
from u2pl.components.resize import nearest
from u2pl.components.unreliable_contrast import View
from u2pl.errors import UserError
from u2pl.methods import Setup, build_method
from u2pl.methods import cutmix as cutmix_module

torch.set_num_threads(1)
SEMI = ["mean_teacher", "cutmix", "u2pl"]


def taught(method: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """The unlabelled images as the student of CutMix gets them, and the labels it learns there."""
    seen: list[Tensor] = []
    labels: list[Tensor] = []
    hook = method.student.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with pytest.MonkeyPatch.context() as patch:
        original = cutmix_module.unsupervised_loss

        def recorded(logits: Tensor, given: Tensor, *rest: Any) -> Tensor:
            labels.append(given)
            return original(logits, given, *rest)

        patch.setattr(cutmix_module, "unsupervised_loss", recorded)
        method(batch() | {"image_u": images}, progress())
    hook.remove()
    return seen[0][2:], labels[0]


def test_the_oracle_teaches_the_true_labels_mixed_as_the_images() -> None:
    """Images whose every pixel is its label: the student's mixed image shows what it should learn."""
    method, data = build("cutmix", oracle=True, cutmix_probability=1.0), batch()
    truth = torch.randint(C, (2, SIDE, SIDE), generator=torch.Generator().manual_seed(5))
    images = truth[:, None].float().expand(-1, 3, -1, -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method.teacher, "labels", lambda images: pytest.fail("the teacher is not asked"))
        patch.setitem(globals(), "batch", lambda: data | {"mask_u": truth})
        mixed, labels = taught(method, images)
    assert torch.equal(mixed[:, 0].long(), labels) and not torch.equal(labels, truth)


def test_the_average_of_suponly_is_a_running_mean_of_weights_and_statistics() -> None:
    """decay min(1 - 1 / (t + 1), 0.99) over six steps, from the recorded states; the network learns as without it."""
    method, plain = build("suponly", suponly_evaluated="average"), build("suponly")
    expected: dict[str, Tensor] = {}
    for step in range(6):
        for one in (method, plain):
            one.train()
            optimiser = torch.optim.SGD([p for p in one.parameters() if p.requires_grad], 0.1)
            one(batch(step), progress(step))["loss"].backward()
            optimiser.step()
            optimiser.zero_grad()
            one.after_step(progress(step))
        decay = min(1 - 1 / (step + 1), 0.99)
        for name, value in method.student.state_dict().items():
            before = expected.get(name, value).double()
            expected[name] = decay * before + (1 - decay) * value.double() if value.is_floating_point() else value
    found = method.evaluated.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].double(), value, rtol=1e-5, atol=1e-6)
    assert plain.evaluated is plain.student and method.evaluated is not method.student
    states = plain.student.state_dict(), method.student.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def view_of(method: Any, data: dict[str, Tensor]) -> tuple[Tensor, View]:
    """The mixed images of a U2PL step, and what the teacher says in the paper's reading."""
    boxes = boxes_for(data["image_u"], method.settings.cutmix_probability, progress().generator)
    mixed = cutmix(data["image_u"], boxes, method.settings.group_size)
    return mixed, method.one_view(data["image_l"], data["image_u"], mixed, boxes)


def upsampled(logits: Tensor) -> Tensor:
    return F.interpolate(logits, size=(SIDE, SIDE), mode="bilinear", align_corners=True)


def test_unknown_method_is_named() -> None:
    with pytest.raises(UserError, match="fixmatch.*suponly"):
        build_method("fixmatch", settings_for("suponly"), Setup(Network, C, IGNORE))


def test_suponly_is_cross_entropy_plus_the_auxiliary_head() -> None:
    for auxiliary in (False, True):
        method, data = build("suponly", lambda auxiliary=auxiliary: Network(auxiliary)), batch()
        output = copy.deepcopy(method.student)(data["image_l"])
        expected = F.cross_entropy(upsampled(output["logits"]), data["mask_l"], ignore_index=IGNORE)
        if auxiliary:
            other = F.cross_entropy(upsampled(output["auxiliary"]), data["mask_l"], ignore_index=IGNORE)
            expected = expected + 0.4 * other
        assert method.evaluated is method.student
        torch.testing.assert_close(method(data, progress())["loss"], expected)


def test_mean_teacher_learns_the_eval_mode_teachers_labels_on_all_pixels() -> None:
    method, data = build("mean_teacher", eta=0.5), batch()
    teacher, student = copy.deepcopy(method.teacher.network).eval(), copy.deepcopy(method.student)
    labels = upsampled(teacher(data["image_u"])["logits"]).argmax(1)
    logits = upsampled(student(torch.cat([data["image_l"], data["image_u"]]))["logits"])
    expected = F.cross_entropy(logits[:2], data["mask_l"], ignore_index=IGNORE)
    expected = expected + 0.5 * F.cross_entropy(logits[2:], labels)
    torch.testing.assert_close(method(data, progress())["loss"], expected)


def test_cutmix_without_mixing_is_mean_teacher_and_with_it_is_not() -> None:
    plain = build("mean_teacher")(batch(), progress())["loss"]
    assert build("cutmix", cutmix_probability=0)(batch(), progress())["loss"] == plain
    assert build("cutmix", cutmix_probability=1)(batch(), progress())["loss"] != plain


def test_cutmix_mixes_the_labels_of_the_unmixed_images_by_the_boxes_of_the_images() -> None:
    method, images = build("cutmix", cutmix_probability=1), batch()["image_u"]
    labels = upsampled(copy.deepcopy(method.teacher.network).eval()(images)["logits"]).argmax(1)
    mixed, mixed_labels = taught(method, images)
    inside = (mixed != images).any(1)
    assert 0.4 < inside.float().mean() < 0.6
    assert torch.equal(mixed_labels, torch.where(inside, labels.roll(-1, 0), labels))
    assert not torch.equal(mixed_labels, labels)


@pytest.mark.parametrize("view", ["paper", "released"])
def test_u2pl_filters_by_the_entropy_of_its_view(view: str) -> None:
    """The released code takes entropies in train mode, the paper has one view."""
    method, data = build("u2pl", cutmix_probability=0, teacher_view=view), batch()
    evaluating, second = (
        copy.deepcopy(method.teacher.network).eval(),
        copy.deepcopy(method.teacher.network).train(view == "released"),
    )
    student = copy.deepcopy(method.student)
    both = torch.cat([data["image_l"], data["image_u"]])
    labels = upsampled(evaluating(data["image_u"])["logits"]).argmax(1)
    p = upsampled(second(both)["logits"][2:]).softmax(1).detach().numpy()
    entropies = -(p * np.log(p)).sum(1)
    share = 0.2 * (1 - 2 / 4)  # step 5 is in epoch 2 of 4
    gamma = np.percentile(entropies.flatten(), 100 * (1 - share))
    reliable = torch.from_numpy(entropies < gamma)
    logits = upsampled(student(both)["logits"])[2:]
    expected = F.cross_entropy(logits, labels, reduction="none")[reliable].mean() * reliable.numel() / reliable.sum()
    parts = method(data, progress(step=5))
    assert parts["threshold"].item() == pytest.approx(gamma, rel=1e-5)
    assert parts["reliable"].item() == pytest.approx(1 - share, abs=0.002)
    torch.testing.assert_close(parts["unsupervised"], expected.detach())
    torch.testing.assert_close(
        parts["loss"].detach(), sum(parts[k] for k in ("supervised", "unsupervised", "contrastive"))
    )


@pytest.mark.parametrize("view", ["paper", "released"])
@pytest.mark.parametrize("negatives", ["unreliable", "reliable", "all"])
def test_u2pl_fills_the_bank_by_eq_14_and_15(negatives: str, view: str) -> None:
    changes = {"negatives": negatives, "teacher_view": view}
    method, data = build("u2pl", cutmix_probability=0, bank_size=10**4, **changes), batch()
    teacher = copy.deepcopy(method.teacher.network).train(view == "released")
    output = teacher(torch.cat([data["image_l"], data["image_u"]]))
    p = output["logits"].softmax(1).detach().numpy()
    full = upsampled(output["logits"][2:]).softmax(1).detach().numpy()
    entropies = -(full * np.log(full)).sum(1)
    share = 0.2 * (1 - 1 / 4)
    high, low = (np.percentile(entropies, 100 * q) for q in (1 - share, share))
    method(data, progress(step=2))
    side = p.shape[-1]
    for c in range(1, C):
        expected = []
        for i, y, x in np.ndindex(4, side, side):
            order = int((p[i, :, y, x] > p[i, c, y, x]).sum())
            sy, sx = y * SIDE // side, x * SIDE // side
            if i < 2:
                truth = int(data["mask_l"][i, sy, sx])
                chosen = truth not in (c, IGNORE) and order < 1
            else:
                h = entropies[i - 2, sy, sx]
                chosen = {"unreliable": h > high, "reliable": h < low, "all": True}[negatives] and 1 <= order < 4
            if chosen:
                expected.append(output["representation"][i, :, y, x].detach())
        stacked = F.normalize(torch.stack(expected), dim=1)
        torch.testing.assert_close(method.contrast.bank.held(c), stacked)


def test_switches_change_what_they_name() -> None:
    base = build("u2pl")(batch(), progress(step=5))
    fixed = build("u2pl", dpa=False)(batch(), progress(step=5))
    assert fixed["threshold"] < base["threshold"]  # alpha stays at 20 %: more pixels are unreliable
    assert fixed["reliable"].item() == pytest.approx(0.8, abs=0.002)
    without = build("u2pl", contrastive_weight=0)(batch(), progress(step=5))
    assert "contrastive" not in without
    torch.testing.assert_close(without["loss"], without["supervised"] + without["unsupervised"])
    double = build("u2pl", contrastive_weight=2)(batch(), progress(step=5))
    torch.testing.assert_close(double["loss"] - base["loss"], base["contrastive"])
    warm = build("u2pl", tau=5.0)(batch(), progress(step=5))
    assert warm["contrastive"] != base["contrastive"]


def test_without_the_bank_only_the_present_batch_counts() -> None:
    queued, single = build("u2pl", bank_size=10**4), build("u2pl", bank_size=10**4, bank=False)
    for method in (queued, single):
        method(batch(0), progress())
        method.first = method.contrast.bank.count.clone()
        method(batch(1), progress())
    fresh = build("u2pl", bank_size=10**4)
    fresh(batch(1), progress())
    assert torch.all(queued.contrast.bank.count[1:] > queued.first[1:])
    # the networks' statistics have moved by one batch, so the counts agree only roughly with a fresh method's
    assert (
        single.contrast.bank.count.sum()
        < 1.5 * fresh.contrast.bank.count.sum()
        < queued.contrast.bank.count.sum() * 1.2
    )


@pytest.mark.parametrize("name", SEMI)
def test_warm_up_is_supervised_and_hands_the_student_to_the_teacher(name: str) -> None:
    method, data = build(name, warmup_epochs=1), batch()
    alone = build("suponly")(data, progress())["loss"]
    before = method.teacher.network.encoder[1].running_mean.clone()
    parts = method(data, progress(step=1))
    assert parts["loss"] == alone
    assert "unsupervised" not in parts
    assert not torch.equal(method.teacher.network.encoder[1].running_mean, before)
    own = method.teacher.network.encoder[1].running_mean.clone()
    method.after_step(progress(step=1))
    for teacher, student in zip(method.teacher.network.parameters(), method.student.parameters(), strict=True):
        assert torch.equal(teacher, student)
    assert torch.equal(method.teacher.network.encoder[1].running_mean, own)
    assert "unsupervised" in method(data, progress(step=2))


def test_the_average_starts_at_the_end_of_the_warm_up() -> None:
    method = build("mean_teacher", teacher_first_epoch="averaged", warmup_epochs=1)
    start = [progress(step).steps_since(1) for step in range(5)]
    assert start == [0, 0, 0, 1, 2]
    old = method.teacher.network.head.weight.clone()
    method.after_step(progress(step=3))
    torch.testing.assert_close(method.teacher.network.head.weight, (old + method.student.head.weight.detach()) / 2)


def teacher_is_student(method: Any) -> bool:
    pairs = zip(method.teacher.network.parameters(), method.student.parameters(), strict=True)
    return all(torch.equal(teacher, student) for teacher, student in pairs)


@pytest.mark.parametrize("warmup", [0, 1])
def test_shared_first_epoch_ends_where_averaging_begins(warmup: int) -> None:
    method = build("mean_teacher", warmup_epochs=warmup)
    first, after = 2 * warmup + 1, 2 * warmup + 2  # the last step of the first semi-supervised epoch, and the next
    method.after_step(progress(first))
    assert teacher_is_student(method)
    old = method.teacher.network.head.weight.clone()
    method.student.head.weight.data += 1
    method.after_step(progress(after))  # the third semi-supervised step: decay 2 / 3
    torch.testing.assert_close(method.teacher.network.head.weight, old + 1 / 3)


def test_without_ema_warm_up_the_decay_is_constant() -> None:
    method = build("mean_teacher", ema_warmup=False, ema_decay=0.9, teacher_first_epoch="averaged")
    old = method.teacher.network.head.weight.clone()
    method.after_step(progress(0))
    torch.testing.assert_close(
        method.teacher.network.head.weight, 0.9 * old + 0.1 * method.student.head.weight.detach()
    )


@pytest.mark.parametrize("view", ["paper", "released"])
@pytest.mark.parametrize("warmup", [0, 1])
@pytest.mark.parametrize("name", SEMI)
def test_averaged_buffers_follow_the_students_and_nothing_else(name: str, warmup: int, view: str) -> None:
    changes = {"teacher_buffers": "averaged", "teacher_first_epoch": "averaged", "teacher_view": view}
    method = build(name, warmup_epochs=warmup, **changes)
    now = progress(step=1)
    start = method.teacher.network.encoder[1].running_mean.clone()
    method(batch(), now)
    assert torch.equal(method.teacher.network.encoder[1].running_mean, start)
    moved = method.student.encoder[1].running_mean
    assert not torch.equal(moved, start)
    method.after_step(now)
    expected = moved if warmup else (start + moved) / 2
    torch.testing.assert_close(method.teacher.network.encoder[1].running_mean, expected)


@pytest.mark.parametrize("view", ["paper", "released"])
def test_own_buffers_move_by_the_images_of_the_student(view: str) -> None:
    method, data = build("u2pl", teacher_view=view, cutmix_probability=1), batch()
    teacher = copy.deepcopy(method.teacher.network)
    mixed = cutmix(data["image_u"], boxes_for(data["image_u"], 1.0, progress().generator), 4)
    teacher.train()(torch.cat([data["image_l"], mixed]))
    method(data, progress())
    torch.testing.assert_close(method.teacher.network.encoder[1].running_mean, teacher.encoder[1].running_mean)


@pytest.mark.parametrize(("group", "partner"), [(2, [1, 0, 3, 2]), (4, [1, 2, 3, 0])])
@pytest.mark.parametrize("shape", ["uniform_width", "log_uniform_height"])
@pytest.mark.parametrize("method_name", ["cutmix", "u2pl", "u2pl released", "cps"])
def test_settings_choose_box_and_partners(method_name: str, shape: Shape, group: int, partner: list[int]) -> None:
    """CPS has the uniform width alone."""
    name, *released = method_name.split()
    changes: dict[str, Any] = {"cutmix_probability": 1, "cutmix_box": shape, "cps_masks": "half_box"}
    method = build(name, group_size=group, teacher_view="released" if released else "paper", **changes)
    data = {key: torch.cat([batch(0)[key], batch(1)[key]]) for key in batch()}
    boxes = boxes_for(data["image_u"], 1.0, progress().generator, "uniform_width" if name == "cps" else shape)
    seen: list[Tensor] = []
    student = method.first if name == "cps" else method.student
    student.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    method(data, progress())
    assert torch.equal(seen[-1][4:], torch.where(boxes[:, None], data["image_u"][partner], data["image_u"]))


def test_labels_after_mixing_are_the_teachers_of_the_mixed_images() -> None:
    method, images = build("cutmix", cutmix_probability=1, pseudo_label="after_mix"), batch()["image_u"]
    teacher = copy.deepcopy(method.teacher.network).eval()
    mixed, labels = taught(method, images)
    assert torch.equal(labels, upsampled(teacher(mixed)["logits"]).argmax(1))
    before = taught(build("cutmix", cutmix_probability=1), images)
    assert torch.equal(mixed, before[0]) and not torch.equal(labels, before[1])


@pytest.mark.parametrize("pseudo_label", ["before_mix", "after_mix"])
def test_the_papers_view_is_one_evaluation_pass_mixed_like_the_images(pseudo_label: str) -> None:
    method, data = build("u2pl", cutmix_probability=1, pseudo_label=pseudo_label), batch()
    teacher = copy.deepcopy(method.teacher.network).eval()
    images, view = view_of(method, data)
    inside = (images != data["image_u"]).any(1)
    assert 0.4 < inside.float().mean() < 0.6
    seen = data["image_u"] if pseudo_label == "before_mix" else images
    first, second = teacher(data["image_l"]), teacher(seen)
    full = upsampled(second["logits"]).softmax(1)
    expected = {
        "labels": full.argmax(1),
        "entropies": -(full * full.log()).sum(1),
        "probs": second["logits"].softmax(1),
        "representation": second["representation"],
    }
    for name, values in expected.items():
        if pseudo_label == "before_mix":
            where = nearest(inside, values.shape[-2:]).view(2, *[1] * (values.ndim - 3), *values.shape[-2:])
            values = torch.where(where, values.roll(-1, 0), values)
        if name in first or name == "probs":
            labelled = first["logits"].softmax(1) if name == "probs" else first[name]
            values = torch.cat([labelled, values])
        torch.testing.assert_close(getattr(view, name), values)


class Pointwise(Network):
    """No stride, no statistics: its views in both modes and of mixed images agree in every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(nn.Conv2d(3, 8, 1), nn.ReLU())


def test_the_released_bank_is_empty_when_the_teachers_views_agree() -> None:
    released = {"teacher_view": "released", "negative_label_mask": "released", "cutmix_probability": 1}
    for mask in ("paper", "released"):
        method = build("u2pl", Pointwise, **(released | {"negative_label_mask": mask}))
        parts = method(batch(), progress())
        assert bool(method.contrast.bank.count.sum() > 0) is (mask == "paper") is bool(parts["contrastive"] > 0)
    method = build("u2pl", **released)
    method(batch(), progress())
    assert method.contrast.bank.count.sum() > 0  # batch statistics make the views differ


def test_labels_and_ranks_of_the_papers_view_agree() -> None:
    method, data = build("u2pl", Pointwise, cutmix_probability=1), batch()
    _, view = view_of(method, data)
    assert torch.equal(view.probs[2:].argmax(1), view.labels)
    entropies = torch.special.entr(view.probs[2:]).sum(1)
    torch.testing.assert_close(view.entropies, entropies, rtol=1e-4, atol=1e-5)


def test_ohem_is_the_loss_of_both_heads() -> None:
    method, data = build("suponly", lambda: Network(auxiliary=True), cityscapes_loss="ohem_auxiliary"), batch()
    data["image_l"], data["mask_l"] = data["image_l"].repeat(60, 1, 1, 1), data["mask_l"].repeat(60, 1, 1)
    assert (data["mask_l"] != IGNORE).sum() > 110_000
    output = copy.deepcopy(method.student)(data["image_l"])
    expected = 0.0
    for head, weight in (("logits", 1.0), ("auxiliary", 0.4)):
        losses = F.cross_entropy(upsampled(output[head]), data["mask_l"], ignore_index=IGNORE, reduction="none")
        hard = losses.flatten().sort(descending=True).values[:100_000]
        kept = losses[(losses >= hard[-1].clamp(max=-np.log(0.7))) & (data["mask_l"] != IGNORE)]
        expected = expected + weight * kept.mean()
    torch.testing.assert_close(method(data, progress())["loss"], expected, rtol=1e-5, atol=0)


def test_a_checkpoint_without_the_bank_restores_the_rest() -> None:
    method, other = (build("u2pl", bank_in_checkpoint=False) for _ in range(2))
    method(batch(0), progress())
    assert not any(name.startswith("contrast.bank") for name in method.state_dict())
    other.load_state_dict(method.state_dict())
    assert method.contrast.bank.count.sum() > 0 and other.contrast.bank.count.sum() == 0


def test_a_checkpoint_restores_bank_and_teacher() -> None:
    method, other = build("u2pl"), build("u2pl")
    method(batch(0), progress())
    method.after_step(progress())
    other.load_state_dict(method.state_dict())
    assert method(batch(1), progress())["loss"] == other(batch(1), progress())["loss"]


@pytest.mark.parametrize("name", SEMI)
def test_a_batch_without_labels_is_finite(name: str) -> None:
    data = batch()
    data["mask_l"] = torch.full_like(data["mask_l"], IGNORE)
    parts = build(name)(data, progress())
    assert torch.isfinite(parts["loss"])
    assert parts["supervised"] == 0


@pytest.mark.parametrize(("old", "new"), [(33, 9), (65, 17), (8, 8), (513, 129)])
def test_nearest_is_torchs(old: int, new: int) -> None:
    values = torch.randint(255, (2, old, old + 1))
    expected = F.interpolate(values[:, None].double(), size=(new, new), mode="nearest")[:, 0].long()
    assert torch.equal(nearest(values, (new, new)), expected)
