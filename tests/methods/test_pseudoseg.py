"""PseudoSeg's step against its parts written down one after the other."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.small import IGNORE, SIDE, C, batch, beside, build, progress
from u2pl.components.strong_view import strong_view

torch.set_num_threads(1)


def given() -> dict[str, Tensor]:
    return batch() | beside({"valid", "raw"})


def upsampled(values: Tensor, size: int) -> Tensor:
    return F.interpolate(values, size=(size, size), mode="bilinear", align_corners=True)


def refined(method: Any, features: Tensor, present: Tensor, square: int) -> Tensor:
    """Logits of maps of a 9 x 9 grid averaged over squares; the last rows are padding."""
    features = F.avg_pool2d(features.detach(), square, ceil_mode=True)
    side = features.shape[-1]
    real = torch.arange(side) * SIDE // side < SIDE - 5
    rows = int(real.sum())
    maps = torch.einsum("cd,bdhw->bchw", method.classifier.weight, features).relu() * present[:, :, None, None]
    maps = (maps / maps.amax((2, 3), keepdim=True).clamp(min=1e-12)).detach()
    both = torch.cat([features, features], 1)
    query, key = (layer(both).flatten(2) for layer in (method.attention.query, method.attention.key))
    weights = torch.einsum("bdi,bdj->bij", query, key) / query.shape[1] ** 0.5
    keys = weights[:, :, : rows * side].softmax(2)
    scores = torch.einsum("bij,bcj->bci", keys, maps.flatten(2)[:, :, : rows * side]).view_as(maps) + maps
    return method.attention.norm(torch.cat([2 - scores.amax(1, keepdim=True), scores], 1))


@pytest.mark.parametrize("grid", ["os16", "os8"])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("forward", ["joint", "separate"])
def test_a_step_is_that_of_the_straight_line(forward: str, mode: str, grid: str) -> None:
    settings = {"streams_forward": forward, "pseudoseg_cam_mode": mode, "pseudoseg_grid": grid}
    method, data = build("pseudoseg", **settings, pseudoseg_weight=2.0).train(), given()
    other, masks, square = copy.deepcopy(method), data["mask_l"], {"os16": 3, "os8": 2}[grid]  # to 3 x 3 and 5 x 5

    weak = other.student(data["image_u"])
    features = weak["layer4"]
    if mode == "eval":
        features = other.student.encoder.eval()(data["image_u"])["layer4"]
        other.student.encoder.train()
    found = (other.classifier(features.mean((2, 3))).sigmoid() >= 0.5).float()
    a, b = weak["logits"].detach(), upsampled(refined(other, features, found, square), 9).detach()
    norm = torch.stack([a, b]).square().mean().sqrt()
    target = ((a / norm).softmax(1) + (b / norm).softmax(1)) ** 2
    target = target / target.sum(1, keepdim=True)

    strong, shown = strong_view(
        data["raw_u"], data["valid_u"], 100, lambda colours: colours / 255, progress().generator
    )
    if forward == "joint":
        out = other.student(torch.cat([data["image_l"], strong]))
        logits, after, last = out["logits"][:2], out["logits"][2:], out["layer4"][:2]
    else:
        first, second = other.student(data["image_l"]), other.student(strong)
        logits, after, last = first["logits"], second["logits"], first["layer4"]
    small = F.interpolate(shown[:, None].float(), size=(9, 9), mode="nearest")[:, 0].bool()
    consistency = -(target * after.log_softmax(1)).sum(1)[small].mean()

    present = F.one_hot(masks.where(masks != IGNORE, torch.tensor(0)), C).amax((1, 2))[:, 1:].float()
    classes = F.binary_cross_entropy_with_logits(other.classifier(last.mean((2, 3))), present)
    maps = upsampled(refined(other, last, present, square), SIDE)
    terms = {
        "supervised": F.cross_entropy(upsampled(logits, SIDE), masks, ignore_index=IGNORE),
        "consistency": 2 * consistency,
        "classes": classes,
        "maps": F.cross_entropy(maps, masks, ignore_index=IGNORE),
    }
    losses = method(data, progress())
    assert small.any() and not small.all()
    for name, value in terms.items():
        torch.testing.assert_close(losses[name], value.detach(), msg=lambda m, name=name: f"{name}: {m}")
    losses["loss"].backward()
    sum(terms.values()).backward()
    for (name, one), two in zip(method.named_parameters(), other.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_the_strong_view_teaches_neither_classifier_nor_attention() -> None:
    """Nor does the weak view get gradients: without the masks, only what the strong view passes learns."""
    method, data = build("pseudoseg", streams_forward="separate").train(), given()
    data["mask_l"] = torch.full_like(data["mask_l"], IGNORE)
    method(data, progress())["loss"].backward()
    for part in (method.classifier, method.attention):
        assert all(p.grad is None or not p.grad.any() for p in part.parameters())
    assert method.student.head.weight.grad.abs().sum() > 0
    weak = method.soft_labels(data["image_u"], data["valid_u"])
    assert not weak.requires_grad


def test_what_is_not_shown_changes_nothing() -> None:
    """Padding of the unlabelled images may hold anything in its raw colours."""
    method, data = build("pseudoseg").train(), given()
    other = copy.deepcopy(method)
    changed = data["raw_u"].clone()
    changed[:, :, -5:] = 255 - changed[:, :, -5:]
    one, two = method(data, progress()), other(data | {"raw_u": changed}, progress())
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("mode", "passes"), [("eval", 2), ("train", 2)])
def test_the_pass_of_the_maps_moves_no_statistics_of_its_own(mode: str, passes: int) -> None:
    method = build("pseudoseg", pseudoseg_cam_mode=mode).train()
    method(given(), progress())
    assert int(method.student.encoder[1].num_batches_tracked) == passes
    assert all(module.training for module in method.modules())


def test_half_precision_leaves_finite_probabilities() -> None:
    method = build("pseudoseg").train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = method(given(), progress())
        target = method.soft_labels(given()["image_u"], given()["valid_u"])
    assert target.dtype == torch.float32 and torch.isfinite(losses["loss"])
    torch.testing.assert_close(target.sum(1), torch.ones(2, 9, 9))
