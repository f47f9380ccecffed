"""What `u2pl verify` makes again, to compare it byte by byte: cells, tables, figures of numbers and the page."""

from collections.abc import Collection, Iterator
from itertools import zip_longest
from pathlib import Path

import matplotlib

from u2pl.errors import UserError
from u2pl.experiments.suite import Suite
from u2pl.files import sha256
from u2pl.folders import Results
from u2pl.report.canvas import METADATA
from u2pl.report.cells import suite_of_table, write_cells, write_comparisons, write_gains
from u2pl.report.checks import Check, left_out, tried
from u2pl.report.claims import write_claims
from u2pl.report.classes import write_classes
from u2pl.report.figures import draw_numbers
from u2pl.report.page import write_page
from u2pl.report.tables import write_table


def check_tables(
    suite: Suite, results: Path, sound: Collection[str], counted: Collection[str], again: Path
) -> Iterator[Check]:
    """Cells and tables against those made again from the evaluations, into the folder `again`, byte by byte.

    sound: the runs whose evaluations fit; counted: those of which it is known what images.npz says of their classes.
    """
    there, made = Results(results), Results(again)
    for table in (None, *suite.tables):
        part = suite if table is None else suite_of_table(suite, table)
        pairs = [(folder.cells(table), folder.comparisons(table)) for folder in (there, made)]
        files = list(zip(*pairs, strict=True))
        if table is not None:
            views = there.table(table), made.table(table)
            files += [(views[0].with_suffix(end), views[1].with_suffix(end)) for end in (".csv", ".md", ".tex")]
        else:
            files += [(there.gains, made.gains), (there.claims, made.claims)]
        if not _runs(part) <= set(sound):
            yield from (left_out("tables", file) for file, _ in files)
            continue
        write_cells(part, results, made.cells(table))
        write_comparisons(part, results, made.comparisons(table))
        if table is None:
            write_gains(suite, results, made.gains)
            write_claims(suite, results, made.claims)
        else:
            sources = made.cells(table), made.comparisons(table)
            write_table(*sources, suite.tables[table], table, suite.params, made.table(table))
        for file, expected in files:
            check, _ = tried("tables", file, _check_same, expected)
            yield check
    if not _runs(suite) <= set(sound) & set(counted):
        yield left_out("tables", there.classes)
        return
    write_classes(suite, results, made.classes)
    check, _ = tried("tables", there.classes, _check_same, made.classes)
    yield check


def check_figures(
    suite: Suite, results: Path, sound: Collection[str], counted: Collection[str], again: Path
) -> Iterator[Check]:
    """Figures of numbers and the page against those made again beside the cells in `again`, byte by byte.

    Figures of predictions would take the networks, and pixels that differ with the machine: they are left out.
    """
    for name, params in suite.figures.items():
        stem = Results(Path()).figure(name)
        files = [stem.with_name(name + suffix) for suffix in METADATA]
        if params.table is None or not _runs(suite_of_table(suite, params.table)) <= set(sound):
            yield from (left_out("figures", results / file) for file in files)
            continue
        if any((results / file).exists() for file in files):
            draw_numbers(suite, name, again / stem, results, Results(again).cells(params.table))
        for file in files:
            check, _ = tried("figures", results / file, _check_drawn, again / file)
            yield check
    page, expected = Results(results).page, Results(again).page
    if not _runs(suite) <= set(sound) & set(counted):
        yield left_out("figures", page)
        return
    write_page(suite, results, Results(again).cells(), Results(again).classes, expected)
    check, _ = tried("figures", page, _check_same, expected)
    yield check


def _runs(suite: Suite) -> set[str]:
    """The runs that the suite's cells show."""
    return {run for cell in suite.cells for run in cell.runs}


def _check_drawn(path: Path, again: Path) -> None:
    """Raise UserError unless both files hold the same bytes."""
    if (found := sha256(path)) != (expected := sha256(again)):
        raise UserError(path, f"sha256 {found}", f"{expected}, drawn again by matplotlib {matplotlib.__version__}")


def _check_same(path: Path, again: Path) -> None:
    """Raise UserError, showing the first line that differs, unless both files hold the same bytes."""
    contents = [file.read_bytes().decode(errors="replace").splitlines(keepends=True) for file in (path, again)]
    for number, (found, expected) in enumerate(zip_longest(*contents, fillvalue=""), start=1):
        if found != expected:
            first = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), 0)
            part = slice(max(0, first - 30), first + 30)
            raise UserError(path, f"line {number}: …{found[part]!r}", f"…{expected[part]!r}")
