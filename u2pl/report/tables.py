"""Views of `cells.csv`: each table wide, as numbers (CSV), for a paper (LaTeX) and for reading (Markdown)."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from u2pl.errors import UserError
from u2pl.experiments.schema import Column, Scale, Table
from u2pl.files import atomic_path
from u2pl.report.cells import read_cells
from u2pl.report.latex import escape

DECIMALS = 2
NOTHING = "–"
QUOTED = "†"


@dataclass(frozen=True)
class Entry:
    """One number of a table: ours over `n` seeds (NaN if quoted) and the paper's (NaN if it has none), in percent."""

    mean: float
    std: float
    n: int
    paper: float
    quoted: bool
    best: bool = False


@dataclass(frozen=True)
class Grid:
    """A table laid out: `entries[r][c]` belongs to `titles[r]` and `headers[c]`."""

    titles: list[str]
    headers: list[str]
    entries: list[list[Entry]]

    @property
    def seeds(self) -> str:
        """The number of seeds behind the measured entries, in words."""
        counts = sorted({entry.n for row in self.entries for entry in row if not entry.quoted})
        if not counts:
            return "nothing was trained"
        if counts == [1]:
            return "1 seed"
        span = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        return f"mean ± sample standard deviation over {span} seeds"


def lay_out(cells: pd.DataFrame, table: Table, name: str, where: Path) -> Grid:
    """Arrange the cells of the table `name` as `table` declares its rows and columns.

    Raises UserError naming `where` if a cell is missing or stands there more than once.
    """
    own = cells[cells["table"] == name]
    many = len({column.protocol for column in table.columns}) > 1
    headers, columns = [], []
    for column in table.columns:
        part = own[(own["protocol"] == column.protocol) & (own["fraction"] == column.fraction)]
        columns.append([_entry(part[part["row"] == row.title], row.title, column, where) for row in table.rows])
        headers.append(f"{column.protocol} " * many + str(part["column"].iloc[0]))
    best = [max((e.mean for e in column if not e.quoted), default=math.nan) for column in columns]
    entries = [[_mark(entry, top) for entry, top in zip(row, best, strict=True)] for row in zip(*columns, strict=True)]
    return Grid([row.title for row in table.rows], headers, entries)


def _entry(found: pd.DataFrame, title: str, column: Column, where: Path) -> Entry:
    if len(found) != 1:
        raise UserError(where, f"{len(found)} cells for {title!r} at {column.protocol} {column.fraction}", "one cell")
    cell = found.iloc[0]
    return Entry(
        float(cell["mean"]), float(cell["std"]), int(cell["n"]), float(cell["paper"]), cell["source"] == "quoted"
    )


def _mark(entry: Entry, best: float) -> Entry:
    return replace(entry, best=not entry.quoted and entry.mean == best)


def number_frame(grid: Grid) -> pd.DataFrame:
    """The wide table in numbers: for each column `<header> mean`, `std`, `n` and `paper`; empty where there is none."""
    rows = []
    for title, entries in zip(grid.titles, grid.entries, strict=True):
        row: dict[str, object] = {"row": title, "source": "quoted" if entries[0].quoted else "measured"}
        for header, entry in zip(grid.headers, entries, strict=True):
            row |= {f"{header} {key}": getattr(entry, key) for key in ("mean", "std", "n", "paper")}
        rows.append(row)
    return pd.DataFrame(rows)


def cell_text(entry: Entry, bold: str, plus_minus: str, mark: str) -> str:
    """`ours ± std (paper)`, or the marked `(paper)` of a quoted cell; `bold` formats the best of ours."""
    paper = "" if math.isnan(entry.paper) else f"({entry.paper:.{DECIMALS}f})"
    if entry.quoted:
        return f"{paper}{mark}" if paper else NOTHING
    ours = f"{entry.mean:.{DECIMALS}f}"
    if not math.isnan(entry.std):
        ours += f" {plus_minus} {entry.std:.{DECIMALS}f}"
    return f"{bold.format(ours) if entry.best else ours} {paper}".rstrip()


def caption(table: Table, grid: Grid, scale: Scale) -> str:
    """What the reader has to know beside the numbers."""
    parts = [
        table.caption.strip().rstrip(".") + ".",
        f"Ours ({scale.title}): {grid.seeds}; the paper's number in parentheses.",
    ]
    if any(entry.quoted for row in grid.entries for entry in row):
        parts.append(f"{QUOTED} Quoted by the paper from other work, not trained here.")
    if scale.synthetic:
        parts.append("The data are synthetic: the numbers show that the suite runs and say nothing about the paper's.")
    return " ".join(parts)


def latex(grid: Grid, text: str, label: str) -> str:
    """A booktabs float; needs `\\usepackage{booktabs}` and nothing else."""
    rows = [
        [escape(title), *(cell_text(entry, r"\textbf{{{}}}", r"$\pm$", r"$^\dagger$") for entry in entries)]
        for title, entries in zip(grid.titles, grid.entries, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["Method", *map(escape, grid.headers)]).replace(NOTHING, "--")
    return frame.style.hide(axis="index").to_latex(
        column_format="l" + "r" * len(grid.headers),
        position="htbp",
        position_float="centering",
        hrules=True,
        label=label,
        caption=escape(text),
    )


def markdown(grid: Grid, text: str) -> str:
    """A pipe table under its caption."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    lines = [line(["Method", *grid.headers]), line(["---", *["---:"] * len(grid.headers)])]
    for title, entries in zip(grid.titles, grid.entries, strict=True):
        lines.append(line([title, *(cell_text(entry, "**{}**", "±", QUOTED) for entry in entries)]))
    return "\n".join([text, "", *lines, ""])


def write_table(cells_csv: Path, table: Table, name: str, scale: Scale, out_stem: Path) -> None:
    """Write the table `name` to `out_stem`.csv, .md and .tex from the cells in `cells_csv`.

    The caption says over how many seeds and whether the scale's data are synthetic; the LaTeX label is tab:<name>.
    Raises UserError if `cells_csv` is missing or lacks a cell of `table`.
    """
    grid = lay_out(read_cells(cells_csv), table, name, cells_csv)
    text = caption(table, grid, scale)
    views = {
        ".csv": number_frame(grid).to_csv(index=False, lineterminator="\n"),
        ".md": markdown(grid, text),
        ".tex": latex(grid, text, f"tab:{name}"),
    }
    for suffix, content in views.items():
        with atomic_path(out_stem.with_name(out_stem.name + suffix)) as temporary:
            temporary.write_text(content, encoding="utf-8")
