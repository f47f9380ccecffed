"""The perturbations of CCT against loops in NumPy, and the adversarial step against finite differences."""

from collections import deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from u2pl.components import feature_perturbations as perturb
from u2pl.models.deeplab import head

torch.set_num_threads(1)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_dropped_channels_are_zero_and_the_others_double() -> None:
    z, draws = uniform(3, 6, 4, 5), uniform(3, 6, seed=1)
    found = perturb.drop_channels(z, draws).numpy()
    for image in range(3):
        for channel in range(6):
            factor = 2 if draws[image, channel] < 0.5 else 0
            np.testing.assert_array_equal(found[image, channel], factor * z[image, channel].numpy())
    assert 0 < (draws < 0.5).sum() < draws.numel()


@pytest.mark.parametrize("draw", [0.0, 0.4, 1 - 1e-9])
def test_salient_places_are_dropped_above_a_share_of_the_maximum(draw: float) -> None:
    z = uniform(4, 3, 7, 7)
    found = perturb.drop_salient(z, torch.tensor(draw)).numpy()
    for image, values in zip(found, z.numpy(), strict=True):
        attention = values.mean(axis=0)
        gone = attention >= (0.7 + 0.2 * draw) * attention.max()
        np.testing.assert_array_equal(image, np.where(gone, 0, values))
        assert (image[:, attention == attention.max()] == 0).all()
        assert (image[:, attention < 0.7 * attention.max()] > 0).all()


def test_noise_is_multiplicative_within_its_range_and_common_to_all_images() -> None:
    z, draws = uniform(3, 4, 5, 5) + 0.1, uniform(4, 5, 5, seed=1)
    factors = (perturb.add_noise(z, draws) / z).numpy()
    np.testing.assert_allclose(factors, np.broadcast_to(1 + (0.6 * draws.numpy() - 0.3), factors.shape))
    assert factors.min() >= 0.7 and factors.max() <= 1.3 and factors.std() > 0.1


def test_context_and_object_masks_add_up_to_the_features() -> None:
    z, generator = uniform(2, 3, 9, 9), torch.Generator().manual_seed(0)
    views = perturb.Perturbations(z, uniform(2, 33, 33, seed=2) < 0.5, 33, 2.0, generator)
    context, objects = views.view("context"), views.view("object")
    assert torch.equal(context + objects, z) and not (context * objects).any()
    assert context.any() and objects.any()


def oracle_objects(mask: np.ndarray, least: float) -> list[list[int]]:
    """By flooding: the outside through edges from beyond the image, then each part through corners."""
    padded = np.pad(mask, 1)
    outside, queue = np.zeros_like(padded), deque([(0, 0)])
    outside[0, 0] = True
    while queue:
        y, x = queue.popleft()
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            inside = 0 <= v < padded.shape[0] and 0 <= u < padded.shape[1]
            if inside and not padded[v, u] and not outside[v, u]:
                outside[v, u] = True
                queue.append((v, u))
    solid, found = ~outside, []
    for start in zip(*np.nonzero(solid), strict=True):
        if not solid[start]:
            continue
        part, queue = [], deque([start])
        solid[start] = False
        while queue:
            y, x = queue.popleft()
            part.append((y, x))
            for v in (y - 1, y, y + 1):
                for u in (x - 1, x, x + 1):
                    if solid[v, u]:
                        solid[v, u] = False
                        queue.append((v, u))
        rim = sum(any(outside[y + a, x + b] for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0))) for y, x in part)
        if rim > least:
            rows, columns = zip(*part, strict=True)
            found.append([int(v) - 1 for v in (min(rows), min(columns), max(rows), max(columns))])
    return found


@pytest.mark.parametrize("least", [0, 3, 12])
def test_objects_are_those_of_a_flood(least: float) -> None:
    masks = np.random.default_rng(0).random((40, 14, 17)) < np.linspace(0.1, 0.95, 40)[:, None, None]
    found = perturb.find_objects(torch.from_numpy(masks), least)
    counts = set()
    for boxes, mask in zip(found.tolist(), masks, strict=True):
        expected = oracle_objects(mask, least)
        counts.add(len(expected))
        assert boxes[: len(expected)] == expected
        assert not np.any(boxes[len(expected) :])
    assert len(counts) > 1 and found.shape[1] == max(counts)


def test_corners_connect_holes_are_filled_and_what_lies_in_them_is_no_object() -> None:
    mask = torch.zeros(1, 12, 12, dtype=torch.bool)
    mask[0, 1:8, 1:8] = True
    mask[0, 2:7, 2:7] = False  # a hole
    mask[0, 4, 4] = True  # with an island
    mask[0, 8, 8] = True  # through a corner
    mask[0, 11, 0] = True
    assert perturb.find_objects(mask, 0).tolist() == [[[1, 1, 8, 8], [11, 0, 11, 0]]]
    assert perturb.find_objects(mask, 1).tolist() == [[[1, 1, 8, 8]]]
    assert perturb.find_objects(mask, 24).tolist() == [[[1, 1, 8, 8]]]  # its outline has 24 pixels, and the corner
    assert perturb.find_objects(mask, 25).shape == (1, 0, 4)


def test_a_rectangle_is_cut_out_of_each_object() -> None:
    rng = np.random.default_rng(0)
    objects = np.zeros((5, 70, 4), dtype=int)
    for image in range(4):  # the last has none
        for i in range(rng.integers(1, 70) if image else 70):
            top, left = rng.integers(0, 30, 2)
            objects[image, i] = top, left, rng.integers(top, 40), rng.integers(left, 50)
    draws = rng.random((5, perturb.OBJECTS, 2))
    found = perturb.cut_boxes(torch.from_numpy(objects), torch.from_numpy(draws), 40, 50).numpy()
    for image in range(5):
        expected = np.zeros((40, 50), dtype=bool)
        for i, (top, left, bottom, right) in enumerate(objects[image]):
            high, wide = bottom - top, right - left
            first = top + int(draws[image, i % 64, 0] * (int(high * 0.6) + 1))
            second = left + int(draws[image, i % 64, 1] * (int(wide * 0.6) + 1))
            expected[first : first + int(high * 0.4), second : second + int(wide * 0.4)] = True
        np.testing.assert_array_equal(found[image], expected)
    assert found[:4].any((1, 2)).all() and not found[4].any()


def test_a_cut_is_sixteen_hundredths_of_the_box_and_inside_it() -> None:
    boxes, draws = torch.tensor([[[0, 0, 100, 50]]]).repeat(200, 1, 1), uniform(200, perturb.OBJECTS, 2)
    found = perturb.cut_boxes(boxes, draws, 101, 51)
    assert (found.sum((1, 2)) == 40 * 20).all()
    assert len({tuple(image.nonzero()[0].tolist()) for image in found}) > 150


def decoder_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    decoder = nn.Conv2d(6, 4, 1) if kind == "classifier" else head(6, 8, 4, 0.3)
    return decoder.double().eval()


def divergence(decoder: nn.Module, z: Tensor, moved: Tensor) -> Tensor:
    log_p, log_q = decoder(z).log_softmax(1), decoder(moved).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum()


@pytest.mark.parametrize("kind", ["classifier", "head"])
def test_the_adversarial_step_has_the_direction_of_the_gradient_of_kl_at_a_small_step(kind: str) -> None:
    decoder, z, draws = decoder_of(kind), uniform(3, 6, 5, 4), uniform(3, 6, 5, 4, seed=1)
    found = perturb.adversarial_step(decoder, z, draws)
    d = draws - 0.5
    probe = (1e-5 * d / d.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).requires_grad_()
    (expected,) = torch.autograd.grad(divergence(decoder, z.detach(), z.detach() + probe), probe)
    cosines = F.cosine_similarity(found.flatten(1), expected.flatten(1))
    torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.ones(3, dtype=torch.float64))
    assert all(parameter.grad is None for parameter in decoder.parameters()) and not found.requires_grad


def test_the_adversarial_step_moves_the_prediction_further_than_a_random_one() -> None:
    decoder, z, draws = decoder_of("classifier"), uniform(3, 6, 5, 4), uniform(3, 6, 5, 4, seed=1)
    random = draws - 0.5
    random *= 2 / random.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    ours = divergence(decoder, z, z + 2 * perturb.adversarial_step(decoder, z, draws))
    assert ours > 1.5 * divergence(decoder, z, z + random)


def test_the_search_moves_no_statistics_and_its_result_is_a_constant_for_the_gradient() -> None:
    decoder, z, draws = decoder_of("head").train(), uniform(3, 6, 5, 4).requires_grad_(), uniform(3, 6, 5, 4, seed=1)
    step = perturb.adversarial_step(decoder_of("head"), z, draws)
    torch.manual_seed(1)
    found = perturb.adversarial_logits(decoder, z, draws, 3.0)
    assert int(decoder[0][1].num_batches_tracked) == 1 and decoder.training
    torch.manual_seed(1)
    other = decoder_of("head").train()
    torch.manual_seed(1)
    expected = other(z + 3 * step)
    torch.testing.assert_close(found, expected)
    one, two = (torch.autograd.grad(values.square().sum(), z)[0] for values in (found, expected))
    torch.testing.assert_close(one, two)


def test_half_precision_features_still_meet_the_adversarial_step() -> None:
    decoder = nn.Conv2d(32, 4, 1)
    z, draws = uniform(2, 32, 40, 40).bfloat16() + 1, uniform(2, 32, 40, 40, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = perturb.adversarial_logits(decoder, z, draws, 3.0)
    plain = decoder(z.float())
    step = perturb.adversarial_step(decoder, z.float(), draws)
    assert found.dtype == torch.float32 and not torch.equal(found, plain)
    torch.testing.assert_close(found - plain, F.conv2d(3 * step, decoder.weight), rtol=1e-2, atol=1e-5)


def test_an_unknown_perturbation_is_refused() -> None:
    views = perturb.Perturbations(uniform(1, 2, 3, 3), torch.ones(1, 3, 3).bool(), 9, 2.0, torch.Generator())
    with pytest.raises(ValueError, match="shuffle"):
        views.view("shuffle")
