"""CPS against its closed forms and a NumPy oracle of its masks."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.small import IGNORE, SIDE, batch, build, progress, second
from u2pl.components.mixing import toggling_boxes

torch.set_num_threads(1)
MIXINGS: list[dict[str, Any]] = [
    {"cps_mixing": "none"},
    {"cps_mixing": "none", "cps_labelled": True},
    {},
    {"cps_partner": "second_batch", "cps_labelled": True},
]


def upsampled(logits: Tensor) -> Tensor:
    return F.interpolate(logits, size=(SIDE, SIDE), mode="bilinear", align_corners=True)


def equal_networks(**changes: Any) -> Any:
    method = build("cps", **changes)
    method.second.load_state_dict(method.first.state_dict())
    return method


@pytest.mark.parametrize("labelled", [False, True])
def test_equal_networks_without_mixing_learn_their_own_arg_max(labelled: bool) -> None:
    """L = 2 L_s + 2 lambda CE(p, arg max p)."""
    method, data = equal_networks(cps_mixing="none", cps_weight=1.5, cps_labelled=labelled), batch()
    images = torch.cat([data["image_l"], data["image_u"]])
    logits = upsampled(copy.deepcopy(method.first)(images)["logits"])
    supervised = F.cross_entropy(logits[:2], data["mask_l"], ignore_index=IGNORE)
    own = logits if labelled else logits[2:]
    expected = 2 * supervised + 2 * 1.5 * F.cross_entropy(own, own.argmax(1))
    torch.testing.assert_close(method(data, progress())["loss"], expected)


@pytest.mark.parametrize("changes", MIXINGS)
def test_swapping_the_networks_leaves_the_loss(changes: dict[str, Any]) -> None:
    method, data = build("cps", **changes), batch() | second()
    swapped = copy.deepcopy(method)
    swapped.first, swapped.second = swapped.second, swapped.first
    torch.testing.assert_close(method(data, progress())["loss"], swapped(data, progress())["loss"])


@pytest.mark.parametrize("changes", MIXINGS)
def test_a_networks_gradient_does_not_see_the_others_logits_but_their_arg_max(changes: dict[str, Any]) -> None:
    gradients = []
    for factor in (1.0, 3.0):  # of the second network's logits: the arg max stays
        method = build("cps", **changes)
        for parameter in method.second.head.parameters():
            parameter.data *= factor
        method(batch() | second(), progress())["loss"].backward()
        gradients.append([p.grad for p in method.first.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_without_weight_it_is_suponly_twice() -> None:
    method, data = build("cps", cps_weight=0.0, cps_mixing="none"), batch()
    images = torch.cat([data["image_l"], data["image_u"]])
    logits = [upsampled(copy.deepcopy(n)(images)["logits"][:2]) for n in (method.first, method.second)]
    expected = sum(F.cross_entropy(values, data["mask_l"], ignore_index=IGNORE) for values in logits)
    torch.testing.assert_close(method(data, progress())["loss"], expected)


def test_the_two_heads_are_two_draws() -> None:
    method = build("cps")
    assert not torch.equal(method.first.head.weight, method.second.head.weight)


@pytest.mark.parametrize("partner", ["batch", "second_batch"])
@pytest.mark.parametrize("masks", ["three_boxes", "half_box"])
def test_labels_of_unmixed_images_are_mixed_like_the_images(masks: str, partner: str) -> None:
    """The arg max of mixed logits is the mixed arg max."""
    method = build("cps", cps_masks=masks, cps_partner=partner, cps_label_mode="eval", cps_weight=2.0)
    data = batch() | (second() if partner == "second_batch" else {})
    first, other = copy.deepcopy(method.first), copy.deepcopy(method.second)
    inside = method.mask(data["image_u"], progress().generator)
    assert 0 < inside.float().mean() < 1
    pasted = data["image_u2"] if partner == "second_batch" else data["image_u"].roll(-1, 0)
    mixed = torch.where(inside[:, None], pasted, data["image_u"])
    labels = []
    for network in (first, other):
        unmixed, there = (upsampled(network.eval()(images)["logits"]) for images in (data["image_u"], pasted))
        labels.append(torch.where(inside[:, None], there, unmixed).argmax(1))
        network.train()
    images = torch.cat([data["image_l"], mixed])
    logits = [upsampled(network(images)["logits"]) for network in (first, other)]
    cross = F.cross_entropy(logits[0][2:], labels[1]) + F.cross_entropy(logits[1][2:], labels[0])
    found = method(data, progress())
    torch.testing.assert_close(found["cross"], 2 * cross.detach())


def test_the_passes_that_label_move_the_statistics_in_train_mode_only() -> None:
    counts = {}
    for mode in ("train", "eval"):
        method = build("cps", cps_label_mode=mode)
        method(batch(), progress())
        counts[mode] = [int(n.encoder[1].num_batches_tracked) for n in (method.first, method.second)]
    assert counts == {"train": [2, 2], "eval": [1, 1]}


def test_the_mean_of_both_networks_is_of_probabilities() -> None:
    method, images = build("cps", evaluated="mean"), batch()["image_u"]
    found = method.evaluated.eval()(images)["logits"].softmax(1)
    both = [network(images)["logits"].softmax(1) for network in (method.first, method.second)]
    torch.testing.assert_close(found, (both[0] + both[1]) / 2)
    assert build("cps").evaluated.state_dict().keys() == method.first.state_dict().keys()


def boxes_oracle(draws: np.ndarray, height: int, width: int) -> np.ndarray:
    """Three boxes drawn one after the other, each turning what it covers over."""
    batch_size = draws.shape[1]
    masks = np.zeros((batch_size, height, width), dtype=bool)
    for i in range(batch_size):
        for box in range(3):
            u, v, y, x = (float(value) for value in draws[:, i, box])
            q = 0.25 + u / 4
            tall = q**v
            wide = q / tall
            h, w = round(height * tall * 3**-0.5), round(width * wide * 3**-0.5)
            top, left = round((height - h) * y), round((width - w) * x)
            masks[i, top : top + h, left : left + w] ^= True
    return masks


@pytest.mark.parametrize(("height", "width"), [(33, 33), (40, 61), (129, 65)])
def test_three_boxes_toggle_as_the_oracle_draws_them(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(4, 50, 3, generator=generator).double().numpy()
    generator.manual_seed(0)
    found = toggling_boxes(50, height, width, count=3, generator=generator, device="cpu")
    np.testing.assert_array_equal(found.numpy(), boxes_oracle(draws, height, width))


def test_a_box_covers_a_share_of_the_image_in_the_range_and_two_leave_their_common_part() -> None:
    generator = torch.Generator().manual_seed(0)
    single = toggling_boxes(400, 300, 300, count=1, generator=generator, device="cpu").float().mean((1, 2))
    assert 0.245 < single.min() < 0.26 and 0.49 < single.max() < 0.505
    assert single.mean() == pytest.approx(0.375, abs=0.01)
    triple = toggling_boxes(400, 300, 300, count=3, generator=generator, device="cpu").float().mean((1, 2))
    assert triple.max() < 0.505 and triple.mean() < 0.37, "common parts of two boxes are taken out"
