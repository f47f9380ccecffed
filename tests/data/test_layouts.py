from pathlib import Path

from u2pl.data.layouts import LAYOUTS
from u2pl.experiments import load_suite
from u2pl.experiments.schema import LISTS

ROOT = Path(__file__).parents[2]


def test_every_kind_of_data_set_has_a_layout_and_none_is_unused() -> None:
    assert LAYOUTS.keys() == LISTS.keys()
    assert all(layout.masks.keys() <= layout.archives for layout in LAYOUTS.values())


def test_layouts_read_the_archives_that_params_declare() -> None:
    for dataset in load_suite("paper", ROOT).datasets.values():
        assert dataset.archives.keys() == LAYOUTS[dataset.kind].archives
