"""The exported JSON schemas are those of the models."""

from pathlib import Path

from u2pl.cli import schema
from u2pl.experiments.schema import MethodSettings

ROOT = Path(__file__).parents[2]


def test_exported_schemas_are_current(tmp_path):
    schema(tmp_path)
    exported = {path.name: path.read_text() for path in (ROOT / "workflow/schemas").iterdir()}
    assert exported == {path.name: path.read_text() for path in tmp_path.iterdir()}


def test_every_setting_is_documented():
    text = (ROOT / "docs/fidelity.md").read_text()
    assert [name for name in MethodSettings.model_fields if f"`{name}`" not in text] == []
