"""What is said about first steps that moved, and which files hold none."""

import math
from pathlib import Path

import pytest

from u2pl.errors import UserError
from u2pl.report import first_steps as steps

ROWS: list[steps.Row] = [
    ("u2pl", "paper", 1, "loss", 3.0),
    ("u2pl", "paper", 1, "supervised", 1.0),
    ("u2pl", "paper", 1, "contrastive", 2.0),
    ("u2pl", "paper", 2, "loss", 3.5),
    ("cps", "paper", 1, "loss", 1.0),
]


def changed(*values: float) -> list[steps.Row]:
    return [(*row[:4], value) for row, value in zip(ROWS, values, strict=True)]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    steps.write_first_steps(ROWS, tmp_path / "steps.csv")
    return tmp_path / "steps.csv"


def test_what_was_written_is_compared_to_within_the_tolerance(path: Path) -> None:
    assert not any(outcome.moved for outcome in steps.compare_first_steps(ROWS, path))
    near, far = 0.99 * steps.TOLERANCE, 1.01 * steps.TOLERANCE
    found = steps.compare_first_steps(changed(3.0 + near, 1.0 - near, 2.0 - far, 3.5, 1.0 + far), path)
    assert [(o.run, o.metric, o.line) for o in found if o.moved] == [
        ("u2pl (paper)", "step 1, contrastive", 4),
        ("cps (paper)", "step 1, loss", 6),
    ]


def test_one_line_per_method_shows_the_term_before_the_sum(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    steps.render_first_steps(steps.compare_first_steps(changed(3.5, 1.001, 2.499, 9.0, 1.0), path), path)
    text = "u2pl (paper), step 1, contrastive: found 2.499, expected 2 to within 0.0005 (and 3 more)"
    assert capsys.readouterr().out.splitlines() == [
        text,
        f"::error file={path},line=4,title=a first step moved::{text}",
        f"5 losses of first steps, compared to within 0.0005: 4 moved from {path}",
        "If that is meant, `make baseline` renews the baseline.",
    ]


def test_a_part_that_one_side_lacks_moved(path: Path) -> None:
    rows = [*ROWS[:2], *ROWS[3:], ("cps", "paper", 1, "cross", 0.5)]
    texts = [str(outcome) for outcome in steps.compare_first_steps(rows, path) if outcome.moved]
    assert texts == [
        "u2pl (paper), step 1, contrastive: found no number, expected 2 to within 0.0005",
        "cps (paper), step 1, cross: found 0.5, expected no number to within 0.0005",
    ]


def test_a_loss_that_is_not_finite_is_no_baseline(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(UserError, match="u2pl paper 1 contrastive: found nan"):
        steps.write_first_steps(changed(3.0, 1.0, math.nan, 3.5, 1.0), path)
    assert path.read_bytes() == before
    path.write_text(before.decode().replace("2.0", "inf"))
    with pytest.raises(UserError, match="steps.csv: found a number that is not finite"):
        steps.compare_first_steps(ROWS, path)


@pytest.mark.parametrize(
    "content",
    ["", "run,best\na,1\n", ",".join(steps.COLUMNS) + "\n", ",".join(steps.COLUMNS) + "\nu2pl,paper,1,loss,x\n"],
)
def test_another_file_holds_no_first_steps(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(UserError, match="steps.csv"):
        steps.compare_first_steps(ROWS, path)
    path.unlink()
    with pytest.raises(UserError, match="steps.csv: found no file"):
        steps.compare_first_steps(ROWS, path)
