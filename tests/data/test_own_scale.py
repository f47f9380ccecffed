"""The worked example of docs/data.md, a scale on archives of one's own, works as written."""

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from u2pl.cli.main import app
from u2pl.data.synthetic.archives import synthesize
from u2pl.errors import UserError
from u2pl.experiments import load_suite
from u2pl.files import read_json

ROOT = Path(__file__).parents[2]
NUMBERS = {"train": 16, "train_aug": 24, "val": 4}


@pytest.fixture
def example() -> dict:
    (text,) = re.findall(r"```yaml\n(title:.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    return yaml.safe_load(text)


@pytest.fixture
def u2pl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    shutil.copytree(ROOT / "params", tmp_path / "params")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: app([*arguments, "--scale", "lab"], standalone_mode=False)


def test_it_loads_as_it_is_printed(example: dict, u2pl: Callable[..., None]) -> None:
    Path("params/scales/lab.yaml").write_text(yaml.safe_dump(example))
    suite = load_suite("lab")
    assert list(suite.tables) == ["table1"] and len(suite.runs) == 30  # six methods, five columns
    assert max(spec.labelled for spec in suite.runs.values()) == suite.datasets["pascal"].counts["train"]


def test_with_archives_its_commands_run(example: dict, u2pl: Callable[..., None], tmp_path: Path) -> None:
    synthesize("pascal", tmp_path / "srv", seed=5, train=16, extra=8, val=4, size=(48, 64))
    data = example["datasets"]["pascal"]
    for key, file in (("voc", "VOCtrainval_11-May-2012.tar"), ("sbd", "benchmark.tgz")):
        packed = (tmp_path / "srv" / file).read_bytes()
        data["archives"][key] |= {"url": (tmp_path / "srv" / file).as_uri(), "md5": hashlib.md5(packed).hexdigest()}
    example["protocols"]["pascal_classic"]["fractions"] = {"1/16": 1, "1/8": 2, "1/4": 4, "1/2": 8, "full": 16}
    for counts in (data["counts"], NUMBERS):
        Path("params/scales/lab.yaml").write_text(yaml.safe_dump(example | {"datasets": {"pascal": data}}))
        for archive in ("voc", "sbd"):
            u2pl("data", "fetch", "pascal", archive)
        if counts != NUMBERS:
            with pytest.raises(UserError, match="found 16 images in train, expected the 400 that `counts` declares"):
                u2pl("data", "prepare", "pascal")
            data["counts"] = NUMBERS
    u2pl("data", "prepare", "pascal", "--workers", "2")
    u2pl("data", "split", "pascal_classic", "4")
    assert read_json(Path("data/lab/pascal/manifest.json"))["counts"] == NUMBERS
    assert len(Path("data/lab/splits/pascal_classic/drawn/4/seed0/labeled.txt").read_text().split()) == 4
