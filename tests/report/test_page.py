"""results/<scale>/index.html: what it holds, and how it behaves in headless Chromium."""

import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made import evaluation, history, record

from u2pl.errors import UserError
from u2pl.experiments import load_suite
from u2pl.experiments.schema import Row
from u2pl.experiments.suite import Suite
from u2pl.files import sha256, write_json
from u2pl.report.cells import write_cells
from u2pl.report.classes import write_classes
from u2pl.report.history import DIAGNOSTICS
from u2pl.report.page import write_page

sys.path.insert(0, str(Path(__file__).parent))
from browser import CHROMIUM, Page, chromium  # noqa: E402

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TABLES = ("table2", "table4", "table6")
EVIL = "cpu </script><script>window.evil = 1</script><!--"
RELIABLE = "pascal_blender-6-u2pl-negatives=reliable-seed0"


def few_tables() -> Suite:
    """Three tables, with a quoted row and a reconstructed one."""
    suite = load_suite("demo", ROOT)
    cells = [cell for cell in suite.cells if cell.table in TABLES]
    first = [cell for cell in cells if (cell.table, cell.row) == ("table2", "SupOnly")]
    cells += [cell.model_copy(update={"row": "Elsewhere", "source": "quoted", "runs": []}) for cell in first]
    rebuilt = {"source": "reconstructed"}
    cells = [cell.model_copy(update=rebuilt if cell.row == "CPS" else {}) for cell in cells]
    tables = {name: suite.tables[name] for name in TABLES}
    quoted = Row(title="Elsewhere", paper=tables["table2"].rows[0].paper)
    tables["table2"] = tables["table2"].model_copy(update={"rows": [*tables["table2"].rows, quoted]})
    # As if on the paper's data, of which verdicts are shown.
    real = suite.params.model_copy(update={"synthetic": False})
    return suite.model_copy(update={"cells": cells, "tables": tables, "params": real})


@pytest.fixture(scope="module")
def suite() -> Suite:
    return few_tables()


def miou(position: int) -> float:
    """Distinct scores by the position of a run."""
    return 20 + 7.25 * position % 60


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, suite: Suite) -> Path:
    """A results folder with invented runs, and verdicts by turns."""
    results = tmp_path_factory.mktemp("site")
    runs = list(dict.fromkeys(run for cell in suite.cells for run in cell.runs))
    for position, run in enumerate(runs):
        best, classes = miou(position), len(suite.runs[run].dataset.classes)
        folder = results / "runs" / run
        write_json(folder / "evaluation.json", evaluation(best, 5, classes=classes, absent=1))
        rows = history((6, 1.0, None), (7, 1.0, best), (8, 1.0, 5)).splitlines()
        if run == RELIABLE:
            rows = [row + end for row, end in zip(rows, (",pseudo_miou", ",", ",40.5", ",50.25"), strict=True)]
        (folder / "history.csv").write_text("".join(f"{row}\n" for row in rows))
        took = {"git": {"commit": "c0ffee" * 7, "dirty": True, "diff_sha256": None}, "device": EVIL}
        took |= {"wall_time_s": 1.25, "libraries": {"torch": "2.11.0"}}
        write_json(folder / "run.json", record(run, history=sha256(folder / "history.csv"), **took))
    write_cells(suite, results, results / "cells.csv")
    write_classes(suite, results, results / "classes.csv")
    classes = pd.read_csv(results / "classes.csv", keep_default_na=False, dtype=str)
    classes.loc[classes["class"] != "class 0", ["low", "high"]] = ["21.25", "63.5"]
    own = (classes["image_run"] == RELIABLE) & (classes["class"] != "class 0")
    classes.loc[own, ["images", "image_low", "image_high"]] = ["8", "30.125", "44"]
    classes.loc[classes["image_run"] == RELIABLE, "images"] = "8"
    classes.to_csv(results / "classes.csv", index=False)
    cells = pd.read_csv(results / "cells.csv", keep_default_na=False)
    measured = cells["source"] != "quoted"
    cells["low"] = cells["high"] = cells["verdict"] = ""
    cells.loc[measured, "low"], cells.loc[measured, "high"] = "11.5", "88.5"
    verdicts = ["reproduced", "not reproduced", "inconclusive"]
    cells.loc[measured, "verdict"] = [verdicts[i % 3] for i in range(measured.sum())]
    cells.to_csv(results / "cells.csv", index=False)
    write_page(suite, results, results / "cells.csv", results / "classes.csv", results / "index.html")
    return results


class Scripts(HTMLParser):
    """The contents of the script elements, as an HTML parser separates them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._inside = tag == "script"
        if self._inside:
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found[-1] += data


def embedded(site: Path) -> dict[str, Any]:
    data, _ = Scripts((site / "index.html").read_text()).found
    content: dict[str, Any] = json.loads(data)
    return content


def test_the_data_are_those_of_the_files(site: Path, suite: Suite) -> None:
    data = embedded(site)
    cells = pd.read_csv(site / "cells.csv", keep_default_na=False)
    assert len(data["cells"]) == len(cells) == len(suite.cells)
    by_place = {(cell["table"], cell["row"], cell["column"]): cell for cell in data["cells"]}
    for _, row in cells.iterrows():
        cell = by_place[row["table"], row["row"], row["column"]]
        assert cell["runs"] == row["run"].split()
        for key in ("paper", "mean", "low", "high"):
            expected = None if row[key] == "" else pytest.approx(float(row[key]), abs=1e-4)
            assert cell[key] == expected, key
        assert cell["verdict"] == (row["verdict"] or None)
    run = data["runs"][RELIABLE]
    history = pd.read_csv(site / "runs" / RELIABLE / "history.csv").dropna()
    assert run["curve"] == history[["epoch", "val_miou"]].to_numpy().tolist()
    assert run["diagnostics"] == {"pseudo_miou": [[7, 40.5], [8, 50.25]]}
    assert all(not other["diagnostics"] for name, other in data["runs"].items() if name != RELIABLE)
    assert data["diagnostics"] == [[name, title.replace("$", "")] for name, title in DIAGNOSTICS.items()]
    assert run["validated"] == "centre crops"
    paper = suite.runs["pascal_blender-6-u2pl-seed0"].settings.negatives
    assert run["departures"] == [
        ["bank_size", 1000, 30000],
        ["bank_size_background", 2000, 50000],
        ["negatives", "reliable", paper],
    ]
    cell = by_place["table4", "Reliable", "1/8 (6)"]
    assert cell["images"] == 8 and len(cell["intervals"]) == 1 + len(suite.datasets["pascal"].classes)
    assert cell["intervals"][:3] == [[21.25, 63.5, 30.12, 44], [None] * 4, [21.25, 63.5, 30.12, 44]]
    assert f"runs/{RELIABLE}/evaluation.json" in by_place["table4", "Reliable", "1/8 (6)"]["command"]
    assert [name for name, _ in data["classes"]["pascal"]] == [c.name for c in suite.datasets["pascal"].classes]


def test_text_of_the_data_stays_text_and_nothing_is_loaded(site: Path) -> None:
    text = (site / "index.html").read_text()
    assert len(Scripts(text).found) == 2 and embedded(site)["runs"][RELIABLE]["device"] == EVIL
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|@import|url\(", text)
    assert "default-src 'none'" in text


def test_a_caption_is_no_markup(site: Path, suite: Suite, tmp_path: Path) -> None:
    table = suite.tables["table4"].model_copy(update={"caption": "a < b & <i>c</i>"})
    changed = suite.model_copy(update={"tables": suite.tables | {"table4": table}})
    write_page(changed, site, site / "cells.csv", site / "classes.csv", tmp_path / "p.html")
    assert "a &lt; b &amp; &lt;i&gt;c&lt;/i&gt;" in (tmp_path / "p.html").read_text()


def test_notes_say_how_to_take_the_verdicts_and_whose_lists(site: Path, suite: Suite, tmp_path: Path) -> None:
    cells = pd.read_csv(site / "cells.csv", keep_default_na=False)
    place = (cells["table"] == "table4") & (cells["row"] == "All")
    cells.loc[place, "verdict"], cells.loc[place, "lists"] = "conditional on this list", "one list of cps"
    cells.to_csv(tmp_path / "cells.csv", index=False)
    write_page(suite, site, tmp_path / "cells.csv", site / "classes.csv", tmp_path / "page.html")
    said = [
        re.findall(r'class="notes">(.*?)</p>', f.read_text()) for f in (site / "index.html", tmp_path / "page.html")
    ]
    assert all("one draw" in notes for page in said for notes in page)
    assert ["share one list" in " ".join(page) for page in said] == [False, True]
    plain, changed = (next(notes for notes in page if "Quoted" not in notes) for page in said)
    assert "redrawn with each seed." in plain and "redrawn with each seed in Unreliable, Reliable." in changed


def test_moderated_verdicts_and_q_are_in_the_details(site: Path, suite: Suite, tmp_path: Path) -> None:
    cells = pd.read_csv(site / "cells.csv", keep_default_na=False)
    at = cells.index[cells["verdict"] == "reproduced"][0]
    known = {"moderated_low": 49.5, "moderated_high": 51.25, "moderated_verdict": "inconclusive", "q": 0.125}
    for name, value in known.items():
        cells[name] = cells[name].astype(object)
        cells.loc[at, name] = value
    cells.to_csv(tmp_path / "cells.csv", index=False)
    write_page(suite, site, tmp_path / "cells.csv", site / "classes.csv", tmp_path / "index.html")
    shown = [c for c in embedded(tmp_path)["cells"] if c["moderated_verdict"] is not None]
    assert [{name: cell[name] for name in known} for cell in shown] == [known], "one seed has nothing to moderate"


def test_of_a_tie_none_is_bold(site: Path, suite: Suite, tmp_path: Path) -> None:
    cells = pd.read_csv(site / "cells.csv", keep_default_na=False)
    own = cells[(cells["table"] == "table4") & (cells["fraction"] == "1/8")].index
    cells.loc[own, "mean"] = ["50.004", "50.001", "40"]  # printed as 50.00 twice
    cells.to_csv(tmp_path / "cells.csv", index=False)
    write_page(suite, site, tmp_path / "cells.csv", site / "classes.csv", tmp_path / "index.html")
    best = {
        fraction: [
            c["best"]
            for c in embedded(tmp_path)["cells"]
            if c["table"] == "table4" and c["column"].startswith(fraction)
        ]
        for fraction in ("1/8", "1/4")
    }
    assert best["1/8"] == [False] * 3 and sum(best["1/4"]) == 1


def test_synthetic_data_are_said_once_and_have_no_verdicts(site: Path, suite: Suite, tmp_path: Path) -> None:
    synthetic = suite.model_copy(update={"params": suite.params.model_copy(update={"synthetic": True})})
    write_page(synthetic, site, site / "cells.csv", site / "classes.csv", tmp_path / "page.html")
    shown = [
        re.sub("<script.*?</script>", "", path.read_text(), flags=re.S)
        for path in (tmp_path / "page.html", site / "index.html")
    ]
    assert [text.count("Synthetic data.") for text in shown] == [1, 0]
    assert ["data-verdict" in text.partition("</style>")[2] for text in shown] == [False, True]
    assert ["not reproduced (" in text for text in shown] == [False, True]


def test_equal_files_give_equal_bytes(site: Path, suite: Suite, tmp_path: Path) -> None:
    write_page(suite, site, site / "cells.csv", site / "classes.csv", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (site / "index.html").read_bytes()


@pytest.mark.parametrize("name", ["run.json", "history.csv", "evaluation.json"])
def test_a_missing_file_is_named_and_nothing_is_written(site: Path, suite: Suite, tmp_path: Path, name: str) -> None:
    path = site / "runs" / RELIABLE / name
    before = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(UserError, match=re.escape(f"{RELIABLE}/{name}")):
            write_page(suite, site, site / "cells.csv", site / "classes.csv", tmp_path / "page.html")
    finally:
        path.write_bytes(before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("history.csv", ",5,50", ",inf,50"),
        ("history.csv", ",5,50", ",-5,50"),
        ("run.json", '"wall_time_s": 1.25', '"wall_time_s": 1e999'),
        ("run.json", '"wall_time_s": 1.25', '"wall_time_s": "1.25"'),
        ("run.json", '"0123', '"1123'),
        ("evaluation.json", "null,", "NaN,"),
        ("evaluation.json", "null,", ""),
        ("evaluation.json", '"0123', '"1123'),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_written(
    site: Path, suite: Suite, tmp_path: Path, name: str, old: str, new: str
) -> None:
    path = site / "runs" / RELIABLE / name
    before = path.read_text()
    path.write_text(before.replace(old, new, 1))
    try:
        assert path.read_text() != before
        with pytest.raises(UserError, match=re.escape(f"runs/{RELIABLE}")):
            write_page(suite, site, site / "cells.csv", site / "classes.csv", tmp_path / "page.html")
    finally:
        path.write_text(before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("old", "new"), [("mIoU", "other"), (RELIABLE, "another-run"), ("class 3", "class 4")])
def test_classes_of_other_cells_are_refused(site: Path, suite: Suite, tmp_path: Path, old: str, new: str) -> None:
    """Rows are found by their cell: one that is missing, or of another run, is named."""
    lines = (site / "classes.csv").read_text().splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if old in line and RELIABLE in line)
    lines[number : number + 1] = [lines[number].replace(old, new)] if old == RELIABLE else []
    (tmp_path / "classes.csv").write_text("".join(lines))
    with pytest.raises(
        UserError, match=rf"classes\.csv: found 2\d rows for table4, Reliable, .* expected 22 of {RELIABLE}"
    ):
        write_page(suite, site, site / "cells.csv", tmp_path / "classes.csv", tmp_path / "page.html")
    with pytest.raises(UserError, match="classes.csv: found no file"):
        write_page(suite, site, site / "cells.csv", tmp_path / "none" / "classes.csv", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


# --- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: the package chromium)")
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page, site: Path) -> Iterator[Page]:
    browser.open(site / "index.html")
    browser.js("localStorage.clear()")
    browser.open(site / "index.html")
    yield browser
    assert browser.messages == []
    assert browser.requests == [(site / "index.html").as_uri()], "the page needs no other file"
    assert browser.js("window.evil") is None


CELL = "#table4 tbody tr:nth-child(2) .cell"


def details(page: Page) -> str:
    return str(page.js("document.getElementById('details').open ? document.getElementById('details').innerText : ''"))


def titles(page: Page, table: str) -> list[str]:
    rows = f"[...document.querySelectorAll('#{table} tbody tr')].filter(r => r.offsetParent)"
    found: list[str] = page.js(f"{rows}.map(r => r.cells[0].textContent)")
    return found


def test_a_pressed_cell_tells_what_stands_behind_it(page: Page, site: Path) -> None:
    assert details(page) == ""
    page.click(CELL)
    text, cell = details(page), next(c for c in embedded(site)["cells"] if c["runs"] == [RELIABLE])
    assert "Table 4: Reliable, 1/8 (6)" in text
    for part in (f"{cell['mean']:.2f}", "77.30", "11.50 to 88.50", cell["verdict"], "7 of 8", "c0ffeec0ff + changes"):
        assert part in text
    assert EVIL in text and "negatives\treliable\tunreliable" in text and cell["command"] in text
    assert page.js("document.querySelector('#details polyline').getAttribute('points').split(' ').length") == 2
    assert page.js("[...document.querySelectorAll('#details h4')].map(e => e.innerText)") == [
        DIAGNOSTICS["pseudo_miou"]
    ]
    assert page.js("document.querySelectorAll('#details polyline').length") == 2
    shown = page.js("[...document.querySelectorAll('.classes li')].map(e => e.innerText.split('\\n'))")
    assert shown[0] == ["background", "–"]
    spans = ["seeds 21.25 to 63.50", f"images {cell['intervals'][2][2]:.2f} to 44.00"]
    assert shown[1] == ["aeroplane", f"{cell['mean']:.2f}", *spans]
    assert "Over seeds: 95 % t interval of the mean." in text
    assert "Over images: 95 % bootstrap over 8 validation images, one network: seed 0." in text
    assert "interval over images, one network" in text
    page.click("#close")
    assert details(page) == ""


def test_a_heading_sorts_down_up_and_back(page: Page) -> None:
    heading = "#table2 thead th:nth-child(3) button"
    values = "[...document.querySelectorAll('#table2 tbody tr')].map(r => Number(r.cells[2].dataset.value))"
    before, order = titles(page, "table2"), "document.querySelector('#table2 thead th:nth-child(3)').ariaSort"
    for state, reverse in (("descending", True), ("ascending", False)):
        page.click(heading)
        numbers = page.js(values)
        assert page.js(order) == state and numbers == sorted(numbers, reverse=reverse)
    page.click(heading)
    assert page.js(order) == "none" and titles(page, "table2") == before
    page.click("#table2 thead th:first-child button")
    assert titles(page, "table2") == sorted(before, key=str.lower)


def test_filters_hide_rows_and_empty_tables(page: Page, site: Path) -> None:
    everything = {name: titles(page, name) for name in TABLES}
    page.js("document.getElementById('find').focus()")
    page.type("cutm")
    assert titles(page, "table2") == ["CutMix", "U2PL (w/ CutMix)"]
    assert titles(page, "table4") == []
    assert page.js("document.getElementById('table4').hidden")
    total = sum(map(len, everything.values()))
    assert page.js("document.getElementById('count').textContent") == f"2 of {total} rows"
    choose = "(v => { const e = document.getElementById('kind'); e.value = v; e.dispatchEvent(new Event('change')); })"
    page.js("document.getElementById('find').select()")
    page.type(" ")
    page.js(f"{choose}('quoted')")
    assert titles(page, "table2")[-1] == "Elsewhere" and "SupOnly" not in titles(page, "table2")
    page.js(f"{choose}('reconstructed')")
    assert titles(page, "table2") == ["CPS§"]
    page.js(f"{choose}('measured')")
    assert "SupOnly" in titles(page, "table2") and not {"CPS§", "Elsewhere"} & set(titles(page, "table2"))
    page.js(f"{choose}('not reproduced')")
    cells = embedded(site)["cells"]
    wanted = {c["row"] for c in cells if c["table"] == "table4" and c["verdict"] == "not reproduced"}
    assert set(titles(page, "table4")) == wanted != set(everything["table4"])


def test_the_theme_follows_the_system_until_it_is_chosen(page: Page, site: Path) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.js(colour)
    page.click("#theme")
    dark = page.js(colour)
    assert dark != light
    page.open(site / "index.html")
    assert page.js(colour) == dark, "the choice is remembered"
    page.js("localStorage.clear()")
    page.open(site / "index.html", dark=True)
    assert page.js(colour) == dark


def test_the_keyboard_alone_reaches_everything(page: Page) -> None:
    page.press("Tab")
    assert page.js("document.activeElement.className") == "skip"
    page.press("Enter")
    for _ in range(40):
        page.press("Tab")
        if page.js("document.activeElement.matches('.cell')"):
            break
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.js(outline) != "none", "the focus is seen"
    number = page.js("document.activeElement.dataset.cell")
    page.press("Enter")
    assert "Table 2: SupOnly" in details(page)
    for _ in range(8):  # a modal dialog keeps the focus
        page.press("Tab")
        assert page.js("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    page.press("Escape")
    assert details(page) == ""
    assert page.js("document.activeElement.dataset.cell") == number, "the focus comes back"
    page.press(" ")
    assert "Table 2: SupOnly" in details(page)


def test_every_control_has_a_name(page: Page) -> None:
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "combobox", "searchbox", "link", "table", "dialog", "region"}
    controls = [node for node in nodes if node.get("role", {}).get("value") in roles and not node["ignored"]]
    unnamed = [n["role"]["value"] for n in controls if not n.get("name", {}).get("value")]
    assert len(controls) > 40 and set(unnamed) <= {"table"}  # a table is named by the region around it


@pytest.mark.parametrize("width", [360, 390, 768])
def test_only_tables_scroll_sideways(page: Page, site: Path, width: int) -> None:
    page.open(site / "index.html", width=width)
    assert page.js("document.documentElement.scrollWidth") <= width
    page.click(CELL)
    assert page.js("document.getElementById('details').scrollWidth") <= width
    assert page.js("document.getElementById('details-body').getBoundingClientRect().right") <= width


def test_copied_and_reconstructed_numbers_are_marked_and_explained(page: Page, site: Path) -> None:
    notes = page.js("document.querySelector('#table2 .notes').textContent")
    assert "† Quoted" in notes and "‡ They copied CCT, GCT, AEL from Table 2 of the AEL paper" in notes
    assert "§ Reconstructed" in notes
    other = page.js("document.querySelector('#table4 .notes').textContent")
    assert "itself one draw" in other and "Quoted" not in other and "Reconstructed" not in other
    (cell,) = (c for c in embedded(site)["cells"] if (c["row"], c["column"]) == ("CPS", "1/16 (3)"))
    assert "Reconstructed" in cell["remark"] and "copied its number from the CPS paper" in cell["remark"]
    page.js(f"document.querySelector('[data-cell=\"{cell['number']}\"]').click()")
    assert cell["remark"] in page.js("document.getElementById('details-body').textContent")
    assert "74.48‡" in page.js("document.querySelector('#table2 tbody').textContent")
