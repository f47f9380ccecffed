"""PC2Seg's step against its parts written down one after the other."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.small import IGNORE, SIDE, batch, beside, build, progress
from u2pl.components.pixel_contrast import pixel_contrast
from u2pl.components.strong_view import strong_view

torch.set_num_threads(1)


def given() -> dict[str, Tensor]:
    return batch() | beside({"valid", "raw"})


@pytest.mark.parametrize("projection", ["projection", "represent"])
@pytest.mark.parametrize("forward", ["joint", "separate"])
def test_a_step_is_that_of_the_straight_line(forward: str, projection: str) -> None:
    settings = {"streams_forward": forward, "pc2seg_projection": projection, "pc2seg_anchors": 3, "pc2seg_negatives": 9}
    method = build("pc2seg", **settings, pc2seg_consistency_weight=2.0, pc2seg_contrast_weight=3.0).train()
    other, data, generator = copy.deepcopy(method), given(), progress().generator

    weak = {name: value.detach() for name, value in other.student(data["image_u"]).items()}
    strong, shown = strong_view(data["raw_u"], data["valid_u"], 100, lambda colours: colours / 255, generator)
    if forward == "joint":
        both = other.student(torch.cat([data["image_l"], strong]))
        logits, out = both["logits"][:2], {name: value[2:] for name, value in both.items()}
    else:
        logits, out = other.student(data["image_l"])["logits"], other.student(strong)
    shown, valid = (
        F.interpolate(mask[:, None].float(), size=(9, 9), mode="nearest")[:, 0].bool()
        for mask in (shown, data["valid_u"])
    )
    assert shown.any() and not shown.all()
    probs = weak["logits"].softmax(1)
    distance = (out["logits"].softmax(1) - probs).square().sum(1)[shown].mean()
    names = ("representation", None) if projection == "represent" else ("features", other.projection)
    z, target = (values[names[0]] if names[1] is None else names[1](values[names[0]]) for values in (out, weak))
    options = {"anchors": 3, "negatives": 9, "tau": 0.07, "sampling": "other_image_debiased", "generator": generator}
    terms = {
        "supervised": F.cross_entropy(
            F.interpolate(logits, size=(SIDE, SIDE), mode="bilinear", align_corners=True),
            data["mask_l"],
            ignore_index=IGNORE,
        ),
        "consistency": 2 * distance,
        "contrast": 3 * pixel_contrast(z, target, probs, shown, valid, **options),  # type: ignore[arg-type]
    }
    losses = method(data, progress())
    for name, value in terms.items():
        torch.testing.assert_close(losses[name], value.detach(), msg=lambda m, name=name: f"{name}: {m}")
    losses["loss"].backward()
    sum(terms.values()).backward()
    for (name, one), two in zip(method.named_parameters(), other.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_without_the_contrast_nothing_is_projected() -> None:
    method = build("pc2seg", pc2seg_contrast_weight=0.0).train()
    losses = method(given(), progress())
    assert method.projection is None and losses.keys() == {"loss", "supervised", "consistency"}


def test_half_precision_contrasts_in_single() -> None:
    method = build("pc2seg").train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = method(given(), progress())
    losses["loss"].backward()
    assert all(value.dtype == torch.float32 and torch.isfinite(value) for value in losses.values())
