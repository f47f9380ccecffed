import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from u2pl.data.lists import write_ids
from u2pl.data.splits.audit import audit_splits, tables, write_csv
from u2pl.data.splits.draw import draw, write
from u2pl.errors import UserError
from u2pl.experiments import load_suite
from u2pl.experiments.schema import Protocol
from u2pl.files import read_json, write_json

PROTOCOL = Protocol(dataset="pascal", candidates="train_aug", universe="train_aug", fractions={"1/2": 4})


@pytest.fixture
def data(pascal: Path, tmp_path: Path) -> Path:
    """Splits of 4 images: drawn with two seeds, by class, and of another source."""
    shutil.copytree(pascal, tmp_path / "pascal")
    universe = (pascal / "lists/train_aug.txt").read_text().split()
    fine = set((pascal / "lists/train.txt").read_text().split())
    for seed in (0, 1):
        target = tmp_path / f"splits/blender/drawn/4/seed{seed}"
        draw(PROTOCOL, 4, tmp_path / "pascal", target, seed, stratified=True)
    other = sorted(fine)[:3] + sorted(set(universe) - fine)[:1]
    lists = {"labeled": other, "unlabeled": set(universe) - set(other)}
    write(PROTOCOL, lists, tmp_path / "pascal", tmp_path / "splits/blender/u2pl/4", {"source": "u2pl"})
    return tmp_path


def test_counts_against_the_files(data: Path) -> None:
    audits = audit_splits(data)
    folders = {"drawn/seed0": "drawn/4/seed0", "drawn/seed1": "drawn/4/seed1", "u2pl": "u2pl/4"}
    labeled = {s: (data / f"splits/blender/{f}/labeled.txt").read_text().split() for s, f in folders.items()}
    assert [audit.source for audit in audits] == list(folders)
    for one in audits:
        shared = {s: len(set(ids) & set(labeled[one.source])) for s, ids in labeled.items() if s != one.source}
        assert one.overlap == shared
    other = audits[-1]
    assert (other.labelled, other.unlabelled, other.fine, other.missing) == (4, 6, 3, None)
    names = read_json(data / "pascal/manifest.json")["classes"]
    masks = np.stack([np.array(Image.open(data / f"pascal/masks/{i}.png")) for i in labeled["u2pl"]])
    valid = (masks != 255).sum()
    universe = (data / "pascal/lists/train_aug.txt").read_text().split()
    there = {i: set(np.unique(np.array(Image.open(data / f"pascal/masks/{i}.png")))) - {255} for i in universe}
    for audit in audits[:2]:
        lost = set.union(*there.values()) - set.union(*(there[i] for i in labeled[audit.source]))
        manifest = read_json(data / "splits/blender" / folders[audit.source] / "manifest.json")
        assert manifest["missing"] == [names[label] for label in sorted(lost)] and audit.missing == len(lost) > 0
    for label, name in enumerate(names):
        assert other.pixels[name] == pytest.approx((masks == label).sum() / valid)
        assert other.images[name] == pytest.approx((masks == label).any((1, 2)).mean())
    assert sum(other.pixels.values()) == pytest.approx(1)


def test_filters(data: Path) -> None:
    (one,) = audit_splits(data, "blender", ["u2pl"], classes=False)
    assert one.source == "u2pl" and list(one.overlap) == ["drawn/seed0", "drawn/seed1"] and not one.pixels
    assert [audit.source for audit in audit_splits(data, sources=["drawn"])] == ["drawn/seed0", "drawn/seed1"]
    shutil.rmtree(data / "pascal/masks")
    assert all(not audit.images for audit in audit_splits(data))
    for arguments in (("classic", None), ("blender", ["cps"])):
        with pytest.raises(UserError, match=f"no split {arguments[0]}"):
            audit_splits(data, *arguments)


def test_a_damaged_split_is_refused(data: Path) -> None:
    write_ids(data / "splits/blender/u2pl/4/labeled.txt", ["2007_999999"])
    with pytest.raises(UserError, match="unknown image"):
        audit_splits(data)


def test_csv_and_tables(data: Path, tmp_path: Path) -> None:
    audits = audit_splits(data)
    write_csv(tmp_path / "audit.csv", audits)
    with (tmp_path / "audit.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["protocol"] for row in rows} == {"blender"} and len(rows) == 3 * (4 + 2 + 2 * 21) + 2
    fine = [row for row in rows if (row["source"], row["quantity"], row["of"]) == ("u2pl", "share", "finely annotated")]
    assert [float(row["value"]) for row in fine] == [0.75]
    sizes, classes = tables(audits)
    assert sizes.row_count == 3 and classes.row_count == 21
    missing = [row["value"] for row in rows if row["of"] == "without a labelled image"]
    (column,) = [column for column in sizes.columns if column.header == "miss-\ning"]
    assert [*column.cells] == [*missing, ""]
    assert len(tables(audit_splits(data, classes=False))) == 1


def test_command_line(data: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    shutil.copytree(root / "params", tmp_path / "work/params")
    command = [sys.executable, "-m", "u2pl", "splits", "audit"]
    done = subprocess.run(command, cwd=tmp_path / "work", capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1) and "no split" in done.stderr
    shutil.copytree(data / "pascal", tmp_path / "work/data/demo/pascal")
    dataset = load_suite("demo", root).datasets["pascal"]
    declared = {"classes": [label.name for label in dataset.classes], "counts": dataset.counts}
    manifest = tmp_path / "work/data/demo/pascal/manifest.json"
    write_json(manifest, read_json(manifest) | declared)
    shutil.copytree(data / "splits/blender", tmp_path / "work/data/demo/splits/pascal_blender")
    done = subprocess.run(
        [*command, "--source", "u2pl", "--csv", "audit.csv"], cwd=tmp_path / "work", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "pascal_blender" in done.stdout and "75.0" in done.stdout
    assert (tmp_path / "work/audit.csv").is_file()
    done = subprocess.run([*command, "--source", "cp"], cwd=tmp_path / "work", capture_output=True, text=True)
    assert done.returncode == 2 and "'cps'" in done.stderr
