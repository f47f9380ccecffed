"""YAML files -> typed params; a mistake is reported by file and key, with the nearest valid key."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from u2pl.errors import UserError
from u2pl.experiments.schema import public

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping; raises UserError if the file is missing, is not YAML, or holds something else."""
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError as error:
        raise UserError(path, "no file", "a YAML file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(path, error, "a YAML file") from error
    if not isinstance(value, dict):
        raise UserError(path, type(value).__name__, "a mapping of keys to values")
    return value


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `override` laid over it; mappings are merged, everything else is replaced."""
    result = dict(base)
    for key, value in override.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def nearest(key: str, valid: list[str]) -> str:
    """What to expect in place of `key`: the closest valid key, or all of them."""
    close = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    return f"{close[0]!r}" if close else "one of " + ", ".join(sorted(valid))


def validate(model: type[Model], value: Any, where: Path, prefix: tuple[str, ...] = ()) -> Model:
    """`value` as an instance of `model`; raises UserError naming `where`, the dotted key, found and expected."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        location = [str(part) for part in first["loc"]]
        key = ".".join([*prefix, *location]) or "the file"
        if first["type"] == "extra_forbidden":
            expected = nearest(location[-1], _fields(model, first["loc"][:-1]))
            raise UserError(f"{where}: {key}", "an unknown key", expected) from error
        found = "nothing" if first["type"] == "missing" else _shown(first["input"])
        raise UserError(f"{where}: {key}", found[:80], first["msg"]) from error


def _shown(value: Any) -> str:
    """The value without the secrets of an address."""
    text = repr(public(value) if isinstance(value, str) else value)
    return type(value).__name__ if "://" in text and not isinstance(value, str) else text


def _fields(model: Any, location: tuple[Any, ...]) -> list[str]:
    """The keys that the part of `model` at `location` knows."""
    for part in location:
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = model.model_fields[str(part)].annotation
        else:  # list[X] and dict[str, X]: the item type stands last
            model = get_args(model)[-1]
        if get_origin(model) not in (list, dict, None):  # X | None
            model = get_args(model)[0]
    return list(model.model_fields)
