"""The settings of the methods: each has its own, and docs/fidelity.md explains them all."""

import shutil
from pathlib import Path

import pytest
import yaml

from u2pl.errors import UserError
from u2pl.experiments import load_suite
from u2pl.experiments.schema import Preset
from u2pl.experiments.settings import SETTINGS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params(tmp_path: Path) -> Path:
    """A folder with a copy of params/."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    return tmp_path


FIELDS = {name: set(kind.model_fields) for name, kind in SETTINGS.items()}


@pytest.mark.parametrize("method", SETTINGS)
def test_every_setting_is_documented(method):
    text = (ROOT / "docs/fidelity.md").read_text()
    assert [name for name in sorted(FIELDS[method]) if f"`{name}`" not in text] == []


def test_a_setting_means_the_same_in_every_method():
    for name in set.union(*FIELDS.values()):
        fields = [kind.model_fields[name] for kind in SETTINGS.values() if name in kind.model_fields]
        assert len({(str(field.annotation), str(field.metadata), field.default) for field in fields}) == 1, name


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_no_value_of_a_preset_is_for_nobody(preset):
    known = set.union(*FIELDS.values())
    parts = yaml.safe_load((ROOT / "params/fidelity.yaml").read_text())[preset]
    assert {name for part in ("all", "pascal", "cityscapes") for name in parts.get(part, {})} <= known


@pytest.mark.parametrize(
    ("method", "setting", "value", "expected"),
    [
        ("cutmix", "tau", 0.1, None),
        ("suponly", "batch_sizes", 0.5, "'batch_size'"),
        ("mean_teacher", "cutmix_probability", 1.0, None),
        ("mean_teacher", "warmup", 2, "'ema_warmup'"),
        ("u2pl", "ema_decai", 0.5, "'ema_decay'"),
    ],
)
def test_an_override_that_a_method_does_not_use_is_an_error(params, method, setting, value, expected):
    """With the file, the key, and the nearest key that the method has."""
    path = params / "params/tables/divergences.yaml"
    table = yaml.safe_load(path.read_text())
    number = len(table["rows"])
    table["rows"].append({"title": "x", "method": method, "overrides": {setting: value}, "paper": [None]})
    path.write_text(yaml.safe_dump(table))
    with pytest.raises(UserError) as caught:
        load_suite("demo", params)
    message = str(caught.value)
    assert f"{path}: rows.{number}.overrides.{setting}: found no setting of {method}, expected " in message
    named = message.rpartition("expected ")[2].strip("'").removeprefix("one of ").split(", ")
    assert set(named) <= FIELDS[method]
    assert expected is None or message.endswith(expected)


def test_an_unused_setting_of_methods_yaml_is_an_error(params):
    path = params / "params/methods.yaml"
    methods = yaml.safe_load(path.read_text())
    methods["suponly"]["settings"] = {"tau": 0.1}
    path.write_text(yaml.safe_dump(methods))
    with pytest.raises(UserError, match=r"methods\.yaml: suponly\.settings\.tau: found no setting of suponly"):
        load_suite("demo", params)


def test_a_colour_on_the_screen_identifies_no_run(params):
    path = params / "params/datasets.yaml"
    before = {name: run.params_sha256 for name, run in load_suite("demo", params).runs.items()}
    data = yaml.safe_load(path.read_text())
    for dataset in data.values():
        dataset["classes"][1]["colour"] = [1, 2, 3]
    path.write_text(yaml.safe_dump(data))
    assert {name: run.params_sha256 for name, run in load_suite("demo", params).runs.items()} == before
    data["pascal"]["classes"][1]["name"] = "another"
    path.write_text(yaml.safe_dump(data))
    changed = load_suite("demo", params).runs
    assert {name for name, run in changed.items() if run.params_sha256 != before[name]} == {
        name for name in before if name.startswith("pascal")
    }


def test_a_preset_can_give_one_method_a_value_of_its_own():
    """The authors of GCT forward both streams together; the preset's other methods do not."""
    released = Preset.model_validate(yaml.safe_load((ROOT / "params/fidelity.yaml").read_text())["released"])
    found = {name: released.of(SETTINGS[name], "pascal")["streams_forward"] for name in ("cps", "gct")}
    assert found == {"cps": "separate", "gct": "joint"}
