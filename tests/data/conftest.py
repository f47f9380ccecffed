"""Synthetic archives and prepared folders, made once a session."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from u2pl.data.prepare import prepare
from u2pl.data.synthesize import synthesize
from u2pl.experiments.schema import Archive, ClassLabel, Dataset, Evaluation

FILES = {
    "pascal": {"voc": "VOCtrainval_11-May-2012.tar", "sbd": "benchmark.tgz"},
    "cityscapes": {"images": "leftImg8bit_trainvaltest.zip", "labels": "gtFine_trainvaltest.zip"},
}
COUNTS = {"pascal": {"train": 6, "train_aug": 10, "val": 4}, "cityscapes": {"train": 5, "val": 3}}
SIZE = (48, 64)


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Dataset]:
    def make(kind: str, counts: dict[str, int] | None = None, **changes: Any) -> Dataset:
        classes = [ClassLabel(name=f"c{i}", colour=(i, i, i)) for i in range({"pascal": 21, "cityscapes": 19}[kind])]
        fields: dict[str, Any] = {
            "kind": kind, "classes": classes, "mean": (124, 116, 104), "std": (58, 57, 57),
            "archives": {key: Archive(file=file, url="") for key, file in FILES[kind].items()},
            "counts": COUNTS[kind] if counts is None else counts,
            "evaluation": Evaluation(mode="centre_crop", crop=33),
        }  # fmt: skip
        return Dataset(**(fields | changes))

    return make


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four synthetic archives; do not write here."""
    folder = tmp_path_factory.mktemp("archives")
    synthesize("pascal", folder, seed=3, train=6, extra=4, val=4, size=SIZE)
    synthesize("cityscapes", folder, seed=3, train=5, extra=0, val=3, size=SIZE)
    return folder


@pytest.fixture(scope="session")
def pascal(archives: Path, make_dataset: Callable[..., Dataset], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared Pascal folder; do not write here."""
    folder = tmp_path_factory.mktemp("prepared") / "pascal"
    prepare(make_dataset("pascal"), archives, folder, 2)
    return folder
