"""Copy-Paste of whole classes, and the boxes of connected components."""

import numpy as np
import pytest
import torch

from u2pl.components.copy_paste import component_boxes, copy_paste

torch.set_num_threads(1)


def test_exactly_the_pixels_of_the_drawn_classes_change() -> None:
    generator = torch.Generator().manual_seed(0)
    images, others = torch.randn(2, 4, 3, 9, 8, generator=generator)
    masks, other_masks = torch.randint(5, (2, 4, 9, 8), generator=generator)
    other_masks[:, 0] = 255
    valid = torch.rand(4, 9, 8, generator=generator) < 0.7
    classes, paste = torch.tensor([[1, 1], [0, 3], [2, 4], [5, 5]]), torch.tensor([True, True, False, True])
    found, labels = copy_paste(images, masks, others, other_masks, valid, classes, paste)
    changed = 0
    for i in range(4):
        for y in range(9):
            for x in range(8):
                inside = bool(paste[i] and valid[i, y, x] and int(other_masks[i, y, x]) in classes[i].tolist())
                changed += inside
                source, mask = (others, other_masks) if inside else (images, masks)
                assert torch.equal(found[i, :, y, x], source[i, :, y, x]) and labels[i, y, x] == mask[i, y, x]
    assert changed > 20, "class 5 does not exist: nothing is pasted into the last image"
    assert torch.equal(found[3], images[3]) and torch.equal(found[2], images[2])


def maps(*blobs: tuple[int, int, int, int]) -> torch.Tensor:
    """One map (1, 20, 20) with rectangles of rows and columns."""
    found = torch.zeros(1, 20, 20, dtype=torch.bool)
    for top, bottom, left, right in blobs:
        found[0, top:bottom, left:right] = True
    return found


NONE = torch.zeros(1, 20, 20, dtype=torch.bool)


def test_the_box_of_a_component_is_its_bounding_box_and_corners_connect() -> None:
    ring = maps((2, 5, 3, 8), (5, 7, 8, 10))  # they touch at a corner
    ring[0, 3, 4] = False
    found = component_boxes(ring, 0.01, torch.tensor([0.7]), NONE)
    assert torch.equal(found, maps((2, 7, 3, 10)))


@pytest.mark.parametrize(("ratio", "large"), [(0.0, 2), (15 / 400, 1), (16 / 400, 1), (40 / 400, 0)])
def test_one_of_the_components_above_the_ratio_is_chosen(ratio: float, large: int) -> None:
    both = maps((0, 3, 0, 5), (10, 14, 4, 14))  # of 15 and of 40 pixels
    otherwise = maps((1, 11, 0, 20))
    found = [component_boxes(both, ratio, torch.tensor([draw]), otherwise) for draw in (0.0, 0.49, 0.51, 0.999)]
    small, big = maps((0, 3, 0, 5)), maps((10, 14, 4, 14))
    expected = {2: [small, small, big, big], 1: [big] * 4, 0: [otherwise] * 4}[large]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_each_map_has_its_own_box() -> None:
    three = torch.cat([maps((0, 3, 0, 5)), maps(), maps((5, 9, 5, 9))])
    otherwise = torch.cat([maps((0, 10, 0, 20))] * 3)
    found = component_boxes(three, 0.0, torch.rand(3), otherwise)
    assert torch.equal(found, torch.cat([maps((0, 3, 0, 5)), maps((0, 10, 0, 20)), maps((5, 9, 5, 9))]))
    assert found.dtype == torch.bool and np.array_equal(found.sum((1, 2)), [15, 200, 16])
