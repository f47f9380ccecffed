"""YAML files -> typed params; a mistake is reported by file and key, with the nearest valid key."""

import difflib
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from u2pl.addresses import public
from u2pl.errors import UserError
from u2pl.experiments.values import Mistake

Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_DEPTH = 30  # params/ nests 5 deep; the C parser's recursion bears thousands
MAX_LISTED = 30  # names in a message; a scale has hundreds of runs
MAX_VALUES = 100_000  # params/ holds hundreds in a file; aliases of aliases can make billions of a few lines


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping whose keys are text; raises UserError if the file is missing, or holds something else.

    Refused as well, since the parser takes them: a key that occurs twice, of which the last would win, a number that is
    not finite, a tag, and more nesting than params need.
    """
    try:
        text = path.read_text(encoding="utf-8")
        # First of all: the C parser builds its nodes by recursion, and deep ones end the process.
        _check_nesting(text)
        loader = LOADER(text)
        node = loader.get_single_node()
        _check_nodes(node, {})
        value = None if node is None else loader.construct_document(node)
    except FileNotFoundError as error:
        raise UserError(path, "no file", "a YAML file") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(path, str(error).replace('"<unicode string>", ', ""), "a YAML file") from error
    if not isinstance(value, dict):
        raise UserError(path, type(value).__name__, "a mapping of keys to values")
    _check_numbers(value, path)
    return value


def _check_nesting(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _refused(f"values nested deeper than {MAX_DEPTH}", event)
        if tag := getattr(event, "tag", None):
            raise _refused(f"the tag {tag[:40]}", event)


def _refused(problem: str, where: Any) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def _check_nodes(node: yaml.Node | None, sizes: dict[yaml.Node, int]) -> int:
    """The number of values below the node, those of aliases counted each time; `sizes` knows those of earlier nodes."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if node not in sizes:
        sizes[node] = MAX_VALUES + 1  # until it is known: an alias within itself has no end
        children = node.value
        if isinstance(node, yaml.MappingNode):
            _check_keys([key for key, _ in node.value])
            children = [value for _, value in node.value]
        sizes[node] = 1 + sum(_check_nodes(child, sizes) for child in children)
    if sizes[node] > MAX_VALUES:
        raise _refused(f"more than {MAX_VALUES} values", node)
    return sizes[node]


def _check_keys(keys: list[yaml.Node]) -> None:
    seen = set()
    for key in keys:
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            raise _refused(f"the key {str(key.value)[:40]}, no text", key)
        if key.value in seen:
            raise _refused(f"the key {key.value[:80]!r} twice", key)
        seen.add(key.value)


def _check_numbers(value: Any, where: Path, key: tuple[str, ...] = ()) -> None:
    large = isinstance(value, int) and not -(2**63) <= value < 2**63
    if large or (isinstance(value, float) and not math.isfinite(value)):
        found = f"an integer of {value.bit_length()} bits" if large else value
        raise UserError(f"{where}: {'.'.join(key)[:200]}", found, "a finite number of at most 64 bits")
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        _check_numbers(part, where, (*key, str(name)))


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `override` laid over it; mappings are merged, everything else is replaced."""
    result = dict(base)
    for key, value in override.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def pick(known: Mapping[str, Value], name: str, where: object) -> Value:
    """`known[name]`; raises UserError, blaming `where`, with the nearest of the known names if there is none."""
    if name not in known:
        raise UserError(where, repr(name[:80]), nearest(name, known))
    return known[name]


def nearest(key: str, valid: Collection[str]) -> str:
    """What to expect in place of `key`: the closest valid key; where none is close, all of them, or the closest few."""
    if close := difflib.get_close_matches(key, valid, n=1, cutoff=0.5):
        return repr(close[0])
    if len(valid) <= MAX_LISTED:
        return "one of " + ", ".join(sorted(valid))
    few = difflib.get_close_matches(key, valid, n=3, cutoff=0)
    return f"one of {len(valid)} names, such as {', '.join(few)}"


def validate(model: type[Model], value: Any, where: object, prefix: tuple[str, ...] = ()) -> Model:
    """`value` as an instance of `model`; raises UserError naming `where`, the dotted key, found and expected."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        location = [str(part)[:80] for part in first["loc"]]
        mistake = first.get("ctx", {}).get("error")
        if isinstance(mistake, Mistake):
            raise UserError(
                f"{where}: {'.'.join([*prefix, *location, mistake.key])}", mistake.found, mistake.expected
            ) from error
        key = ".".join([*prefix, *location]) or "the file"
        if first["type"] == "extra_forbidden":
            expected = nearest(location[-1], _fields(model, first["loc"][:-1]))
            raise UserError(f"{where}: {key}", "an unknown key", expected) from error
        found = "nothing" if first["type"] == "missing" else _shown(first["input"])
        raise UserError(f"{where}: {key}", found[:80], first["msg"].removeprefix("Value error, ")) from error


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
