"""Small settings."""

from typing import Any

from u2pl.experiments.settings import SETTINGS, Training


def settings_for(method: str, **values: Any) -> Training:
    """The settings of a method, from values for several."""
    kind = SETTINGS[method]
    return kind(**{name: value for name, value in values.items() if name in kind.model_fields})
