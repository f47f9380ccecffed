import pytest
import torch

from u2pl.components.mixing import cutmix, cutmix_boxes

torch.set_num_threads(1)


def boxes(batch: int, height: int, width: int, probability: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return cutmix_boxes(batch, height, width, probability=probability, generator=generator, device="cpu")


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 47), (5, 4), (1, 1)])
def test_each_box_is_one_rectangle_of_half_the_area(height: int, width: int) -> None:
    for box in boxes(200, height, width):
        rows, columns = box.any(1), box.any(0)
        assert torch.equal(box, rows[:, None] & columns[None])
        for side in (rows, columns):
            assert (side.int().diff() == 1).sum() + int(side[0]) == 1  # one run of True
        # the width is rounded to pixels: off by at most half a column
        assert abs(box.sum().item() - height * width / 2) <= rows.sum().item() / 2


def test_boxes_cover_every_pixel_and_differ_between_images() -> None:
    found = boxes(300, 12, 10)
    assert found.any(0).all()
    assert len({tuple(box.flatten().tolist()) for box in found}) > 30


def test_the_whole_batch_is_mixed_with_the_given_probability() -> None:
    mixed = [boxes(3, 8, 8, 0.5, seed).flatten(1).any(1) for seed in range(400)]
    assert all(each.all() or not each.any() for each in mixed)
    assert abs(sum(bool(each.all()) for each in mixed) - 200) < 50  # five sigma
    assert not boxes(3, 8, 8, 0.0).any()


# The released code rolls each GPU's four images by one.
@pytest.mark.parametrize(
    ("batch", "partner"),
    [
        (1, [0]),
        (3, [1, 2, 0]),
        (4, [1, 2, 3, 0]),
        (6, [1, 2, 3, 0, 5, 4]),
        (9, [1, 2, 3, 0, 5, 6, 7, 4, 8]),
        (16, [1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12]),
    ],
)
def test_mixing_takes_the_next_image_of_the_group_inside_the_box(batch: int, partner: list[int]) -> None:
    """For images and labels alike."""
    images, labels = torch.randn(batch, 2, 9, 8), torch.randint(5, (batch, 9, 8))
    where = boxes(batch, 9, 8)
    mixed, mixed_labels = cutmix(images, where), cutmix(labels, where)
    for i in range(batch):
        for y in range(9):
            for x in range(8):
                source = partner[i] if where[i, y, x] else i
                assert torch.equal(mixed[i, :, y, x], images[source, :, y, x])
                assert mixed_labels[i, y, x] == labels[source, y, x]
