"""The presets of `params/fidelity.yaml` as settings, for whoever compares the two readings without a table."""

from pathlib import Path

from u2pl.experiments.read import read_yaml, validate
from u2pl.experiments.schema import Preset
from u2pl.experiments.settings import U2PL


def reading(name: str, root: Path = Path()) -> U2PL:
    """U2PL's settings on Pascal in a preset, "paper" or "released". Raises UserError for a file that does not fit."""
    path = root / "params/fidelity.yaml"
    preset = validate(Preset, read_yaml(path).get(name), path, (name,))
    return validate(U2PL, preset.of(U2PL, "pascal"), path, (name,))
