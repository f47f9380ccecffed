"""The grid: the paper's tables name 118 distinct trainings a seed, and a mistake is blamed on its file and key."""

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from u2pl.addresses import public
from u2pl.errors import UserError
from u2pl.experiments import load_suite, scale_names

ROOT = Path(__file__).parents[2]
TABLES = [f"table{number}" for number in range(1, 8)]  # the paper's


def cells_of(table: str):
    return [cell for cell in load_suite("paper", ROOT).cells if cell.table == table]


@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_eleven_methods_give_118_trainings_a_seed(scale):
    suite = load_suite(scale, ROOT)
    new, seen = [], set()
    for table in TABLES:
        runs = {run for cell in suite.cells if cell.table == table for run in cell.runs}
        new.append(len(runs - seen) // len(suite.params.seeds))
        seen |= runs
    assert new == [30, 32, 36, 4, 8, 2, 6]
    assert len(seen) == 118 * len(suite.params.seeds)


@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_every_number_of_the_paper_has_one_of_ours_beside_it(scale):
    cells = [cell for cell in load_suite(scale, ROOT).cells if cell.table in TABLES and cell.paper is not None]
    sources = Counter(cell.source for cell in cells)
    assert sources == {"measured": 123, "reconstructed": 5} and all(cell.runs for cell in cells)
    assert {cell.row for cell in cells if cell.source == "reconstructed"} == {"PC2Seg"}


def test_copied_numbers_are_those_of_rows_that_the_authors_did_not_train():
    """methods.md, section 0: seven rows of Tables 1 and 2, two of Table 3."""
    found = {(cell.table, cell.row) for cell in load_suite("paper", ROOT).cells if cell.copied_from}
    assert found == {
        *(("table1", row) for row in ("PseudoSeg", "PC2Seg")),
        *(("table2", row) for row in ("CCT", "GCT", "CPS", "AEL")),
        *(("table3", row) for row in ("CCT", "GCT")),
    }


def test_every_scale_loads():
    for scale in scale_names(ROOT):
        suite = load_suite(scale, ROOT)
        assert {run for cell in suite.cells for run in cell.runs} == set(suite.runs)


def test_table_d_flips_every_factor_alone():
    """One row a factor; the flip that concerns only the report shares the preset's run. The first has more seeds."""
    suite = load_suite("paper", ROOT)
    rows = [cell for cell in suite.cells if cell.table == "divergences"]
    assert [suite.runs[run].seed for run in rows[0].runs] == list(range(12))
    assert all([suite.runs[run].seed for run in cell.runs] == [0, 1, 2] for cell in rows[1:])
    base = rows[0].runs[:3]
    flipped = [set(cell.overrides) for cell in rows if cell.overrides]
    assert all(len(keys) == 1 for keys in flipped)
    names = set().union(*flipped)
    released = suite.runs["pascal_blender-1323-u2pl-released-seed0"].settings.model_dump()
    paper = suite.runs["pascal_blender-1323-u2pl-seed0"].settings.model_dump()
    assert {name for name in paper if paper[name] != released[name]} <= names
    assert [cell.row for cell in rows if cell.runs[:3] == base] == ["paper preset", "checkpoint_selection = last"]
    assert {cell.checkpoint for cell in rows} == {"best", "last"}


def test_a_preset_written_out_is_the_preset(params):
    """All released values as overrides of the paper preset are the run of the released preset."""
    suite = load_suite("demo", params)
    name = next(run for run in suite.runs if run.startswith("pascal_blender-6-u2pl-released-"))
    paper = suite.runs[name.replace("-released", "")].settings.model_dump()
    released = suite.runs[name].settings.model_dump()
    overrides = {key: value for key, value in released.items() if value != paper[key]}
    row = {"title": "by hand", "method": "u2pl", "overrides": overrides, "paper": [None]}
    edit(params / "params/tables/divergences.yaml", lambda v: v["rows"].append(row))
    again = load_suite("demo", params)
    assert list(again.runs) == list(suite.runs)
    assert [cell.runs for cell in again.cells if cell.row == "by hand"] == [[name]]


def test_the_rows_that_share_a_number_in_the_paper_share_a_run():
    by = {(c.table, c.row, c.fraction): c for t in range(2, 8) for c in cells_of(f"table{t}")}
    same = [
        [("table2", "MT"), ("table6", "none (MT)")],
        [("table4", "All"), ("table6", "L_c, Q_c, DPA, PRT")],
        [("table5", "r_l = 1, r_h = 20"), ("table6", "L_c, Q_c, DPA, Unreliable")],
        [("table2", "U2PL (w/ CutMix)"), ("table4", "Unreliable"), ("table5", "r_l = 3, r_h = 20"),
         ("table6", "all five"), ("table7", "20 %")],
    ]  # fmt: skip
    for group in same:
        cells = [by[(table, row, "1/4")] for table, row in group]
        assert len({tuple(cell.runs) for cell in cells}) == 1
        assert len({cell.paper for cell in cells}) == 1


def test_equal_ids_mean_equal_settings_and_the_reverse():
    runs = load_suite("paper", ROOT).runs
    keys = {str(spec.science()) for spec in runs.values()}
    assert len(keys) == len(runs)


def test_published_sizes():
    protocols = load_suite("paper", ROOT).protocols
    assert list(protocols["pascal_classic"].fractions.values()) == [92, 183, 366, 732, 1464]
    assert list(protocols["pascal_blender"].fractions.values()) == [662, 1323, 2646, 5291]
    assert list(protocols["cityscapes"].fractions.values()) == [186, 372, 744, 1488]


def test_class_table_is_cityscapesscripts():
    from cityscapesscripts.helpers.labels import labels

    theirs = {label.trainId: (label.name, label.color) for label in labels if 0 <= label.trainId < 255}
    ours = load_suite("paper", ROOT).datasets["cityscapes"].classes
    assert {i: (c.name, c.colour) for i, c in enumerate(ours)} == theirs


def test_every_dataset_has_its_classes_and_recipes_follow_section_4_1():
    suite = load_suite("paper", ROOT)
    assert [len(d.classes) for d in suite.datasets.values()] == [21, 19]
    spec = next(s for s in suite.runs.values() if s.protocol == "pascal_classic")
    recipe = spec.recipe
    assert (recipe.lr, recipe.weight_decay, recipe.crop, recipe.batch, recipe.epochs) == (1e-3, 1e-4, 513, 16, 80)
    spec = next(s for s in suite.runs.values() if s.protocol == "cityscapes")
    recipe = spec.recipe
    assert (recipe.lr, recipe.weight_decay, recipe.crop, recipe.batch, recipe.epochs) == (1e-2, 5e-4, 769, 16, 200)


def test_importing_the_grid_does_not_import_torch():
    code = "import sys, u2pl.experiments, u2pl.cli.main; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def params(tmp_path):
    shutil.copytree(ROOT / "params", tmp_path / "params")
    return tmp_path


def edit(path: Path, change) -> None:
    value = yaml.safe_load(path.read_text())
    change(value)
    path.write_text(yaml.safe_dump(value))


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("recipes.yaml", lambda v: v["pascal"].update(epoch=3), ["recipes.yaml", "pascal.epoch", "'epochs'"]),
        ("recipes.yaml", lambda v: v["pascal"].update(epochs=0), ["recipes.yaml", "pascal.epochs", "0"]),
        ("recipes.yaml", lambda v: v["pascal"].pop("lr"), ["recipes.yaml", "pascal.lr", "nothing"]),
        ("scales/demo.yaml", lambda v: v["recipes"]["pascal"].update(batchh=3), ["demo.yaml", "batchh", "'batch'"]),
        ("scales/demo.yaml", lambda v: v["recipes"].update(pascl={}), ["demo.yaml", "recipes.pascl", "'pascal'"]),
        ("scales/demo.yaml", lambda v: v["recipes"]["pascal"]["network"].update(widht=3), ["widht", "'width'"]),
        ("methods.yaml", lambda v: v["u2pl"].update(settings={"r_lo": 2}), ["methods.yaml", "r_lo", "'r_low'"]),
        ("tables/table5.yaml", lambda v: v["rows"][0]["overrides"].update(rlow=2), ["table5", "rlow", "'r_low'"]),
        ("tables/table5.yaml", lambda v: v["rows"][0].update(fidelity="papr"), ["table5", "'papr'", "'paper'"]),
        ("tables/table5.yaml", lambda v: v["rows"][0]["overrides"].update(tau="old"), ["overrides.tau", "'old'"]),
        ("tables/table5.yaml", lambda v: v["rows"][0].pop("method"), ["table5", "rows.0.overrides", "one is quoted"]),
        ("fidelity.yaml", lambda v: v["released"]["all"].update(r_lo=1), ["fidelity.yaml", "r_lo", "'r_low'"]),
        ("scales/demo.yaml", lambda v: v.update(tables=["table8"]), ["demo.yaml", "'table8'"]),
        ("tables/table5.yaml", lambda v: v["rows"][0].update(method="u2p"), ["table5", "'u2p'", "'u2pl'"]),
        ("tables/table5.yaml", lambda v: v["columns"][0].update(fraction="1/3"), ["table5", "1/3", "1/16"]),
        ("tables/table5.yaml", lambda v: v["columns"][0].update(protocol="blender"), ["table5", "'pascal_blender'"]),
        ("tables/table5.yaml", lambda v: v["rows"][0]["paper"].pop(), ["table5", "1 paper values for 2 columns"]),
        (
            "tables/table5.yaml",
            lambda v: v.update(claims=[{"claim": "more", "better": v["rows"][0]["title"], "worse": "Nothing"}]),
            ["table5", "claims", "'Nothing'"],
        ),
        ("tables/table5.yaml", lambda v: v["rows"][1].update(title=v["rows"][0]["title"]), ["table5", "one row"]),
        ("tables/table5.yaml", lambda v: v["columns"][1].update(v["columns"][0]), ["table5", "one column"]),
        ("protocols.yaml", lambda v: v["cityscapes"].update(dataset="city"), ["protocols.yaml", "'cityscapes'"]),
    ],
)  # fmt: skip
def test_a_mistake_is_named(params, file, change, named):
    edit(params / "params" / file, change)
    with pytest.raises(UserError) as caught:
        load_suite("demo", params)
    assert all(part in str(caught.value) for part in named), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda archive: archive.update(mirrors="https://user:s3cret@mirror.example.org/voc.tar"),
        lambda archive: archive.update(mirrors={"one": "https://user:s3cret@mirror.example.org/voc.tar"}),
        lambda archive: archive.update(md5="https://user:s3cret@mirror.example.org/voc.tar?token=s3cret"),
    ],
)
def test_a_mistake_in_an_address_does_not_show_its_password(params, wrong):
    edit(params / "params/datasets.yaml", lambda v: wrong(v["pascal"]["archives"]["voc"]))
    with pytest.raises(UserError) as caught:
        load_suite("paper", params)
    assert "pascal.archives.voc" in str(caught.value) and "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host.example.org/a/file.tar?token=s3cret#part", "https://host.example.org/a/file.tar"),
        ("https://user:s3cret@host.example.org/file.tar", "https://host.example.org/file.tar"),
        ("https://s3cret@host.example.org/file.tar", "https://host.example.org/file.tar"),
        ("https://user:s3/cret@host.example.org/file.tar", "https://host.example.org/file.tar"),
        ("https://user:s3#cret@host.example.org/file.tar", "https://host.example.org/file.tar"),
        ("https://user:s3?cret@host.example.org/file.tar", "https://host.example.org/file.tar"),
        ("http://localhost:8000/file.tar", "http://localhost:8000/file.tar"),
        ("https://host.example.org/v@1/file.tar", "https://host.example.org/v@1/file.tar"),
        ("file:data/demo/upstream/file.tar", "file:data/demo/upstream/file.tar"),
    ],
)
def test_an_address_is_shown_without_secrets(url, shown):
    assert public(url) == shown


def test_exit_code_2_and_one_line(params):
    edit(params / "params/recipes.yaml", lambda v: v["pascal"].update(epoch=3))
    done = subprocess.run([sys.executable, "-m", "u2pl", "runs"], cwd=params, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_table_and_a_row_are_yaml_edits(params):
    before = set(load_suite("paper", params).runs)
    shutil.copy(params / "params/tables/table5.yaml", params / "params/tables/mine.yaml")
    row = {"title": "no contrast", "method": "u2pl", "overrides": {"contrastive_weight": 0.0}, "paper": [None, None]}
    edit(params / "params/tables/mine.yaml", lambda v: v["rows"].append(row))
    after = set(load_suite("paper", params).runs)
    assert before < after and len(after - before) == 2 * 3
    assert "pascal_blender-1323-u2pl-contrastive_weight=0.0-seed0" in after
    # A scale that lists its tables runs those alone, and others not those on request.
    assert not any("contrastive_weight=0.0" in run for run in load_suite("demo", params).runs)
    edit(params / "params/tables/mine.yaml", lambda v: v.update(on_request=True))
    assert set(load_suite("paper", params).runs) == before


def test_departures_lead_back_to_the_paper():
    """With the departures' values instead of its own, the released run has the paper run's settings."""
    runs = load_suite("paper", ROOT).runs
    paper = runs["pascal_blender-1323-u2pl-seed0"]
    assert paper.departures == {}
    for change in ("released", "anchors_per_class=256"):
        spec = runs[f"pascal_blender-1323-u2pl-{change}-seed0"]
        assert spec.departures and spec.settings != paper.settings
        assert spec.settings.model_dump() | spec.departures == paper.settings.model_dump()


def test_what_a_scale_changes_departs_from_the_paper():
    runs = load_suite("demo", ROOT).runs
    assert runs["pascal_blender-6-u2pl-seed0"].departures == {"bank_size": 30000, "bank_size_background": 50000}
    assert runs["pascal_blender-6-cutmix-seed0"].departures == {}, "a method without a bank"


@pytest.mark.parametrize(("scale", "source"), [("paper", "u2pl"), ("demo", "drawn"), ("mini", "drawn")])
def test_both_presets_take_published_lists_but_on_synthetic_scales(scale, source):
    runs = load_suite(scale, ROOT).runs.values()
    taken = {(spec.fidelity, spec.settings.split_source) for spec in runs if "split_source" not in spec.overrides}
    assert taken == {(reading, source) for reading in (("paper",) if scale == "mini" else ("paper", "released"))}
    assert not any("split_source" in spec.departures for spec in runs if "split_source" not in spec.overrides)


@pytest.mark.parametrize("part", ["all", "pascal"])
def test_the_preset_of_a_synthetic_scale_may_take_published_lists(params, part):
    own = {"released": {part: {"split_source": "u2pl"}}}
    edit(params / "params/scales/demo.yaml", lambda v: v.update(fidelity=own))
    runs = load_suite("demo", params).runs
    assert runs["pascal_blender-6-u2pl-released-seed0"].split == "pascal_blender/u2pl/6"
    assert runs["pascal_blender-6-u2pl-seed0"].split == "pascal_blender/drawn/6/seed0"


def test_drawn_lists_are_of_a_seed_and_published_ones_of_all():
    """Table D shows both; the reported runs of all other tables have the authors' lists."""
    suite = load_suite("paper", ROOT)
    rows = {cell.row: cell for cell in suite.cells if cell.table == "divergences"}
    splits = {row: [suite.runs[run].split for run in cell.runs] for row, cell in rows.items()}
    assert splits["split_source = drawn"] == [f"pascal_blender/drawn/1323/seed{seed}" for seed in range(3)]
    assert splits["split_source = cps"] == ["pascal_blender/cps/1323"] * 3
    others = {row: lists for row, lists in splits.items() if not row.startswith("split_source")}
    for row, lists in others.items():
        assert lists == ["pascal_blender/u2pl/1323"] * (12 if row == "paper preset" else 3)
    numbered = [run for cell in suite.cells if cell.table != "divergences" for run in cell.runs]
    assert {suite.runs[run].split.split("/")[1] for run in numbered} == {"u2pl"}


def test_what_follows_from_synthetic_need_not_be_written(params):
    edit(params / "params/scales/demo.yaml", lambda v: v["datasets"]["pascal"]["synthetic"].update(extra=20, train=33))
    suite = load_suite("demo", params)
    pascal = suite.datasets["pascal"]
    assert pascal.counts == {"train": 33, "train_aug": 53, "val": 8}
    assert suite.datasets["cityscapes"].counts == {"train": 32, "val": 6}
    assert pascal.archives["voc"].url == "file:data/demo/upstream/VOCtrainval_11-May-2012.tar"
    assert pascal.archives["voc"].md5 is None
    assert suite.published["u2pl"].url == "file:data/demo/upstream/lists/u2pl/"
    edit(params / "params/scales/demo.yaml", lambda v: v["datasets"]["pascal"].update(counts={"val": 9}))
    assert load_suite("demo", params).datasets["pascal"].counts == {"train": 33, "train_aug": 53, "val": 9}
