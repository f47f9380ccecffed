import math
from fractions import Fraction
from typing import get_args

import pytest
import torch

from u2pl.components.mixing import Shape, boxes_for, cutmix, cutmix_boxes, partners

torch.set_num_threads(1)


SHAPES = get_args(Shape)


def boxes(
    batch: int, height: int, width: int, probability: float = 1.0, seed: int = 0, shape: Shape = "uniform_width"
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return cutmix_boxes(
        batch, height, width, probability=probability, generator=generator, device="cpu", shape=shape
    )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 47), (5, 4), (2, 9), (9, 2), (1, 1)])
def test_each_box_is_one_rectangle_of_half_the_area(height: int, width: int, shape: Shape) -> None:
    for box in boxes(200, height, width, shape=shape):
        rows, columns = box.any(1), box.any(0)
        assert torch.equal(box, rows[:, None] & columns[None])
        for side in (rows, columns):
            assert (side.int().diff() == 1).sum() + int(side[0]) == 1  # one run of True
        # one side is rounded to pixels: off by at most half a row or a column
        drawn = columns if shape == "uniform_width" else rows
        assert abs(box.sum().item() - height * width / 2) <= drawn.sum().item() / 2


@pytest.mark.parametrize(("height", "width"), [(24, 30), (13, 9), (7, 4), (4, 3)])
def test_a_uniform_width_pixel_by_pixel(height: int, width: int) -> None:
    """The rule written out in Python integers and exact fractions, from the same draws."""
    draws = torch.rand(3, 50, generator=torch.Generator().manual_seed(3))
    for i, box in enumerate(boxes(50, height, width, seed=3)):
        u, v, w = (Fraction(float(value)) for value in draws[:, i])
        widths = range(width // 2 + 1, width)
        box_width = widths[math.floor(u * len(widths))]
        box_height = round(Fraction(height * width, 2) / box_width)
        top = math.floor(v * (height - box_height + 1))
        left = math.floor(w * (width - box_width + 1))
        for y in range(height):
            for x in range(width):
                inside = top <= y < top + box_height and left <= x < left + box_width
                assert bool(box[y, x]) == inside


def test_a_uniform_width_takes_each_integer_and_each_place_alike() -> None:
    found = boxes(12000, 12, 24)
    widths, firsts = found.any(1).sum(1), found.any(1).int().argmax(1)
    counts = [int((widths == value).sum()) for value in range(25)]
    assert not any(counts[:13]) and not counts[24], "13 to 23: more than half of the width, less than all"
    expected = 12000 / 11
    assert sum((count - expected) ** 2 / expected for count in counts[13:24]) < 35  # chi-square, 10 degrees: p = 1e-4
    places = torch.bincount(firsts[widths == 13], minlength=12)
    assert len(places) == 12, "12 places fit"
    assert sum((places - places.sum() / 12) ** 2 / (places.sum() / 12)) < 37  # 11 degrees


def test_widths_of_the_published_crop() -> None:
    """Of 513 columns 257 to 512; low images, since a width does not depend on the height."""
    widths = boxes(6000, 4, 513).any(1).sum(1).float()
    assert abs(widths.median() - 384.5) < 8 and abs(widths.mean() - 384.5) < 5  # five sigma
    assert widths.min() == 257 and widths.max() == 512


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_cover_every_pixel_and_differ_between_images(shape: Shape) -> None:
    found = boxes(300, 12, 10, shape=shape)
    assert found.any(0).all()
    assert len({tuple(box.flatten().tolist()) for box in found}) > 30


def test_the_shape_of_a_box_changes_no_other_draw() -> None:
    """The generator is left in the same state, so that all else of a run draws the same."""
    states = []
    for shape in SHAPES:
        generator = torch.Generator().manual_seed(0)
        boxes_for(torch.zeros(4, 3, 9, 8), 0.5, generator, shape)
        states.append(generator.get_state())
    assert torch.equal(*states)


def test_the_whole_batch_is_mixed_with_the_given_probability() -> None:
    mixed = [boxes(3, 8, 8, 0.5, seed).flatten(1).any(1) for seed in range(400)]
    assert all(each.all() or not each.any() for each in mixed)
    assert abs(sum(bool(each.all()) for each in mixed) - 200) < 50  # five sigma
    assert not boxes(3, 8, 8, 0.0).any()


# The released code rolls each GPU's images by one: four of them on VOC, two on Cityscapes.
@pytest.mark.parametrize(
    ("group", "batch", "partner"),
    [
        (4, 1, [0]),
        (4, 3, [1, 2, 0]),
        (4, 4, [1, 2, 3, 0]),
        (4, 6, [1, 2, 3, 0, 5, 4]),
        (4, 9, [1, 2, 3, 0, 5, 6, 7, 4, 8]),
        (4, 16, [1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12]),
        (2, 1, [0]),
        (2, 4, [1, 0, 3, 2]),
        (2, 5, [1, 0, 3, 2, 4]),
        (2, 16, [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14]),
        (3, 6, [1, 2, 0, 4, 5, 3]),
    ],
)
def test_mixing_takes_the_next_image_of_the_group_inside_the_box(group: int, batch: int, partner: list[int]) -> None:
    """For images and labels alike."""
    assert partners(batch, group) == partner
    images, labels = torch.randn(batch, 2, 9, 8), torch.randint(5, (batch, 9, 8))
    where = boxes(batch, 9, 8)
    mixed, mixed_labels = cutmix(images, where, group), cutmix(labels, where, group)
    for i in range(batch):
        for y in range(9):
            for x in range(8):
                source = partner[i] if where[i, y, x] else i
                assert torch.equal(mixed[i, :, y, x], images[source, :, y, x])
                assert mixed_labels[i, y, x] == labels[source, y, x]
