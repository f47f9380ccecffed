"""The long table and the paired differences against NumPy's and SciPy's statistics."""

from pathlib import Path

import numpy as np
import pytest
from made import evaluation, record
from scipy import stats

from u2pl.errors import UserError
from u2pl.experiments import load_suite
from u2pl.experiments.suite import Suite
from u2pl.files import read_json, write_json
from u2pl.report.cells import COLUMNS, against_paper, collect, compare, gains, lists_of, read_cells, write_cells
from u2pl.report.statistics import Sample

SUPONLY, U2PL = [50.0, 52.0], [55.125, 58.375]  # as in conftest.MIOU at 1/8


def test_statistics_over_seeds_are_those_of_numpy(suite: Suite, results: Path) -> None:
    cells = collect(suite, results)
    assert list(cells.columns) == COLUMNS
    assert len(cells) == len(suite.cells)
    eighth = cells[cells["fraction"] == "1/8"].set_index("method")
    for method, values in {"suponly": SUPONLY, "u2pl": U2PL}.items():
        assert eighth.loc[method, "n"] == 2
        np.testing.assert_allclose(eighth.loc[method, "mean"], np.mean(values))
        np.testing.assert_allclose(eighth.loc[method, "std"], np.std(values, ddof=1))
    assert eighth.loc["u2pl", "run"] == "blender-8-u2pl-seed0 blender-8-u2pl-seed1"
    assert eighth.loc["u2pl", "overrides"] == '{"r_low":1}'


def test_quoted_cells_hold_only_the_papers_number(suite: Suite, results: Path) -> None:
    cells = collect(suite, results)
    quoted = cells[cells["source"] == "quoted"]
    assert quoted["n"].tolist() == [0, 0]
    assert quoted[["mean", "std"]].isna().all(axis=None)
    assert quoted["paper"].tolist()[0] == 76.44
    assert quoted["run"].tolist() == ["", ""]


def test_one_seed_has_no_standard_deviation(suite_of_one_seed: Suite, results: Path) -> None:
    cells = collect(suite_of_one_seed, results)
    measured = cells[cells["source"] == "measured"]
    assert measured["mean"].notna().all() and measured["std"].isna().all()


def test_cells_survive_the_file(suite: Suite, results: Path) -> None:
    target = results / "cells.csv"
    write_cells(suite, results, target)
    cells, again = collect(suite, results), read_cells(target)
    assert again["row"].tolist() == cells["row"].tolist(), "a row called None is a title, not a missing value"
    for name in COLUMNS:
        if cells[name].dtype == float:
            np.testing.assert_array_equal(again[name], cells[name])
        else:
            assert again[name].tolist() == cells[name].tolist()


def test_writing_twice_gives_the_same_bytes(suite: Suite, results: Path) -> None:
    write_cells(suite, results, results / "a.csv")
    write_cells(suite, results, results / "b.csv")
    assert (results / "a.csv").read_bytes() == (results / "b.csv").read_bytes()


def test_missing_evaluation_names_the_file_and_writes_nothing(suite: Suite, results: Path) -> None:
    lost = results / "runs/blender-8-u2pl-seed1/evaluation.json"
    lost.unlink()
    with pytest.raises(UserError, match="blender-8-u2pl-seed1/evaluation.json"):
        write_cells(suite, results, results / "cells.csv")
    assert not (results / "cells.csv").exists()


@pytest.mark.parametrize(
    "content", [{}, [], {"best": {}}, {"best": {"miou": None}}, {"best": {"miou": 101.0}}, {"odd": 1}]
)
def test_malformed_evaluation_is_the_users_to_know(suite: Suite, results: Path, content: object) -> None:
    path = results / "runs/blender-8-u2pl-seed1/evaluation.json"
    whole = evaluation(best=50.0, last=50.0)
    if isinstance(content, dict) and "miou" in content.get("best", {}):
        content = whole | {"best": whole["best"] | content["best"]}
    write_json(path, content)
    with pytest.raises(UserError, match=r"seed1/evaluation\.json: (best|the file|odd)"):
        collect(suite, results)


@pytest.mark.parametrize("weights", ["f" * 64, "0" * 64])
def test_an_evaluation_of_other_weights_is_refused(suite: Suite, results: Path, weights: object) -> None:
    """As a killed retraining leaves it, or one whose evaluation was never made again."""
    path = results / "runs/blender-8-u2pl-seed1/evaluation.json"
    write_json(path, read_json(path) | {"weights_sha256": weights})
    for read in (collect, compare):
        with pytest.raises(UserError, match=r"seed1/evaluation\.json: found weights_sha256 .* snakemake .*--force"):
            read(suite, results)


def test_an_evaluation_without_its_record_is_refused(suite: Suite, results: Path) -> None:
    """A training removes run.json first and writes it last."""
    (results / "runs/blender-8-u2pl-seed1/run.json").unlink()
    with pytest.raises(UserError, match=r"seed1/run\.json: found no file, expected a finished run: snakemake"):
        write_cells(suite, results, results / "cells.csv")
    assert not (results / "cells.csv").exists()


def test_a_record_of_another_run_is_refused(suite: Suite, results: Path) -> None:
    path = results / "runs/blender-8-u2pl-seed1/run.json"
    write_json(path, read_json(path) | {"id": "blender-8-u2pl-seed0"})
    with pytest.raises(UserError, match=r"seed1/run\.json"):
        collect(suite, results)


def test_not_a_number_is_refused(suite: Suite, results: Path) -> None:
    write_json(results / "runs/blender-8-u2pl-seed1/evaluation.json", {"best": {"miou": float("nan")}})
    with pytest.raises(UserError, match="nan"):
        collect(suite, results)


def test_reading_what_is_not_a_table_of_cells(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        read_cells(tmp_path / "cells.csv")
    (tmp_path / "cells.csv").write_text("table,row\na,b\n", encoding="utf-8")
    with pytest.raises(UserError, match="no column column, fraction"):
        read_cells(tmp_path / "cells.csv")


def test_infinite_cells_are_refused(suite: Suite, results: Path) -> None:
    write_cells(suite, results, results / "cells.csv")
    text = (results / "cells.csv").read_text()
    (results / "cells.csv").write_text(text.replace("76.44", "inf"))
    with pytest.raises(UserError, match=r"cells\.csv: found an infinite number"):
        read_cells(results / "cells.csv")


def test_a_cell_reports_the_checkpoint_it_names(suite: Suite, results: Path) -> None:
    path = results / "runs/blender-8-u2pl-seed0/evaluation.json"
    write_json(path, evaluation(best=50.0, last=25.0))
    names = ["blender-8-u2pl-seed0"]
    cells = [cell.model_copy(update={"checkpoint": c, "runs": names}) for c in ("best", "last") for cell in suite.cells]
    measured = [cell for cell in cells if cell.source == "measured" and cell.method == "u2pl"]
    table = collect(suite.model_copy(update={"cells": measured}), results)
    assert set(table[table.checkpoint == "best"]["mean"]) == {50.0}
    assert set(table[table.checkpoint == "last"]["mean"]) == {25.0}
    # Both checkpoints of every cell stand in columns of their own, whichever is reported.
    assert set(table["best_mean"]) == {50.0} and set(table["last_mean"]) == {25.0}


def test_the_papers_number_is_judged_on_the_papers_data_only(
    suite: Suite, suite_on_real_data: Suite, results: Path
) -> None:
    synthetic, real = collect(suite, results), collect(suite_on_real_data, results)
    numbered = synthetic["paper"].notna() & (synthetic["source"] == "measured")
    assert set(synthetic[numbered]["verdict"]) == {"not comparable"} and synthetic["difference"].isna().all()
    assert set(synthetic[~numbered]["verdict"]) | set(real[~numbered]["verdict"]) == {""}
    cell = real[(real["method"] == "u2pl") & (real["fraction"] == "1/8")].iloc[0]
    low, high = stats.t.interval(0.95, 1, np.mean(U2PL), stats.sem(U2PL))
    np.testing.assert_allclose([cell["low"], cell["high"]], [low, high])
    np.testing.assert_allclose(cell["difference"], np.mean(U2PL) - 79.01)
    assert (cell["covered"], cell["verdict"]) == ("no", "not reproduced")


def test_one_seed_gives_no_verdict(suite_of_one_seed: Suite, results: Path) -> None:
    cells = collect(suite_of_one_seed, results)
    numbered = cells[(cells["source"] == "measured") & cells["paper"].notna()]
    assert set(numbered["verdict"]) == {"inconclusive"} and set(numbered["covered"]) == {""}
    assert cells[["low", "high", "best_std", "last_std"]].isna().all(axis=None)


def test_rows_are_compared_seed_by_seed(suite: Suite, results: Path) -> None:
    table = compare(suite, results)
    assert table[["row", "against", "fraction"]].values.tolist() == [
        ["None", "SupOnly", "1/8"],
        ["None", "SupOnly", "1/4"],
    ]
    expected = stats.ttest_rel(U2PL, SUPONLY)
    eighth, interval = table.iloc[0], expected.confidence_interval(0.95)
    np.testing.assert_allclose(eighth["difference"], np.mean(U2PL) - np.mean(SUPONLY))
    np.testing.assert_allclose([eighth["low"], eighth["high"], eighth["p"]], [*interval, expected.pvalue])


def test_a_row_is_compared_with_the_first_and_with_the_one_above(suite: Suite, results: Path) -> None:
    first, third = (next(c for c in suite.cells if c.method == m and c.fraction == "1/8") for m in ("suponly", "u2pl"))
    last = third.model_copy(update={"row": "last", "checkpoint": "last"})
    copy = third.model_copy(update={"row": "copy"})
    table = compare(suite.model_copy(update={"cells": [first, third, copy, last]}), results)
    assert table[["row", "against", "against_checkpoint"]].values.tolist() == [
        ["None", "SupOnly", "best"],
        ["copy", "SupOnly", "best"],  # and not with the row above, which shows the same trainings
        ["last", "SupOnly", "best"],
        ["last", "copy", "best"],
    ]
    assert table["difference"].iloc[-1] == pytest.approx(1 - np.mean(U2PL))


def test_p_is_of_the_test_against_the_paper_and_q_of_its_table(suite_on_real_data: Suite, results: Path) -> None:
    cells = collect(suite_on_real_data, results)
    known = cells[cells["p"].notna()]
    eighth = cells[(cells["fraction"] == "1/8") & (cells["method"] == "suponly")].iloc[0]
    assert eighth["p"] == pytest.approx(stats.ttest_1samp(SUPONLY, 71.55).pvalue)
    assert len(known) > 1
    np.testing.assert_allclose(known["q"], stats.false_discovery_control(known["p"]))


def test_the_moderated_columns_are_of_the_prior_of_all_cells(suite_on_real_data: Suite, results: Path) -> None:
    cells = collect(suite_on_real_data, results)
    trained = cells[(cells["n"] > 1) & (cells["std"] > 1e-9)]
    pooled = trained["moderated_std"]
    assert len(trained) == 3 and pooled.notna().all()
    # between the smallest and the largest spread, and nearer to each other than the plain ones
    assert pooled.max() - pooled.min() < trained["std"].max() - trained["std"].min()
    assert (trained["moderated_low"] < trained["mean"]).all() and (trained["mean"] < trained["moderated_high"]).all()
    flat = cells[(cells["n"] > 1) & (cells["std"] <= 1e-9)]
    assert len(flat) == 1 and flat["moderated_low"].isna().all()


def test_gains_pool_the_columns(suite: Suite, results: Path) -> None:
    """By hand: differences 5.125, 6.375 and -1.5, 0.5; variances 0.78125 and 2; s^2 = 1.390625, se^2 = s^2 / 4."""
    (row,) = gains(suite, results).to_dict("records")
    assert (row["row"], row["against"], row["columns"], row["n"]) == ("None", "SupOnly", 2, 4)
    error = (1.390625 * (1 / 2 + 1 / 2)) ** 0.5 / 2
    half = stats.t.ppf(0.975, 2) * error
    np.testing.assert_allclose([row["difference"], row["low"], row["high"]], [2.625, 2.625 - half, 2.625 + half])
    assert row["q"] == row["p"] == pytest.approx(2 * stats.t.sf(2.625 / error, 2))


def test_an_enlarged_baseline_is_dunnetts_control(suite: Suite, results: Path) -> None:
    """Four seeds of the first row, two of the other."""
    more = [50.0, 52.0, 51.0, 53.5]
    for seed, value in enumerate(more):
        run = f"blender-8-suponly-seed{seed}"
        write_json(results / "runs" / run / "evaluation.json", evaluation(best=value, last=1.0))
        write_json(results / "runs" / run / "run.json", record(run))
    cells = [
        cell.model_copy(update={"runs": [f"blender-8-suponly-seed{seed}" for seed in range(4)]})
        if (cell.method, cell.fraction) == ("suponly", "1/8")
        else cell
        for cell in suite.cells
    ]
    found = compare(suite.model_copy(update={"cells": cells}), results).set_index("fraction")
    # Dunnett's test of one group is the two-sample t test
    expected = stats.ttest_ind(U2PL, more)
    interval = expected.confidence_interval(0.95)
    assert found.loc["1/8", "dunnett_p"] == pytest.approx(expected.pvalue, abs=1e-3)
    np.testing.assert_allclose(
        found.loc["1/8", ["dunnett_low", "dunnett_high"]].astype(float), [interval.low, interval.high], atol=0.03
    )
    assert np.isnan(found.loc["1/4", "dunnett_p"])


def enlarged(suite: Suite, results: Path, values: dict[str, list[float]], control: int) -> Suite:
    """One column: a row of `values` for each key, the first of which is the baseline of `control` seeds."""
    first = next(cell for cell in suite.cells if (cell.method, cell.fraction) == ("suponly", "1/8"))
    cells = []
    for row, scores in values.items():
        runs = [f"blender-8-{row}-seed{seed}" for seed in range(len(scores))]
        for run, value in zip(runs, scores, strict=True):
            write_json(results / "runs" / run / "evaluation.json", evaluation(best=value, last=value / 2))
            write_json(results / "runs" / run / "run.json", record(run))
        cells.append(first.model_copy(update={"row": row, "runs": runs}))
    assert len(cells[0].runs) == control
    return suite.model_copy(update={"cells": cells})


def test_dunnetts_p_and_intervals_are_those_of_the_largest_t_in_numpy(suite: Suite, results: Path) -> None:
    """Twelve seeds against four rows of three: max |t| of correlated differences, drawn by its definition."""
    rng = np.random.default_rng(11)
    control = [float(value) for value in 60 + rng.standard_normal(12)]
    rows = {f"row{i}": [float(value) for value in 60.7 + i / 2 + rng.standard_normal(3)] for i in range(4)}
    found = compare(enlarged(suite, results, {"control": control, **rows}, 12), results)
    found = found[found["against"] == "control"].set_index("row")
    df = 11 + 4 * 2
    pooled = sum(np.var(v, ddof=1) * (len(v) - 1) for v in [control, *rows.values()]) / df
    draws = 400_000
    shared = rng.standard_normal(draws) / np.sqrt(12)
    gaps = [np.abs(rng.standard_normal(draws) / np.sqrt(3) - shared) for _ in rows]
    largest = np.max(gaps, axis=0) / np.sqrt(rng.chisquare(df, draws) / df) / np.sqrt(1 / 3 + 1 / 12)
    error, critical = np.sqrt(pooled * (1 / 3 + 1 / 12)), np.quantile(largest, 0.95)
    for row, values in rows.items():
        difference = np.mean(values) - np.mean(control)
        ends = [difference - critical * error, difference + critical * error]
        np.testing.assert_allclose(found.loc[row, ["dunnett_low", "dunnett_high"]].astype(float), ends, atol=0.02)
        assert found.loc[row, "dunnett_p"] == pytest.approx(np.mean(largest > abs(difference) / error), abs=0.005)


def test_another_checkpoint_of_the_baselines_trainings_is_not_in_its_family(suite: Suite, results: Path) -> None:
    """Dunnett's test takes values for independent: one row is left, whose test is that of two samples."""
    control, other = [50.0, 52.0, 51.0, 53.5], [55.0, 58.0]
    part = enlarged(suite, results, {"control": control, "other": other}, 4)
    last = part.cells[0].model_copy(update={"row": "last", "checkpoint": "last", "runs": part.cells[0].runs[:2]})
    found = compare(part.model_copy(update={"cells": [*part.cells, last]}), results)
    found = found[found["against"] == "control"].set_index("row")
    assert found.loc["other", "dunnett_p"] == pytest.approx(stats.ttest_ind(other, control).pvalue, abs=1e-3)
    assert np.isnan(found.loc["last", "dunnett_p"]) and found.loc["last", "difference"] == pytest.approx(-25.5)


def test_cells_of_an_earlier_version_say_how_they_are_written_anew(suite: Suite, results: Path) -> None:
    collect(suite, results).drop(columns=["q", "lists"]).to_csv(results / "cells.csv", index=False)
    with pytest.raises(UserError, match=r"cells\.csv: found no column q, lists, expected .* `u2pl cells` writes it"):
        read_cells(results / "cells.csv")


def test_verdicts_are_conditional_on_a_list_that_is_not_the_papers() -> None:
    suite = load_suite("paper", Path(__file__).parents[2])
    rows = {cell.row: cell for cell in suite.cells if cell.table == "divergences"}
    found = {row: lists_of(rows[row], suite) for row in ("paper preset", "split_source = cps", "split_source = drawn")}
    assert list(found.values()) == ["the authors'", "one list of cps", "redrawn with each seed"]
    cps = rows["split_source = cps"].model_copy(update={"paper": 79.0})
    ours = Sample.of([79.0, 79.1, 79.2])
    assert against_paper(cps, ours, suite)["verdict"] == "conditional on this list"
    assert (
        against_paper(cps.model_copy(update={"runs": rows["paper preset"].runs}), ours, suite)["verdict"]
        == "reproduced"
    )
