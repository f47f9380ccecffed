"""The strong view against torchvision's functions, image by image."""

import itertools

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from u2pl.components.strong_view import colour_jitter, squares, strong_view, turned_hue

torch.set_num_threads(1)
CHANGES = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


def colours(n: int, height: int = 9, width: int = 7) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0))


def plain(colours: torch.Tensor) -> torch.Tensor:
    return colours.float()


def test_every_order_of_the_changes_is_torchvisions_image_by_image() -> None:
    orders = torch.tensor(list(itertools.permutations(range(4))))
    images, generator = colours(len(orders)), torch.Generator().manual_seed(1)
    amounts = 0.5 + torch.rand(len(orders), 4, generator=generator)
    amounts[:, 3] = torch.rand(len(orders), generator=generator) - 0.5
    found = colour_jitter(images, torch.ones(len(images), 9, 7).bool(), amounts, orders)
    for image, amount, order, result in zip(images, amounts, orders, found, strict=True):
        for kind in order.tolist():
            image = CHANGES[kind](image, float(amount[kind]))
        torch.testing.assert_close(result, image, rtol=0, atol=2e-5)


@pytest.mark.parametrize("turn", [-0.25, 0.0, 0.1, 0.5])
def test_greys_and_primary_colours_turn_as_in_torchvision(turn: float) -> None:
    levels = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=3))).T.reshape(1, 3, 3, 9)
    found = turned_hue(levels, torch.full((1, 1, 1, 1), turn))
    torch.testing.assert_close(found, tv.adjust_hue(levels, turn), rtol=0, atol=1e-5)


def test_contrast_is_about_the_grey_of_what_is_not_padded() -> None:
    image = colours(1)
    padded = torch.nn.functional.pad(image, (0, 4, 0, 3), value=0.9)
    valid = torch.zeros(1, 12, 11).bool()
    valid[:, :9, :7] = True
    amounts, order = torch.tensor([[1.2, 0.6, 1.4, 0.2]]), torch.tensor([[2, 1, 3, 0]])
    inside = colour_jitter(padded, valid, amounts, order)[:, :, :9, :7]
    alone = colour_jitter(image, torch.ones(1, 9, 7).bool(), amounts, order)
    torch.testing.assert_close(inside, alone)


def test_a_square_lies_about_its_centre_and_is_cut_off_at_the_border() -> None:
    found = squares(torch.tensor([[0.5, 0.5], [0.0, 0.999]]), 10, 20, 4)
    expected = torch.zeros(2, 10, 20).bool()
    expected[0, 3:7, 8:12] = expected[1, 0:2, 17:20] = True
    assert torch.equal(found, expected)


def test_the_square_of_a_crop_of_513_has_the_size_and_others_in_proportion() -> None:
    for crop in (513, 257):
        raw, valid = torch.zeros(40, 3, crop, crop, dtype=torch.uint8), torch.ones(40, crop, crop).bool()
        _, shown = strong_view(raw, valid, 100, plain, torch.Generator().manual_seed(0))
        assert (~shown).sum((1, 2)).max() == round(100 * crop / 513) ** 2


def test_padding_and_the_square_have_the_mean_colour_and_everything_else_the_jittered_one() -> None:
    raw = torch.randint(1, 256, (6, 3, 33, 33), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    valid = torch.ones(6, 33, 33).bool()
    valid[:, -5:] = False
    images, shown = strong_view(raw, valid, 100, lambda c: 1 + c.float(), torch.Generator().manual_seed(0))
    assert not shown[:, -5:].any() and (valid & ~shown).flatten(1).any(1).all()
    assert ((images != 0) == shown[:, None]).all()
    assert not torch.allclose(images[:, :, :20], 1 + raw[:, :, :20].float())


def test_amounts_and_orders_fill_their_ranges() -> None:
    """Of one grey image alone, its brightness shows: contrast, saturation and hue leave a grey image as it is."""
    raw, valid = torch.full((500, 3, 2, 2), 100, dtype=torch.uint8), torch.ones(500, 2, 2).bool()
    generator = torch.Generator().manual_seed(0)
    images, shown = strong_view(raw, valid, 1, plain, generator)
    levels = images.amax((1, 2, 3))[shown.flatten(1).any(1)]
    assert 50 <= levels.min() < 52 and 148 < levels.max() <= 150
    assert levels.mean() == pytest.approx(100, abs=5)
