"""The three views of a table; LaTeX is compiled where there is a compiler."""

import math
import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from made import evaluation, record
from scipy import stats

from u2pl.errors import UserError
from u2pl.experiments import load_suite
from u2pl.experiments.schema import Table
from u2pl.experiments.suite import Suite
from u2pl.files import write_json
from u2pl.report.cells import read_cells, write_cells, write_comparisons
from u2pl.report.dunnett import Comparison, notes
from u2pl.report.latex import SYMBOLS, escape
from u2pl.report.tables import MARKS, best_of, write_table

ROOT = Path(__file__).parents[2]
DOCUMENT = "\\documentclass{article}\n\\usepackage{booktabs,graphicx,siunitx}\n\\begin{document}\n%s\n\\end{document}\n"


def write(suite: Suite, results: Path) -> Path:
    """Write the suite's table and return its stem."""
    cells, comparisons, stem = results / "cells.csv", results / "comparisons.csv", results / "tables/table2"
    write_cells(suite, results, cells)
    write_comparisons(suite, results, comparisons)
    write_table(cells, comparisons, suite.tables["table2"], "table2", suite.params, stem)
    return stem


def body(tex: str) -> list[str]:
    """The lines between the header and the bottom rule."""
    return tex.split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()


def test_csv_holds_numbers(suite: Suite, results: Path) -> None:
    frame = pd.read_csv(write(suite, results).with_suffix(".csv"), keep_default_na=False, na_values=[""])
    assert frame["row"].tolist() == ["SupOnly", "C_P|S {50 %} ~#1\\", "None"]
    assert frame["source"].tolist() == ["measured", "quoted", "measured"]
    assert frame["1/8 (8) mean"].dropna().tolist() == [51.0, 56.75]
    assert frame["1/8 (8) std"].dropna().tolist() == pytest.approx([2**0.5, 3.25 / 2**0.5])
    assert frame["1/8 (8) paper"].tolist() == [71.55, 76.44, 79.01]
    assert frame["1/4 (16) n"].tolist() == [2, 0, 2]
    assert frame["1/8 (8) verdict"].dropna().tolist() == ["not comparable", "not comparable"]
    assert frame["1/8 (8) difference"].isna().all()


def test_latex_has_a_line_per_row_with_ours_bold_and_the_papers(suite: Suite, results: Path) -> None:
    tex = write(suite, results).with_suffix(".tex").read_text(encoding="utf-8")
    assert body(tex) == [
        r"SupOnly & 51.00 & 1.41 & 71.55 & \bfseries 61.50 & 0.00 &  \\",
        r"C\_P$|$S \{50 \%\} \textasciitilde{}\#1\textbackslash{} &  &  & 76.44{$^{\dagger}$} &  &  & {--} \\",
        r"None & \bfseries 56.75 & 2.30 & 79.01 & 61.00 & 1.41 & 79.30 \\",
    ]
    assert r"{} & \multicolumn{3}{c}{1/8 (8)} & \multicolumn{3}{c}{1/4 (16)} \\" in tex
    assert r"{Method} & {ours} & {SD} & {paper} & {ours} & {SD} & {paper} \\" in tex
    formats = re.findall(r"S\[table-format=(\d\.\d)", tex)
    assert formats == ["2.2", "1.2", "2.2"] * 2
    assert r"\label{tab:table2}" in tex
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert tex.count(rule) == 1


def test_markdown_shows_the_same(suite: Suite, results: Path) -> None:
    text = write(suite, results).with_suffix(".md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines == [
        "| Method | 1/8 (8) | 1/4 (16) |",
        "| --- | ---: | ---: |",
        "| SupOnly | 51.00 ± 1.41 (71.55) | **61.50 ± 0.00** |",
        "| C_P\\|S {50 %} ~#1\\ | (76.44)† | – |",
        "| None | **56.75 ± 2.30** (79.01) | 61.00 ± 1.41 (79.30) |",
    ]


def test_caption_tells_seeds_and_synthetic_data(suite: Suite, results: Path) -> None:
    tex = write(suite, results).with_suffix(".tex").read_text(encoding="utf-8")
    assert r"\caption{Mean IoU (\%) of $\alpha$\_0 \& friends. Ours (small network \& data): mean" in tex
    assert "over 2 seeds" in tex and "data are synthetic" in tex and "Quoted by the paper" in tex
    assert "Verdict" not in tex


def test_caption_of_one_seed_on_real_data(suite_of_one_seed: Suite, results: Path) -> None:
    tex = write(suite_of_one_seed, results).with_suffix(".tex").read_text(encoding="utf-8")
    assert ": 1 seed;" in tex and "synthetic" not in tex and "SD" not in tex
    assert body(tex)[0] == r"SupOnly & 50.00 & 71.55{$^{?}$} & \bfseries 61.50 &  \\"


def test_verdicts_stand_beside_the_papers_number_with_their_rule(suite_on_real_data: Suite, results: Path) -> None:
    values = {"blender-8-suponly": (71.5, 71.6), "blender-8-u2pl": (60.0, 60.1), "blender-16-u2pl": (79.0, 82.0)}
    for run, pair in values.items():
        for seed, value in enumerate(pair):
            path = results / f"runs/{run}-seed{seed}/evaluation.json"
            write_json(path, evaluation(best=value, last=1.0))
    stem = write(suite_on_real_data, results)
    text = stem.with_suffix(".md").read_text(encoding="utf-8")
    assert "| SupOnly | **71.55 ± 0.07** (= 71.55) | 61.50 ± 0.00 |" in text
    assert "| None | 60.05 ± 0.07 (≠ 79.01) | **80.50 ± 2.12** (? 79.30) |" in text
    assert "α = 0.05" in text and "a difference of 1 mIoU or more" in text and "the 95 % t interval" in text
    rows = body(stem.with_suffix(".tex").read_text(encoding="utf-8"))
    assert rows[2] == r"None & 60.05 & 0.07 & 79.01{$^{\neq}$} & \bfseries 80.50 & 2.12 & 79.30{$^{?}$} \\"
    frame = pd.read_csv(stem.with_suffix(".csv"), keep_default_na=False)
    assert frame["1/8 (8) verdict"].tolist() == ["reproduced", "", "not reproduced"]


def test_copied_numbers_and_reconstructed_methods_are_marked_and_explained(
    suite_on_real_data: Suite, results: Path
) -> None:
    changes = {"SupOnly": {"copied_from": "Table 2 of [3]"}, "None": {"source": "reconstructed"}}
    cells = [cell.model_copy(update=changes.get(cell.row, {})) for cell in suite_on_real_data.cells]
    stem = write(suite_on_real_data.model_copy(update={"cells": cells}), results)
    text, tex = (stem.with_suffix(end).read_text(encoding="utf-8") for end in (".md", ".tex"))
    assert "| SupOnly | 51.00 ± 1.41 (≠ 71.55‡) |" in text and "| None§ | **56.75 ± 2.30** (" in text
    own = r"C\_P$|$S \{50 \%\} \textasciitilde{}\#1\textbackslash{}, None"
    assert f"The paper's authors measured {own} themselves." in tex
    assert "‡ They copied SupOnly from Table 2 of [3]" in text and "compares protocols as well as methods" in text
    assert "§ Reconstructed: the method has no public code" in text
    rows = body(tex)
    assert rows[0].startswith(r"SupOnly & 51.00 & 1.41 & 71.55{$^{\neq\ddagger}$} &")
    assert rows[2].startswith(r"None$^{\S}$ & \bfseries 56.75")
    frame = pd.read_csv(stem.with_suffix(".csv"), keep_default_na=False)
    assert frame["source"].tolist() == ["measured", "quoted", "reconstructed"]
    copied, quoted, reconstructed = frame["remark"]
    assert "copied its number from Table 2 of [3]" in copied and "protocols as well as methods" in copied
    assert quoted.startswith("Quoted") and reconstructed.startswith("Reconstructed")
    long = read_cells(results / "cells.csv").set_index("row")
    assert (long.loc["SupOnly", "copied_from"] == "Table 2 of [3]").all()
    assert set(long["remark"]) == {copied, quoted, reconstructed}
    compile_latex(tex, results)


def test_nothing_is_said_where_the_authors_measured_all(suite: Suite, results: Path) -> None:
    cells = [cell for cell in suite.cells if cell.source == "measured"]
    table = suite.tables["table2"]
    rows = [row for row in table.rows if row.method]
    tables = {"table2": table.model_copy(update={"rows": rows})}
    text = write(suite.model_copy(update={"cells": cells, "tables": tables}), results).with_suffix(".md").read_text()
    assert not any(word in text for word in ("authors", "copied", "Reconstructed", "Quoted", "†", "‡", "§"))


def test_the_caption_says_whose_lists_and_whether_verdicts_depend_on_them(
    suite_on_real_data: Suite, results: Path
) -> None:
    """U2PL on CPS's list, SupOnly on lists redrawn with each seed; then all on the authors' lists."""
    paper = load_suite("paper", ROOT)
    example = {spec.settings.split_source: spec for spec in paper.runs.values() if spec.protocol == "pascal_blender"}
    assert set(example) == {"u2pl", "cps", "drawn"}

    def of(sources: dict[str, str]) -> Suite:
        specs = {run: example[sources[cell.method]] for cell in suite_on_real_data.cells for run in cell.runs}
        return suite_on_real_data.model_copy(update={"runs": specs})

    text = write(of({"suponly": "drawn", "u2pl": "cps"}), results).with_suffix(".md").read_text(encoding="utf-8")
    assert "No verdict where all seeds share one list that is not the paper's" in text
    assert "The labelled list is redrawn with each seed in SupOnly." in text and "itself one draw" in text
    frame = pd.read_csv(results / "tables/table2.csv", keep_default_na=False).set_index("row")
    assert frame.loc["None", "1/8 (8) verdict"] == frame.loc["None", "1/8 (8) moderated verdict"]
    assert frame.loc["None", "1/8 (8) verdict"] == "conditional on this list"
    plain = write(of({"suponly": "u2pl", "u2pl": "u2pl"}), results).with_suffix(".md").read_text(encoding="utf-8")
    assert "share one list" not in plain and "redrawn" not in plain and "itself one draw" in plain


def test_q_and_moderated_verdicts_stand_beside_the_plain_ones(suite_on_real_data: Suite, results: Path) -> None:
    stem = write(suite_on_real_data, results)
    frame = pd.read_csv(stem.with_suffix(".csv"), keep_default_na=False).set_index("row")
    cells = read_cells(results / "cells.csv")
    (cell,) = cells[(cells["row"] == "None") & (cells["fraction"] == "1/8")].to_dict("records")
    for name in ("p", "q", "moderated_low", "moderated_high"):
        assert float(frame.loc["None", f"1/8 (8) {name.replace('_', ' ')}"]) == cell[name]
    # the cell of equal seeds has no variance to moderate, and the one without a number no verdict
    judged = cells[cells["moderated_low"].notna() & cells["paper"].notna()]["moderated_verdict"]
    counts = [f"{count} {verdict}" for verdict in MARKS if (count := list(judged).count(verdict))]
    assert f"(Smyth 2004): {', '.join(counts)}." in stem.with_suffix(".md").read_text(encoding="utf-8")


def enlarge(suite: Suite, results: Path, rest: int) -> Suite:
    """Four seeds of SupOnly at 1/8, and `rest` of U2PL."""
    for seed, value in enumerate([50.0, 52.0, 51.0, 53.5]):
        run = results / f"runs/blender-8-suponly-seed{seed}"
        write_json(run / "evaluation.json", evaluation(best=value, last=1.0))
        write_json(run / "run.json", record(run.name))
    seeds = {"suponly": 4, "u2pl": rest}
    cells = [
        cell.model_copy(update={"runs": [f"blender-8-{cell.method}-seed{seed}" for seed in range(seeds[cell.method])]})
        if cell.fraction == "1/8" and cell.runs
        else cell
        for cell in suite.cells
    ]
    return suite.model_copy(update={"cells": cells})


def test_comparisons_with_an_enlarged_first_row_stand_below_the_table(suite: Suite, results: Path) -> None:
    """One row: Dunnett's test is the t test of two samples, which is done here by SciPy."""
    stem = write(enlarge(suite, results, 2), results)
    expected = stats.ttest_ind([55.125, 58.375], [50.0, 52.0, 51.0, 53.5])
    low, high = expected.confidence_interval(0.95)
    text = stem.with_suffix(".md").read_text(encoding="utf-8")
    (line,) = [line for line in text.split("Against the first row")[1].splitlines() if "None" in line]
    difference, left, right = map(float, re.findall(r"[+-]\d+\.\d+", line))
    assert (difference, left, right) == pytest.approx((5.125, low, high), abs=0.03)
    assert float(line.split("|")[3]) == pytest.approx(expected.pvalue, abs=0.0015)
    assert line.endswith("|  |  |"), "the other column has no enlarged row"
    said = "compared with SupOnly (4 seeds) by Dunnett's test, 1 at once"
    tex = stem.with_suffix(".tex").read_text(encoding="utf-8")
    assert said in text and said in tex and "n is too small: rows have as few as 2 seeds" in text
    frame = pd.read_csv(stem.with_suffix(".csv"), keep_default_na=False).set_index("row")
    assert float(frame.loc["None", "1/8 (8) dunnett p"]) == pytest.approx(expected.pvalue, abs=1e-3)
    assert frame.loc["None", "1/4 (16) dunnett p"] == "" and frame.loc["SupOnly", "1/8 (8) dunnett p"] == ""


def test_without_an_enlarged_row_dunnett_is_not_mentioned(suite: Suite, results: Path) -> None:
    stem = write(suite, results)
    assert not any("unnett" in stem.with_suffix(end).read_text(encoding="utf-8") for end in (".md", ".csv", ".tex"))


def test_three_seeds_a_row_are_not_called_too_few() -> None:
    three = {("a", 0): Comparison(3, -1.0, 2.0, 0.4), ("b", 0): Comparison(3, -0.5, 2.5, 0.2)}
    (said,) = notes(three, "base", 12)
    assert "base (12 seeds)" in said and "2 at once" in said and "up to 1.50 mIoU" in said
    one = {("a", 0): Comparison(1, -1.0, 2.0, 0.4)}
    assert "as few as 1 seed," in list(notes(one, "base", 4))[1]


def test_comparisons_that_are_missing_or_old_are_named(suite: Suite, results: Path) -> None:
    write(suite, results)
    target = results / "comparisons.csv"
    pd.read_csv(target).drop(columns="dunnett_p").to_csv(target, index=False)
    arguments = suite.tables["table2"], "table2", suite.params, results / "tables/table2"
    with pytest.raises(UserError, match=r"comparisons\.csv: found no column dunnett_p, expected .* `u2pl table`"):
        write_table(results / "cells.csv", target, *arguments)
    target.unlink()
    with pytest.raises(UserError, match=r"comparisons\.csv: found no file"):
        write_table(results / "cells.csv", target, *arguments)


def test_of_a_tie_as_printed_none_is_best(suite: Suite, results: Path) -> None:
    for seed in (0, 1):
        source = results / f"runs/blender-8-suponly-seed{seed}/evaluation.json"
        shutil.copy(source, results / f"runs/blender-8-u2pl-seed{seed}/evaluation.json")
    tex = write(suite, results).with_suffix(".tex").read_text(encoding="utf-8")
    assert [line.count("51.00") for line in body(tex)] == [1, 0, 1]
    assert "bfseries 51.00" not in tex and "bfseries 61.50" in tex, "the other column has a best row"


def test_what_differs_beyond_the_printed_digits_is_a_tie() -> None:
    assert best_of([51.001, 50.2, 51.004]) != best_of([51.001, 50.2, 51.004])  # NaN
    assert best_of([51.001, 50.2, 51.02]) == 51.02 and best_of([3.0]) == 3.0 and math.isnan(best_of([]))


def test_a_cell_that_is_missing_is_named(suite: Suite, table: Table, results: Path) -> None:
    fewer = suite.model_copy(update={"cells": suite.cells[:-1]})
    write_cells(fewer, results, results / "cells.csv")
    with pytest.raises(UserError, match="0 cells for 'None' at blender 1/4"):
        write_table(
            results / "cells.csv", results / "comparisons.csv", table, "table2", suite.params, results / "tables/table2"
        )
    assert not (results / "tables").exists()


def test_columns_of_two_protocols_are_told_apart(suite: Suite, table: Table, results: Path) -> None:
    cells = [
        cell.model_copy(update={"protocol": "classic"}) if cell.fraction == "1/4" else cell for cell in suite.cells
    ]
    columns = [table.columns[0], table.columns[1].model_copy(update={"protocol": "classic"})]
    two = table.model_copy(update={"columns": columns})
    stem = write(suite.model_copy(update={"cells": cells, "tables": {"table2": two}}), results)
    assert "| Method | blender 1/8 (8) | classic 1/4 (16) |" in stem.with_suffix(".md").read_text(encoding="utf-8")


def test_escape_knows_greek_and_scripts() -> None:
    assert escape("α₀ = λ²") == r"$\alpha$$_{0}$ = $\lambda$$^{2}$"
    assert escape("Γ Ο ο") == r"$\Gamma$ O o"
    assert escape("naïve 5 ± 1") == r"naïve 5 $\pm$ 1"
    with pytest.raises(UserError, match="漢"):
        escape("漢")


def compile_latex(source: str, folder: Path) -> None:
    compiler = shutil.which("pdflatex")
    finder = shutil.which("kpsewhich")
    if (
        compiler is None
        or finder is None
        or any(
            subprocess.run([finder, f"{package}.sty"], capture_output=True).returncode
            for package in ("booktabs", "graphicx", "siunitx")
        )
    ):
        pytest.skip("pdflatex, booktabs, graphicx or siunitx is not installed")
    (folder / "all.tex").write_text(DOCUMENT % source, encoding="utf-8")
    command = [compiler, "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "all.pdf").stat().st_size > 0
    assert "Overfull" not in done.stdout, "something is wider than its column or than the page"


def test_awkward_text_compiles(suite: Suite, results: Path, tmp_path: Path) -> None:
    tex = write(suite, results).with_suffix(".tex").read_text(encoding="utf-8")
    letters = [chr(code) for code in (*range(0x391, 0x3AA), *range(0x3B1, 0x3CA))]
    greek = [letter for letter in letters if unicodedata.name(letter, "").count(" ") == 3]
    assert len(greek) == 48
    compile_latex(tex + "\n\n" + escape(" ".join([*SYMBOLS, *greek, "é", "²", "₀"])), tmp_path)


def test_titles_in_brackets_and_stars_are_no_arguments_of_the_row_above(
    suite: Suite, results: Path, tmp_path: Path
) -> None:
    """`\\\\` takes a star and a length in brackets, `\\midrule` a width."""
    titles = ["[SupOnly]", "[2] *", "*"]
    renamed = dict(zip([row.title for row in suite.tables["table2"].rows], titles, strict=True))
    table = suite.tables["table2"]
    rows = [row.model_copy(update={"title": renamed[row.title]}) for row in table.rows]
    cells = [cell.model_copy(update={"row": renamed[cell.row]}) for cell in suite.cells]
    tables = {"table2": Table(caption="[One]\n\n[two] *", columns=table.columns, rows=rows)}
    tex = write(suite.model_copy(update={"tables": tables, "cells": cells}), results).with_suffix(".tex").read_text()
    assert len(body(tex)) == 3 and not any(line.startswith(("[", "*")) for line in body(tex))
    compile_latex(tex, tmp_path)


def test_a_control_character_is_no_latex() -> None:
    for character in "\x00\x07\x1b\x7f\n":
        with pytest.raises(UserError, match="LaTeX text"):
            escape(f"a{character}b")


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_every_table_of_the_paper_compiles(scale: str, tmp_path: Path) -> None:
    suite = load_suite(scale, ROOT)
    for number, run in enumerate(suite.runs):
        miou, folder = 40 + number / 10, tmp_path / "runs" / run
        write_json(folder / "evaluation.json", evaluation(miou, miou))
        write_json(folder / "run.json", record(run))
    cells, comparisons = tmp_path / "cells.csv", tmp_path / "comparisons.csv"
    write_cells(suite, tmp_path, cells)
    write_comparisons(suite, tmp_path, comparisons)
    sources = []
    for name, table in suite.tables.items():
        write_table(cells, comparisons, table, name, suite.params, tmp_path / "tables" / name)
        sources.append((tmp_path / "tables" / f"{name}.tex").read_text(encoding="utf-8"))
        assert len(body(sources[-1])) == len(table.rows)
    compile_latex("\n".join(sources), tmp_path)
