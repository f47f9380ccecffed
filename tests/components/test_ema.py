import copy

import pytest
import torch
from torch import nn

from u2pl.components.ema import ema_decay, ema_update

torch.set_num_threads(1)


def test_decay_grows_from_zero_to_its_limit() -> None:
    assert [ema_decay(0.9, step) for step in (0, 1, 3, 9, 99)] == pytest.approx([0, 0.5, 0.75, 0.9, 0.9])


def test_first_steps_average_the_students_evenly() -> None:
    """With d_t = 1 - 1 / (t + 1) the closed form is the plain mean of all students so far."""
    teacher, student = nn.Linear(3, 2), nn.Linear(3, 2)
    seen = []
    for step in range(5):
        nn.init.normal_(student.weight)
        seen.append(student.weight.detach().clone())
        ema_update(teacher, student, 0.99, step)
        torch.testing.assert_close(teacher.weight.detach(), torch.stack(seen).mean(0))


def test_constant_decay_has_the_geometric_closed_form() -> None:
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
    start, target = teacher.weight.detach().clone(), student.weight.detach().clone()
    for _ in range(7):
        ema_update(teacher, student, 0.8, 10**6)
    torch.testing.assert_close(teacher.weight.detach(), target + 0.8**7 * (start - target))


def test_buffers_stay_and_the_first_update_replaces_bad_weights() -> None:
    student = nn.BatchNorm1d(3)
    teacher = copy.deepcopy(student)
    student.running_mean += 1
    nn.init.constant_(teacher.weight, float("nan"))
    ema_update(teacher, student, 0.99, 0)
    assert torch.equal(teacher.weight, student.weight)
    assert torch.all(teacher.running_mean == 0)


def test_without_warm_up_the_decay_is_constant_from_the_first_step() -> None:
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.9 * teacher.weight.detach() + 0.1 * student.weight.detach()
    ema_update(teacher, student, 0.9, 0, warmup=False)
    torch.testing.assert_close(teacher.weight.detach(), expected)


def test_buffers_can_be_averaged_like_parameters() -> None:
    student = nn.BatchNorm1d(3)
    teacher = copy.deepcopy(student)
    student(torch.randn(8, 3))
    expected = (teacher.running_var + student.running_var) / 2
    ema_update(teacher, student, 0.99, 1, buffers=True)
    torch.testing.assert_close(teacher.running_var, expected)
    assert teacher.num_batches_tracked == 1
    ema_update(teacher, student, 0.99, 0, buffers=True)
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in teacher.state_dict().items())
