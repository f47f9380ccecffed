"""Values that would train something else than was meant, or nothing: refused by file and key, in one line."""

import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from u2pl.errors import UserError
from u2pl.experiments import load_suite
from u2pl.experiments.read import LOADER, nearest, pick, read_yaml
from u2pl.experiments.schema import Config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "params", tmp_path / "params")
    return tmp_path


def refused(params: Path, scale: str = "demo") -> str:
    with pytest.raises(UserError) as caught:
        load_suite(scale, params)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put(root: Path, file: str, place: str, value: Any) -> None:
    """Set a value of a file in params/ by the keys that lead to it, with spaces between."""
    path = root / "params" / file
    content = target = yaml.load(path.read_text(), Loader=LOADER)
    *keys, last = [int(key) if key.isdigit() else key for key in place.split(" ")]
    for key in keys:
        target = target.setdefault(key, {}) if isinstance(target, dict) else target[key]
    target[last] = value
    path.write_text(yaml.dump(content, Dumper=yaml.CSafeDumper, allow_unicode=True))


def classes(number: int) -> list[dict[str, Any]]:
    return [{"name": f"c{i}", "colour": [i % 256, 0, 0]} for i in range(number)]


DEMO, DATA, TABLE = "scales/demo.yaml", "datasets.yaml", "tables/table1.yaml"
FIGURE = {"kind": "curves", "table": "table1", "caption": "c"}
RANKS = "tables/table5.yaml"  # its first row has r_low = 1 and r_high = 3, its second r_low = 1 and the preset's 20
CITYSCAPES = {"table": "table3", "row": "U2PL (w/ CutMix)", "protocol": "cityscapes", "fraction": "1/4"}
PROTOCOL = {"dataset": "cityscapes", "candidates": "train", "universe": "train", "fractions": {"1/2": 2}}


@pytest.mark.parametrize(
    ("file", "place", "value"),
    [
        (DEMO, "seeds", [0, 0, 0]),
        (DEMO, "seeds", []),
        (DEMO, "seeds 0", -1),
        (DEMO, "seeds 0", 2**32),
        (DEMO, "seeds 0", True),
        (DEMO, "seeds 0", "0"),
        (DEMO, "tables", []),
        (DEMO, "tables", ["table1", "table1"]),
        (DEMO, "baseline", ["a-run"]),
        (DEMO, "first_steps", ["a-run"]),
        (DEMO, "equivalence_margin", math.inf),
        ("protocols.yaml", "cityscapes seed", -1),
        ("recipes.yaml", "pascal lr", math.inf),
        ("recipes.yaml", "pascal lr", "0.1"),
        ("recipes.yaml", "pascal lr", 10**400),
        ("recipes.yaml", "pascal save_every_minutes", math.nan),
        ("recipes.yaml", "pascal epochs", True),
        ("recipes.yaml", "pascal tf32", "yes"),
        ("recipes.yaml", "pascal workers", 100_000),
        ("recipes.yaml", "pascal threads", 100_000),
        ("recipes.yaml", "pascal gpus", 100),
        (TABLE, "rows 0 paper 0", math.inf),
        (TABLE, "rows 0 paper 0", 100.5),
        (TABLE, "rows 0 paper 0", -1),
        (TABLE, "rows 3 overrides", {"tau": 1.0}),  # of another method
        (TABLE, "rows", []),
        (TABLE, "rows 0 title", "Sup\x1b[31mOnly"),
        (TABLE, "rows 0 title", "Sup\nOnly"),
        (TABLE, "rows 0 title", " "),
        (TABLE, "caption", "a\x07b"),
        (DATA, "pascal classes 1 name", "bi\u202erd"),
        # no rank from r_low to below r_high
        (RANKS, "rows 0 overrides r_low", 5),
        (RANKS, "rows 0 overrides r_low", 3),
        (RANKS, "rows 1 overrides r_low", 20),
        ("fidelity.yaml", "released pascal r_low", 25),
        (DEMO, "fidelity paper all r_high", 3),
        (DEMO, "methods u2pl settings r_high", 2),
        (DEMO, "methods u2pl settings zz", 1),
        (DEMO, "fidelity paper pascal zz", 1),
        (DEMO, "fidelity paper methods ael tau", 1.0),  # of another method
        ("fidelity.yaml", "released methods gct tau", 1.0),
        ("fidelity.yaml", "released methods gct gct_nu", -1),
        ("fidelity.yaml", "released methods aell", {}),
        ("methods.yaml", "u2pl source", "quoted"),
        (TABLE, "rows 0 copied_from", "a\x07b"),
        # labels are bytes, and so are colours
        (DATA, "pascal ignore_label", 20),
        (DATA, "pascal ignore_label", 256),
        (DATA, "pascal ignore_label", -1),
        (DEMO, "datasets pascal ignore_label", 3),
        (DATA, "pascal classes", []),
        (DATA, "pascal classes 1 colour 1", 256),
        (DATA, "pascal std", [58.0, 0.0, 57.0]),
        (DATA, "pascal mean", [123.0, 256.0, 103.0]),
        (DATA, "pascal counts", {}),
        (DATA, "pascal counts val", -1),
        (DEMO, "datasets cityscapes counts", {"train": 32, "train_aug": 9, "val": 6}),
        (DEMO, "datasets pascal synthetic extra", -1),
        (DEMO, "datasets cityscapes synthetic extra", 1),
        ("protocols.yaml", "cityscapes universe", "train_aug"),
        (DEMO, "protocols cityscapes fractions 1/2", 33),
        ("figures.yaml", "comparison_table1", FIGURE),
        # names that become files, wildcards and words of a shell
        ("weights.yaml", "resnet101-deep-stem.pth file", "other.pth"),
        (DATA, "pascal archives voc file", "a b'c.tar"),
        (DATA, "pascal archives voc file", "$(touch pwned).tar"),
        (DATA, "pascal archives voc file", "../voc.tar"),
        (DATA, "pascal archives voc file", "-voc.tar"),
        (DATA, "pascal archives sbd file", "leftImg8bit_trainvaltest.zip"),
    ],
)  # fmt: skip
def test_a_value_that_means_something_else_is_refused_by_file_and_key(
    params: Path, file: str, place: str, value: Any
) -> None:
    put(params, file, place, value)
    message = refused(params)
    if value == "leftImg8bit_trainvaltest.zip":  # the second of the two that have it
        place = "cityscapes archives images file"
    assert f"params/{file}: {place.replace(' ', '.')}" in message


@pytest.mark.parametrize(
    ("file", "place", "value", "said"),
    [
        (DATA, "pascal classes 1 name", "bird", "pascal.classes: found 'bird' 2 times"),
        (DATA, "pascal classes", classes(256), "pascal.ignore_label: found 255"),
        (DATA, "pascal counts", {"train": 32}, "counts: found train, expected train, train_aug, val"),
        ("protocols.yaml", "pascal_blender universe", "train", "pascal_blender.candidates: found train_aug"),
        ("recipes.yaml", "pascal network weights 7x7", "weights/a.pth", "weights.7x7: found 'weights/a.pth'"),
        ("figures.yaml", "fig4 cells U2PL", CITYSCAPES, "fig4.cells: found cityscapes and pascal"),
        (DATA, "splits", {}, "datasets.yaml: splits: found a name with a meaning of its own"),
        ("splits.yaml", "drawn", {}, "splits.yaml: drawn: found a name with a meaning of its own"),
        ("weights.yaml", "$(touch_pwned).pth", {"file": "a", "url": ""}, "weights.yaml: '$(touch_pwned).pth'"),
        ("protocols.yaml", "a/b", PROTOCOL, "protocols.yaml: 'a/b'"),
        ("methods.yaml", "a;b", {}, "methods.yaml: 'a;b'"),
        ("figures.yaml", "{run}", FIGURE, "figures.yaml: '{run}'"),
    ],
)
def test_what_does_not_fit_together_is_said(params: Path, file: str, place: str, value: Any, said: str) -> None:
    put(params, file, place, value)
    assert said in refused(params, "paper")


@pytest.mark.parametrize("name", ["my table", "$(touch pwned)", "-x"])
def test_the_name_of_a_table_or_scale_becomes_files_and_words(params: Path, name: str) -> None:
    folder = params / "params"
    shutil.copy(folder / "scales/demo.yaml", folder / "scales" / f"{name}.yaml")
    assert repr(name) in refused(params, name)
    shutil.copy(folder / "tables/table1.yaml", folder / "tables" / f"{name}.yaml")
    assert repr(name) in refused(params, "paper")


def test_an_empty_line_in_a_caption_is_a_space(params: Path) -> None:
    put(params, TABLE, "caption", "One.\n\nTwo,\tthree.\n")
    assert load_suite("demo", params).tables["table1"].caption == "One. Two, three."


def test_the_bounds_themselves_are_taken(params: Path) -> None:
    put(params, DEMO, "seeds", [2**32 - 1, 0])
    put(params, RANKS, "rows 0 overrides", {"r_low": 20, "r_high": 21})
    put(params, TABLE, "rows 0 paper", [0, 100, 0.0, 100.0, None])
    put(params, DATA, "cityscapes ignore_label", 19)
    suite = load_suite("demo", params)
    # and those that the baseline of Table D has beyond
    assert {spec.seed for spec in suite.runs.values()} == {0, 2**32 - 1, *range(1, 7)}
    assert suite.datasets["cityscapes"].ignore_label == 19


LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1]\n"  # a billion ones of nine lines
LAUGHS += "".join(f"{b}: &{b} [{', '.join(['*' + a] * 8)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' twice"),
        ("a:\n  b: 1\n  b: 1\n", "the key 'b' twice"),
        ("a: {b: 1, b: 2}\n", "the key 'b' twice"),
        ("a: [{b: 1, 'b': 2}]\n", "the key 'b' twice"),
        ("1: a\n", "no text"),
        ("a: 2012-99-99\n", "month must be"),
        ("a: !!bool maybe\n", "the tag"),
        ("a: &a [*a]\n", "values"),
        ("a: " + "{b: " * 100 + "1" + "}" * 100, "nested deeper"),
        ("a: " + "9" * 5000, "digits"),
        (LAUGHS, "values"),
        ("a: b: c\n", "mapping values"),
        ("[1]\n", "list"),
        ("", "NoneType"),
    ],
)  # fmt: skip
def test_a_file_that_yaml_takes_for_something_else_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and said in message and "\n" not in message
    assert len(message) < len(str(path)) + 250


def test_a_nesting_that_ends_the_c_parser_is_one_line(params: Path) -> None:
    """In a process of its own, which the parser's recursion would take with it."""
    (params / "params/methods.yaml").write_text("u2pl: " + "[" * 200_000 + "]" * 200_000)
    done = subprocess.run([sys.executable, "-m", "u2pl", "runs"], cwd=params, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("u2pl: params/methods.yaml: found values nested deeper")
    assert len(done.stderr.splitlines()) == 1


def test_anchors_and_merge_keys_still_work(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: &a {b: 1, c: 2}\nd: *a\ne:\n  <<: *a\n  c: 3\n")
    assert read_yaml(path) == {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 2}, "e": {"b": 1, "c": 3}}


@pytest.mark.parametrize(
    ("device", "valid"), [("auto", True), ("cuda:1", True), ("$(touch pwned)", False), ("", False)]
)
def test_the_device_of_the_workflow_is_one(device: str, valid: bool) -> None:
    """The Snakefile checks its configuration by this class."""
    from pydantic import ValidationError

    try:
        Config(device=device)
    except ValidationError:
        assert not valid
    else:
        assert valid


def test_pick_names_the_nearest():
    assert pick({"alpha": 1, "beta": 2}, "beta", "key") == 2
    with pytest.raises(UserError, match="^key of x: found 'alhpa', expected 'alpha'$"):
        pick({"alpha": 1, "beta": 2}, "alhpa", "key of x")
    with pytest.raises(UserError, match="^key: found 'x', expected one of alpha, beta$"):
        pick({"beta": 2, "alpha": 1}, "x", "key")


def test_of_hundreds_of_names_a_few_are_named():
    expected = nearest("zzz", [f"run{number}-of-many" for number in range(400)])
    assert expected.startswith("one of 400 names, such as run") and len(expected) < 100
