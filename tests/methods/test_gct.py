"""GCT against a straight-line oracle in two stages, and where gradients may not flow."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.small import IGNORE, SIDE, C, Network, batch, build, progress
from u2pl.components.flaws import blur, odd
from u2pl.methods import Progress

torch.set_num_threads(1)
CHANGES: list[dict[str, Any]] = [
    {},
    {"gct_prepass": "shared"},
    {"streams_forward": "separate", "gct_negative_flaws": "cleared", "gct_nu": 2},
    {"gct_prepass": "shared", "streams_forward": "separate", "gct_threshold": 0.2, "gct_rampup": 0.0},
]
cases = pytest.mark.parametrize("changes", CHANGES)


def made(**changes: Any) -> Any:
    return build("gct", **changes).double().train()


def data() -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in batch().items()}


def probabilities(network: nn.Module, given: dict[str, Tensor], separate: bool) -> tuple[Tensor, Tensor]:
    """Logits and softmax at the images' size, labelled images first."""
    streams = given["image_l"], given["image_u"]
    passes = [network(part)["logits"] for part in streams] if separate else [network(torch.cat(streams))["logits"]]
    logits = F.interpolate(torch.cat(passes), size=(SIDE, SIDE), mode="bilinear", align_corners=True)
    return logits, logits.softmax(dim=1)


def stretched(maps: Tensor) -> Tensor:
    return torch.stack([(m - m.min()) / (m.max() - m.min() + 1e-9) for m in maps])


def two_stages(method: Any, given: dict[str, Tensor], now: Progress) -> tuple[list[Tensor], Tensor]:
    """Losses as the authors order them: networks with the detector's gradients off, then the detector; backward each.

    Gradients are left in the method's parameters.
    """
    settings, detector = method.settings, method.detector
    separate, networks = settings.streams_forward == "separate", (method.first, method.second)
    images, masks = torch.cat([given["image_l"], given["image_u"]]), given["mask_l"]
    with torch.no_grad():
        if settings.gct_prepass == "separate":
            before = [probabilities(network, given, separate)[1] for network in networks]
        else:  # the same values, from copies: batch statistics move once
            before = [probabilities(copy.deepcopy(network), given, separate)[1] for network in networks]
    raw = [detector(images, p) for p in before]
    maps = []
    for flaws in raw:
        smooth = blur(flaws.detach().clamp(min=0), odd(SIDE // 16))
        assert (smooth.amax((1, 2, 3)) > 0.1).all()
        maps.append(stretched(smooth))
    high = [torch.where(m > settings.gct_threshold, torch.ones_like(m), m) for m in maps]
    bad = ((maps[0] > settings.gct_threshold) & (maps[1] > settings.gct_threshold)).double()
    steps = settings.gct_rampup * now.steps / now.epochs
    ramp = math.exp(-5 * (1 - min(1, now.step / steps)) ** 2) if steps else 1.0
    for parameter in detector.parameters():
        parameter.requires_grad_(False)
    losses = []
    for k, network in enumerate(networks):
        own = (high[k] <= high[1 - k]).double()
        target = own * before[k] + (1 - own) * before[1 - k]
        logits, probs = probabilities(network, given, separate)
        task = F.cross_entropy(logits[:2], masks, ignore_index=IGNORE)
        correction = (bad * detector(images, probs) ** 2).mean()
        consistency = ((probs - target) ** 2).mean()
        assert correction > 0 and consistency > 0
        loss = task + settings.gct_fc_weight * correction + ramp * settings.gct_dc_weight * consistency
        loss.backward()
        losses.append(loss.detach())
    for parameter in detector.parameters():
        parameter.requires_grad_(True)
    one_hot = torch.stack([(masks == c).double() for c in range(C)], dim=1)
    stage = torch.zeros((), dtype=torch.float64)
    for flaws, p in zip(raw, before, strict=True):
        errors = settings.gct_mu * (one_hot - p[:2]).abs().sum(dim=1, keepdim=True)
        errors = blur(errors, odd(SIDE // 8))
        for _ in range(settings.gct_nu):
            padded = F.pad(errors, (1, 1, 1, 1), mode="reflect")
            errors = blur(F.max_pool2d(padded, 3, stride=1), odd(SIDE // 4))
        said = flaws[:2]
        if settings.gct_negative_flaws == "cleared":
            said = said + 0  # a copy, whose data the released code overwrites
            said.data.mul_((said.data >= 0).double())
        stage = stage + settings.gct_fd_weight * ((said - stretched(errors)) ** 2).mean() / 2
    stage.backward()
    return losses, stage.detach()


@cases
def test_one_backward_pass_is_the_two_stages_of_the_released_order(changes: dict[str, Any]) -> None:
    """Of losses and of the gradient of every parameter."""
    method, given, now = made(**changes), data(), progress(step=2)
    if changes.get("gct_negative_flaws"):
        method.detector.layers[-1].bias.data -= 0.4  # so that some flaws are negative
    other = copy.deepcopy(method)
    (first, second), stage = two_stages(other, given, now)
    found = method(given, now)
    found["loss"].backward()
    torch.testing.assert_close(found["loss"].detach(), first + second + stage)
    torch.testing.assert_close(found["detector"], stage)
    for (name, one), two in zip(method.named_parameters(), other.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None) == ("representation" in name), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-7, atol=1e-10, msg=name)


def test_what_is_cleared_changes_the_detectors_loss() -> None:
    losses = {}
    for negative in ("kept", "cleared"):
        method = made(gct_negative_flaws=negative)
        method.detector.layers[-1].bias.data -= 1
        losses[negative] = method(data(), progress())["detector"]
    assert losses["cleared"] < losses["kept"]


@cases
def test_the_correction_leaves_the_detector_alone_and_the_detectors_loss_the_networks(changes: dict[str, Any]) -> None:
    """Without the detector's weight it has no gradient; without the others' weights networks learn from labels only."""
    method = made(**(changes | {"gct_fd_weight": 0.0}))
    method(data(), progress())["loss"].backward()
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in method.detector.parameters())
    method = made(**(changes | {"gct_dc_weight": 0.0, "gct_fc_weight": 0.0}))
    given = data()
    expected = copy.deepcopy(method)
    for network in (expected.first, expected.second):
        logits, _ = probabilities(network, given, changes.get("streams_forward") == "separate")
        F.cross_entropy(logits[:2], given["mask_l"], ignore_index=IGNORE).backward()
    method(given, progress())["loss"].backward()
    for name in ("first", "second"):
        pairs = zip(getattr(method, name).parameters(), getattr(expected, name).parameters(), strict=True)
        for one, two in pairs:
            torch.testing.assert_close(one.grad, two.grad)
    assert all(p.grad.abs().sum() > 0 for p in method.detector.parameters())


@pytest.mark.parametrize("prepass", ["separate", "shared"])
def test_swapping_the_networks_leaves_the_loss(prepass: str) -> None:
    method = made(gct_prepass=prepass)
    swapped = copy.deepcopy(method)
    swapped.first, swapped.second = swapped.second, swapped.first
    torch.testing.assert_close(method(data(), progress())["loss"], swapped(data(), progress())["loss"])


def test_equal_networks_agree_and_a_threshold_of_one_corrects_nothing() -> None:
    method = made()
    method.second.load_state_dict(method.first.state_dict())
    found = method(data(), progress())
    assert found["consistency"] == 0 and found["correction"] > 0
    found = made(gct_threshold=1.0)(data(), progress())
    assert found["consistency"] > 0 and found["correction"] == 0


def test_a_detector_that_sees_nothing_leaves_supervised_learning_of_two_networks() -> None:
    method = made()
    method.detector.layers[-1].bias.data -= 10
    found = method(data(), progress())
    assert found["consistency"] == found["correction"] == 0 and found["supervised"] > 0


def test_the_consistency_ramps_up_over_epochs_or_a_share_of_the_training() -> None:
    at = {step: made()(data(), progress(step=step))["consistency"] for step in (0, 3, 6, 7)}
    torch.testing.assert_close(at[0], at[6] * math.exp(-5))
    torch.testing.assert_close(at[3], at[6] * math.exp(-5 / 4))  # three epochs of two steps
    assert at[6] == at[7]
    share = made(gct_rampup=0.5, gct_rampup_unit="training")(data(), progress(step=2))["consistency"]
    torch.testing.assert_close(share, at[6] * math.exp(-5 / 4))


@pytest.mark.parametrize(("prepass", "network", "detector"), [("separate", 2, 2), ("shared", 1, 2)])
def test_batch_statistics_move_once_per_pass(prepass: str, network: int, detector: int) -> None:
    """Of the detector by its own two passes, not by those that correct."""
    method = made(gct_prepass=prepass)
    method(data(), progress())
    assert [int(n.encoder[1].num_batches_tracked) for n in (method.first, method.second)] == [network] * 2
    assert int(method.detector.layers[1].batch.num_batches_tracked) == detector


def test_a_shared_pass_differs_from_a_separate_one_in_dropout_only() -> None:
    given, now = data(), progress(step=6)
    without = [made(gct_prepass=prepass)(given, now)["loss"] for prepass in ("separate", "shared")]
    torch.testing.assert_close(*without)
    dropped = {}
    for prepass in ("separate", "shared"):
        method = build("gct", lambda: Network(dropout=True), gct_prepass=prepass).double().train()
        method.second.load_state_dict(method.first.state_dict())
        method.detector.layers[-1].bias.data -= 10  # every network keeps its own
        dropped[prepass] = method(given, now)["consistency"]
    assert dropped["shared"] == 0 < dropped["separate"], "the draws of two passes differ"


def test_the_mean_of_both_networks_is_of_probabilities() -> None:
    method, images = build("gct", evaluated="mean"), batch()["image_u"]
    found = method.evaluated.eval()(images)["logits"].softmax(1)
    both = [network(images)["logits"].softmax(1) for network in (method.first, method.second)]
    torch.testing.assert_close(found, (both[0] + both[1]) / 2)
    assert build("gct").evaluated.state_dict().keys() == method.first.state_dict().keys()


def test_half_precision_reaches_every_parameter_with_losses_close_to_float32() -> None:
    """The passes without gradients come first under the same autocast, which remembers rounded weights."""
    method, given = build("gct"), batch()
    expected = copy.deepcopy(method)(given, progress())
    with torch.autocast("cpu", torch.bfloat16):
        found = method(given, progress())
    found["loss"].backward()
    for name in ("supervised", "detector"):
        torch.testing.assert_close(found[name], expected[name], rtol=0.05, atol=0)
    for name, parameter in method.named_parameters():
        assert "representation" in name or parameter.grad.abs().sum() > 0, name
