"""A checkout with one small table, which the tests of the workflow, of DVC and of the cluster each make."""

import shutil
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def _small_checkout(folder: Path, figures: dict | None = None, overrides: dict | None = None) -> Path:
    """The workflow's files in `folder`: SupOnly, a quoted row, and U2PL with `overrides`; returns `folder`."""
    folder.mkdir(exist_ok=True)
    for name in ("params", "workflow"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("Snakefile", "demo", "slurm"):
        shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    u2pl = {"title": "U2PL", "method": "u2pl", "paper": [69.15]}
    table = {
        "caption": "A small table.",
        "columns": [{"protocol": "pascal_classic", "fraction": "1/8"}],
        "rows": [
            {"title": "SupOnly", "method": "suponly", "paper": [54.92]},
            {"title": "PseudoSeg", "paper": [65.5]},
            u2pl | ({"overrides": overrides} if overrides else {}),
        ],
    }
    shutil.rmtree(folder / "params/tables")
    (folder / "params/tables").mkdir()
    (folder / "params/tables/small.yaml").write_text(yaml.safe_dump(table))
    (folder / "params/figures.yaml").write_text(yaml.safe_dump(figures or {}))
    scale = yaml.safe_load((folder / "params/scales/demo.yaml").read_text())
    (folder / "params/scales/demo.yaml").write_text(yaml.safe_dump(scale | {"tables": None}))
    return folder


@pytest.fixture(scope="session")
def small_checkout():
    """`small_checkout(folder, figures, overrides)` writes the files and makes nothing."""
    return _small_checkout
