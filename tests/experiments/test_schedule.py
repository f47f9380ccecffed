"""Steps of an epoch, against torch's own samplers and against numbers counted in the released code."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from tests.small import settings_for
from u2pl.experiments import load_suite
from u2pl.experiments.schedule import steps_per_epoch
from u2pl.experiments.schema import Recipe
from u2pl.experiments.suite import RunSpec, Suite

ROOT = Path(__file__).parents[2]
ESTIMATE = {"supervised_step": 1, "semi_supervised_step": 1, "validation": 1, "weights_mb": 1}
# protocol -> (labelled, unlabelled); None: the same steps either way, else (global, distributed)
LISTS: dict[str, dict[tuple[int, int], tuple[int, int] | None]] = {
    "pascal_classic": {
        (92, 10490): None,
        (183, 10399): (649, 650),
        (366, 10216): None,
        (732, 9850): None,
        (1464, 9118): (569, 570),
    },
    "pascal_blender": {(662, 9920): None, (1323, 9259): None, (2646, 7936): None, (5291, 5291): None},
    "cityscapes": {(186, 2789): None, (372, 2603): (162, 163), (744, 2231): None, (1488, 1487): (92, 93)},
}


def recipe(batch: int) -> Recipe:
    fields: dict[str, Any] = {
        "network": {"encoder": "resnet18"},
        "lr": 0.1,
        "weight_decay": 0.0,
        "epochs": 2,
        "crop": 9,
    }
    return Recipe.model_validate(fields | {"batch": batch, "estimate": ESTIMATE})


def counted(length: int, gpus: int, group: int, *, drop_last: bool) -> int:
    """Batches that torch's own samplers give to each of so many GPUs."""
    images, found = range(length), set()
    for number in range(gpus):
        sampler: DistributedSampler[int] = DistributedSampler(images, gpus, number)  # type: ignore[arg-type]
        found.add(len(list(BatchSampler(sampler, group, drop_last))))
        assert len(DataLoader(images, group, sampler=sampler, drop_last=drop_last)) in found  # type: ignore[arg-type]
    (steps,) = found
    return steps


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load_suite("paper", ROOT)


def spec_of(suite: Suite, protocol: str, labelled: int, method: str) -> RunSpec:
    return suite.runs[f"{protocol}-{labelled}-{method}-seed0"]


@pytest.mark.parametrize(
    ("protocol", "labelled", "unlabelled"), [(name, *sizes) for name, lists in LISTS.items() for sizes in lists]
)
def test_a_semi_supervised_epoch_has_the_steps_of_torchs_distributed_samplers(
    suite: Suite, protocol: str, labelled: int, unlabelled: int
) -> None:
    spec = spec_of(suite, protocol, labelled, "u2pl")
    assert spec.recipe.batch == 16 and spec.settings.sampler == "distributed"
    gpus, group = (8, 2) if protocol == "cityscapes" else (4, 4)
    steps = {
        sampler: steps_per_epoch(
            spec.recipe, spec.settings.model_copy(update={"sampler": sampler}), labelled, unlabelled
        )
        for sampler in ("global", "distributed")
    }
    assert steps["global"] == unlabelled // 16
    assert steps["distributed"] == counted(unlabelled, gpus, group, drop_last=True)
    expected = LISTS[protocol][labelled, unlabelled] or (unlabelled // 16,) * 2
    assert tuple(steps.values()) == expected
    # and SupOnly that counts iterations takes as many
    alone = spec_of(suite, protocol, labelled, "suponly").settings
    for sampler, count in steps.items():
        counting = alone.model_copy(update={"suponly_epoch_unit": "iterations", "sampler": sampler})
        assert steps_per_epoch(spec.recipe, counting, labelled, unlabelled) == count


@pytest.mark.parametrize(
    ("protocol", "labelled", "steps_global", "steps_distributed"),
    [
        ("pascal_classic", 92, 400, 480),
        ("pascal_classic", 183, 880, 960),
        ("pascal_classic", 1464, 7280, 7360),
        ("pascal_blender", 1323, 6560, 6640),
        ("cityscapes", 186, 2200, 2400),
    ],
)
def test_suponly_keeps_the_incomplete_batch_of_the_labelled_list(
    suite: Suite, protocol: str, labelled: int, steps_global: int, steps_distributed: int
) -> None:
    """Of a whole training; on Cityscapes SupOnly runs on four GPUs of four images, too."""
    spec = spec_of(suite, protocol, labelled, "suponly")
    assert spec.recipe.epochs == (200 if protocol == "cityscapes" else 80)
    for sampler, expected in (("global", steps_global), ("distributed", steps_distributed)):
        settings = spec.settings.model_copy(update={"sampler": sampler})
        assert spec.recipe.epochs * steps_per_epoch(spec.recipe, settings, labelled, 9999) == expected
    assert steps_distributed == spec.recipe.epochs * counted(labelled, 4, 4, drop_last=False)


@given(
    st.integers(1, 200),
    st.integers(0, 200),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from(["suponly", "iterations", "cutmix", "cps"]),
)
def test_steps_of_any_lists_are_those_of_the_samplers(
    labelled: int, unlabelled: int, gpus: int, group: int, kind: str
) -> None:
    by_labelled = kind == "suponly"
    unit = {"suponly_epoch_unit": "labelled" if by_labelled else "iterations"}
    # the group of the other epoch unit must not matter
    groups = {"group_size": 3 if by_labelled else group, "suponly_group_size": group if by_labelled else 3}
    settings = settings_for("suponly" if kind == "iterations" else kind, **unit, **groups)
    length = labelled if by_labelled else unlabelled or labelled
    expected = max(1, counted(length, gpus, group, drop_last=not by_labelled))
    assert steps_per_epoch(recipe(gpus * group), settings, labelled, unlabelled) == expected


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 6, 7])
def test_a_batch_that_is_no_multiple_of_the_group_still_passes_once_over_the_list(batch: int) -> None:
    """With fewer images than a group there is one GPU, and neither rule pads by more than a GPU has."""
    for length in range(1, 40):
        semi = steps_per_epoch(recipe(batch), settings_for("cutmix", group_size=4), 3, length)
        assert semi == max(1, length // batch)
        alone = steps_per_epoch(recipe(batch), settings_for("suponly", suponly_group_size=4), length, 99)
        assert alone == math.ceil(length / batch)


def test_half_a_batch_per_stream_halves_the_gpus() -> None:
    """8 + 8 images are two GPUs of four: a list of 23 is padded to 24 images, which are three steps."""
    settings = settings_for("cutmix", batch_size="total", group_size=4)
    assert steps_per_epoch(recipe(16), settings, 3, 23) == counted(23, 2, 4, drop_last=True) == 3
    assert steps_per_epoch(recipe(16), settings.model_copy(update={"sampler": "global"}), 3, 23) == 2


@given(st.integers(1, 100), st.integers(0, 100))
def test_a_stream_that_reads_all_images_counts_both_lists(labelled: int, unlabelled: int) -> None:
    everything, rest = (settings_for("pseudoseg", unlabelled_list=name, group_size=2) for name in ("all", "rest"))
    assert steps_per_epoch(recipe(4), everything, labelled, unlabelled) == max(
        1, counted(labelled + unlabelled, 2, 2, drop_last=True)
    )
    assert steps_per_epoch(recipe(4), rest, labelled, unlabelled) == max(
        1, counted(unlabelled or labelled, 2, 2, drop_last=True)
    )
