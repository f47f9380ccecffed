"""Views of `cells.csv`: each table wide, as numbers (CSV), for a paper (LaTeX) and for reading (Markdown)."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from u2pl.errors import UserError
from u2pl.experiments.schema import Column, Scale, Table
from u2pl.experiments.values import Source
from u2pl.files import atomic_path
from u2pl.report.cells import CONDITIONAL, REDRAWN, read_cells
from u2pl.report.dunnett import Comparisons, number_columns, read_dunnett, sheet
from u2pl.report.dunnett import notes as dunnett_notes
from u2pl.report.latex import escape
from u2pl.report.origins import COPIED, QUOTED, RECONSTRUCTED, notes, remark
from u2pl.report.statistics import ALPHA

DECIMALS = 2
NOTHING = "–"
MARKS = {"reproduced": "=", "not reproduced": "≠", "inconclusive": "?"}


@dataclass(frozen=True)
class Entry:
    """One number of a table: ours over `n` seeds (NaN if quoted) and the paper's (NaN if it has none), in percent."""

    mean: float
    std: float
    low: float
    high: float
    n: int
    paper: float
    difference: float
    verdict: str
    source: Source
    copied_from: str
    redrawn: bool = False
    best: bool = False
    p: float = math.nan
    q: float = math.nan
    moderated_low: float = math.nan
    moderated_high: float = math.nan
    moderated_verdict: str = ""

    @property
    def quoted(self) -> bool:
        return self.source == "quoted"

    @property
    def mark(self) -> str:
        """What stands beside the paper's number: the verdict, and whether its authors copied it."""
        return QUOTED if self.quoted else MARKS.get(self.verdict, "") + COPIED * bool(self.copied_from)


@dataclass(frozen=True)
class Grid:
    """A table laid out: `entries[r][c]` belongs to `titles[r]` and `headers[c]`."""

    titles: list[str]
    headers: list[str]
    entries: list[list[Entry]]

    @property
    def marked_titles(self) -> list[str]:
        """The titles, with a mark behind those of reconstructed methods."""
        sources = [entries[0].source for entries in self.entries]
        return [t + RECONSTRUCTED * (s == "reconstructed") for t, s in zip(self.titles, sources, strict=True)]

    @property
    def notes(self) -> list[str]:
        origins = [(entries[0].source, entries[0].copied_from) for entries in self.entries]
        return notes((title, *origin) for title, origin in zip(self.titles, origins, strict=True))

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

    Raises UserError naming `where` if a cell is missing or appears more than once.
    """
    own = cells[cells["table"] == name]
    many = len({column.protocol for column in table.columns}) > 1
    headers, columns = [], []
    for column in table.columns:
        part = own[(own["protocol"] == column.protocol) & (own["fraction"] == column.fraction)]
        columns.append([_entry(part[part["row"] == row.title], row.title, column, where) for row in table.rows])
        headers.append(f"{column.protocol} " * many + str(part["column"].iloc[0]))
    best = [best_of([e.mean for e in column if not e.quoted]) for column in columns]
    entries = [[_mark(entry, top) for entry, top in zip(row, best, strict=True)] for row in zip(*columns, strict=True)]
    return Grid([row.title for row in table.rows], headers, entries)


def best_of(values: Sequence[float]) -> float:
    """The largest of the values, if it is printed alone: of a tie at DECIMALS none is best, NaN."""
    printed = sorted(round(value, DECIMALS) for value in values)
    return max(values) if printed and printed[-1:] != printed[-2:-1] else math.nan


def _entry(found: pd.DataFrame, title: str, column: Column, where: Path) -> Entry:
    if len(found) != 1:
        raise UserError(where, f"{len(found)} cells for {title!r} at {column.protocol} {column.fraction}", "one cell")
    cell = found.iloc[0]
    return Entry(
        mean=float(cell["mean"]),
        std=float(cell["std"]),
        low=float(cell["low"]),
        high=float(cell["high"]),
        n=int(cell["n"]),
        paper=float(cell["paper"]),
        difference=float(cell["difference"]),
        verdict=str(cell["verdict"]),
        source=cell["source"],
        copied_from=str(cell["copied_from"]),
        redrawn=cell["lists"] == REDRAWN,
        p=float(cell["p"]),
        q=float(cell["q"]),
        moderated_low=float(cell["moderated_low"]),
        moderated_high=float(cell["moderated_high"]),
        moderated_verdict=str(cell["moderated_verdict"]),
    )


def _mark(entry: Entry, best: float) -> Entry:
    return replace(entry, best=not entry.quoted and entry.mean == best)


def number_frame(grid: Grid, against: Comparisons) -> pd.DataFrame:
    """The wide table: for each column `<header> mean` and so on, with numbers alone but for the verdicts.

    against: Dunnett's comparisons with the first row; without any, their columns are left out.
    """
    keys = ["mean", "std", "n", "low", "high", "paper", "difference", "verdict"]
    keys += ["p", "q", "moderated_low", "moderated_high", "moderated_verdict"]
    rows = []
    for title, entries in zip(grid.titles, grid.entries, strict=True):
        source, copied_from = entries[0].source, entries[0].copied_from
        row: dict[str, object] = {"row": title, "source": source, "remark": remark(source, copied_from)}
        for position, (header, entry) in enumerate(zip(grid.headers, entries, strict=True)):
            row |= {f"{header} {key.replace('_', ' ')}": getattr(entry, key) for key in keys}
            if against:
                row |= number_columns(against.get((title, position)), header)
        rows.append(row)
    return pd.DataFrame(rows)


def verdict_notes(verdicts: Sequence[str], trained: Sequence[tuple[str, bool]], margin: float) -> Iterator[str]:
    """Sentences on how to take the verdicts of a table.

    trained: each trained row's title, and whether its labelled list is redrawn with each seed. margin: in mIoU.
    """
    if any(verdict in MARKS for verdict in verdicts):
        yield (
            f"Verdict against the paper's number, taken as fixed, at α = {ALPHA:g}: "
            f"{MARKS['reproduced']} reproduced, two one-sided t tests reject a difference of {margin:g} mIoU or more; "
            f"{MARKS['not reproduced']} not reproduced, the {100 * (1 - ALPHA):g} % t interval of the difference lies "
            f"beyond {margin:g} mIoU; {MARKS['inconclusive']} neither, as with one seed. "
            "That number is itself one draw."
        )
    if CONDITIONAL in verdicts:
        yield "No verdict where all seeds share one list that is not the paper's: it would depend on the list."
    if redrawn := [title for title, drawn in trained if drawn]:
        whose = "" if len(redrawn) == len(trained) else f" in {', '.join(redrawn)}"
        yield f"The labelled list is redrawn with each seed{whose}."


def caption(table: Table, grid: Grid, scale: Scale, against: Comparisons) -> str:
    """What the reader has to know beside the numbers: seeds, the rule of the verdict, what was not measured here."""
    entries = [entry for row in grid.entries for entry in row]
    beside = "" if all(math.isnan(entry.paper) for entry in entries) else "; beside it the paper's number"
    parts = [table.caption.strip().rstrip(".") + ".", f"Ours ({scale.title}): {grid.seeds}{beside}."]
    trained = [
        (title, any(entry.redrawn for entry in row))
        for title, row in zip(grid.titles, grid.entries, strict=True)
        if not row[0].quoted
    ]
    parts += verdict_notes([entry.verdict for entry in entries], trained, scale.equivalence_margin)
    # One seed or equal ones have no variance to moderate.
    moderated = Counter(e.moderated_verdict for e in entries if not math.isnan(e.moderated_low) and e.verdict in MARKS)
    if moderated:
        counts = ", ".join(f"{moderated[verdict]} {verdict}" for verdict in MARKS if moderated[verdict])
        parts.append(f"With variances moderated over this table's cells (Smyth 2004): {counts}.")
    parts += dunnett_notes(against, grid.titles[0], grid.entries[0][0].n)
    parts += grid.notes
    if scale.synthetic:
        parts.append("The data are synthetic: the numbers show that the suite runs and say nothing about the paper's.")
    return " ".join(parts)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.{DECIMALS}f}"


def _column(values: list[float], marks: list[str]) -> str:
    """A siunitx column that is wide enough for the values and the marks behind them, of which = is a widest one."""
    whole = max((len(str(int(abs(value)))) for value in values if not math.isnan(value)), default=1)
    widest = "=" * max(map(len, marks), default=0)
    space = f",table-space-text-post={_superscript(widest)}" if widest else ""
    return f"S[table-format={whole}.{DECIMALS},detect-weight,mode=text{space}]"


def _superscript(mark: str) -> str:
    """Marks in braces, which siunitx leaves alone."""
    return f"{{$^{{{''.join(escape(character).strip('$^') for character in mark)}}}$}}" if mark else ""


def latex(grid: Grid, text: str, label: str) -> str:
    """A float of aligned numbers, made smaller where it is wider than a line; needs booktabs, graphicx and siunitx.

    Each column of the table has up to three here: ours, its standard deviation where a cell has several seeds, and the
    paper's number with its mark where the table has any.
    """
    spread = any(entry.n > 1 for row in grid.entries for entry in row)
    beside = not all(math.isnan(entry.paper) for row in grid.entries for entry in row)
    columns, formats = [("", "Method")], ["l"]
    for number, header in enumerate(grid.headers):
        entries = [row[number] for row in grid.entries]
        parts = {"ours": [e.mean for e in entries], "SD": [e.std for e in entries], "paper": [e.paper for e in entries]}
        for name, values in parts.items():
            if (name != "SD" or spread) and (name != "paper" or beside):
                columns.append((escape(header), name))
                formats.append(_column(values, [e.mark for e in entries] if name == "paper" else []))
    rows = []
    for title, entries in zip(grid.marked_titles, grid.entries, strict=True):
        row = [escape(title)]
        for entry in entries:
            ours = _number(entry.mean)
            row.append(rf"\bfseries {ours}" if entry.best else ours)
            if spread:
                row.append(_number(entry.std))
            nothing = "{--}" if entry.quoted else ""
            if beside:
                row.append(_number(entry.paper) + _superscript(entry.mark) if not math.isnan(entry.paper) else nothing)
        rows.append(row)
    frame = pd.DataFrame(rows, columns=pd.MultiIndex.from_tuples(columns))
    tex = frame.style.hide(axis="index").to_latex(
        column_format="".join(formats),
        multicol_align="c",
        siunitx=True,
        position="htbp",
        position_float="centering",
        hrules=True,
        label=label,
        caption=escape(text),
    )
    # LaTeX's classes expect captions below.
    lengths = "\\centering\n\\setlength{\\belowcaptionskip}{4pt}\n\\setlength{\\tabcolsep}{3pt}"
    fit = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n\\begin{tabular}"
    tex = tex.replace(r"\centering", lengths, 1).replace(r"\begin{tabular}", fit)
    return tex.replace(r"\end{tabular}", r"\end{tabular}}")


def cell_text(entry: Entry) -> str:
    """Markdown: `ours ± std (paper)`, the best of ours bold and a mark before the paper's; or a quoted `(paper)†`."""
    paper = _number(entry.paper)
    if entry.quoted:
        return f"({paper}){entry.mark}" if paper else NOTHING
    spread = f" ± {_number(entry.std)}" if not math.isnan(entry.std) else ""
    ours = f"{_number(entry.mean)}{spread}"
    verdict, copied = MARKS.get(entry.verdict, ""), COPIED * bool(entry.copied_from)
    beside = f"({verdict} {paper}{copied})" if verdict else f"({paper}{copied})"
    return f"{f'**{ours}**' if entry.best else ours} {beside if paper else ''}".rstrip()


def markdown(grid: Grid, text: str, against: Comparisons) -> str:
    """A pipe table under its caption, and one of the comparisons with the first row where there are any."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    def rows(head: list[str], body: list[list[str]]) -> list[str]:
        return [line(head), line(["---", *["---:"] * (len(head) - 1)]), *map(line, body)]

    titled = zip(grid.marked_titles, grid.entries, strict=True)
    lines = rows(["Method", *grid.headers], [[title, *map(cell_text, entries)] for title, entries in titled])
    if against:
        head, *body = sheet(against, grid.titles, grid.headers)
        lines += ["", *rows(head, body)]
    return "\n".join([text, "", *lines, ""])


def write_table(cells_csv: Path, comparisons_csv: Path, table: Table, name: str, scale: Scale, out_stem: Path) -> None:
    """Write the table `name` to `out_stem`.csv, .md and .tex from its cells and the differences between its rows.

    The caption says over how many seeds, by which rule a verdict is found, and whether the scale's data are synthetic;
    the LaTeX label is tab:<name>. CSV and Markdown show Dunnett's comparisons where the first row is enlarged.
    Raises UserError if a file is missing or lacks a cell of `table`.
    """
    grid = lay_out(read_cells(cells_csv), table, name, cells_csv)
    against = read_dunnett(comparisons_csv, table, name)
    text = caption(table, grid, scale, against)
    views = {
        ".csv": number_frame(grid, against).to_csv(index=False, lineterminator="\n"),
        ".md": markdown(grid, text, against),
        ".tex": latex(grid, text, f"tab:{name}"),
    }
    for suffix, content in views.items():
        with atomic_path(out_stem.with_name(out_stem.name + suffix)) as temporary:
            temporary.write_text(content, encoding="utf-8")
