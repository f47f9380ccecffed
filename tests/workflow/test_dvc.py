"""DVC over the workflow: a small table reproduced, pushed to a folder, pulled into fresh clones, damaged, changed."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
RUNS = ["pascal_classic-4-suponly-seed0", "pascal_classic-4-u2pl-r_low=2-seed0"]
CELL = {"table": "small", "row": "U2PL", "protocol": "pascal_classic", "fraction": "1/8"}
FIGURES = {"fig1": {"kind": "classes", "caption": "Classes.", "cells": {"U2PL": CELL}}}
STAGES = [
    "specs",
    "fetch@pascal",
    "fetch@cityscapes",
    "weights",
    "prepare@pascal",
    "prepare@cityscapes",
    "splits",
    "train",
    "tables",
]


def environment(folder):
    """Commands beside this interpreter, a git identity, and DVC's own state kept out of the machine's."""
    identity = {
        f"GIT_{who}_{what}": "u2pl@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    paths = {"PATH": f"{BIN}:{os.environ['PATH']}", "DVC_SITE_CACHE_DIR": str(folder.parent / "site")}
    return os.environ | identity | paths | {"DVC_GLOBAL_CONFIG_DIR": str(folder.parent / "config")}


def run(folder, *command):
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=500, errors="replace"
    )
    return done.returncode, done.stdout + done.stderr


def ok(folder, *command):
    code, text = run(folder, *command)
    logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("logs/demo/**/*.log")) if code else ""
    assert code == 0, text + logs
    return text


def stages_run(text):
    return re.findall(r"^Running stage '(.+)'", text, re.M)


def trained(text):
    return re.findall(r"^    output: results/demo/runs/(.+?)/run\.json", text, re.M)


def content(folder, *parts):
    """The bytes of all files below, but for the records of a verification, which are of one machine alone."""
    root = folder.joinpath(*parts)
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".verified"]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def nothing_to_do(folder, *arguments):
    return "Nothing to be done" in ok(folder, "snakemake", "--profile", "demo", "-n", *arguments)


def damaged(folder):
    """What the line of docs/data.md finds in the cache."""
    line = re.search(r"^    (find \.dvc/cache.*)$", (ROOT / "docs/data.md").read_text(), re.M)[1]
    return run(folder, "bash", "-c", line)


@pytest.fixture(scope="module")
def home(tmp_path_factory, small_checkout):
    """A repository whose only table DVC has made from nothing, pushed to a folder."""
    folder = small_checkout(tmp_path_factory.mktemp("dvc") / "home", FIGURES, {"r_low": 2})
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore", "Makefile"):
        shutil.copy(ROOT / name, folder / name)
    ok(folder, "git", "init", "--quiet", "--initial-branch=main")
    ok(folder, "git", "add", "--all")
    ok(folder, "git", "commit", "--quiet", "--message", "a fresh clone")
    text = ok(folder, "dvc", "repro")
    assert stages_run(text) == STAGES and sorted(trained(text)) == RUNS
    ok(folder, "dvc", "remote", "add", "--local", "--default", "shelf", str(folder.parent / "shelf"))
    ok(folder, "git", "add", "--all")
    ok(folder, "git", "commit", "--quiet", "--message", "the demo")
    ok(folder, "dvc", "push")
    return folder


@pytest.fixture
def clone(home, tmp_path):
    """Everything that git has, and the remote."""
    folder = tmp_path / "clone"
    ok(home, "git", "clone", "--quiet", str(home), str(folder))
    ok(folder, "dvc", "remote", "add", "--local", "--default", "shelf", str(home.parent / "shelf"))
    ok(folder, "dvc", "remote", "modify", "--local", "shelf", "verify", "true")
    return folder


def test_git_has_the_lock_and_no_data(home):
    tracked = ok(home, "git", "ls-files").split()
    assert "dvc.lock" in tracked and not [
        name for name in tracked if name.startswith(("data/", "results/", "weights/"))
    ]
    assert ok(home, "git", "status", "--porcelain") == ""
    # archives as files, prepared folders as their manifest
    outputs = yaml.safe_load((home / "dvc.lock").read_text())["stages"]
    paths = [out["path"] for stage in outputs.values() for out in stage["outs"]]
    assert "data/demo/archives/benchmark.tgz" in paths and "data/demo/pascal/manifest.json" in paths
    outs = [out for name, stage in outputs.items() if name != "splits" for out in stage["outs"]]
    data = [out.get("nfiles", 1) for out in outs if out["path"].startswith("data/")]
    assert data and max(data) <= 2


def test_an_edited_figure_is_made_again(home):
    path = home / "params/figures.yaml"
    before = path.read_text()
    try:
        path.write_text(before.replace("Classes.", "Other classes."))
        assert list(yaml.safe_load(ok(home, "dvc", "status", "--json"))) == ["specs"]
        ok(home, "u2pl", "specs")
        assert set(yaml.safe_load(ok(home, "dvc", "status", "--json"))) == {"specs", "tables"}
    finally:
        path.write_text(before)
        ok(home, "u2pl", "specs")


def test_a_second_repro_does_nothing_and_one_after_snakemake_trains_nothing(home):
    assert stages_run(ok(home, "dvc", "repro")) == []
    assert nothing_to_do(home)
    lock = (home / "dvc.lock").read_bytes()
    try:
        (home / "dvc.lock").unlink()  # as if Snakemake alone had made everything
        text = ok(home, "dvc", "repro", "--single-item", "train", "tables")
        assert stages_run(text) == ["train", "tables"] and trained(text) == []
        assert text.count("Nothing to be done") == 2
    finally:
        (home / "dvc.lock").write_bytes(lock)


def test_everything_comes_back_from_the_remote_without_training(home, clone):
    ok(clone, "dvc", "pull")
    assert content(clone, "results/demo/runs") == content(home, "results/demo/runs")
    assert content(clone, "data/demo/archives") == content(home, "data/demo/archives")
    assert nothing_to_do(clone)
    tables = content(home, "results/demo/tables")
    assert content(clone, "results/demo/tables") == tables and "small.tex" in tables
    # What asks the networks about images that have not come along makes those of the archives.
    shutil.rmtree(clone / "results/demo/figures")
    ok(clone, "u2pl", "figure", "fig1")
    figures = content(home, "results/demo/figures")
    assert content(clone, "results/demo/figures").items() <= figures.items() and "fig1.pdf" in figures
    shutil.rmtree(clone / "results/demo/tables")
    (clone / "results/demo/cells.csv").unlink()
    assert trained(ok(clone, "snakemake", "--profile", "demo")) == []
    assert content(clone, "results/demo/tables") == tables
    assert (clone / "results/demo/cells.csv").read_bytes() == (home / "results/demo/cells.csv").read_bytes()


def test_results_are_enough_for_the_tables(clone):
    ok(clone, "dvc", "pull", "train", "tables")
    assert not (clone / "data").exists()
    assert nothing_to_do(clone)
    assert stages_run(ok(clone, "dvc", "repro", "--allow-missing")) == []
    (clone / "results/demo/tables/small.tex").unlink()
    text = ok(clone, "snakemake", "--profile", "demo", "small")
    assert trained(text) == [] and not (clone / "data").exists()


def test_one_cell_as_an_experiment(home, clone):
    """One number of one table's overrides: one training, from the pulled archives alone, linked to the cache."""
    ok(clone, "dvc", "config", "--local", "cache.type", "symlink")
    ok(clone, "dvc", "pull")
    assert (clone / "results/demo/cells.csv").is_symlink() and nothing_to_do(clone)
    before = content(clone, "results/demo/runs")
    key = "params/tables/small.yaml:rows.2.overrides.r_low=1"
    text = ok(clone, "dvc", "exp", "run", "--set-param", key)
    assert stages_run(text) == ["specs", "weights", "splits", "train", "tables"]
    assert trained(text) == [RUNS[1].replace("=2", "=1")]
    after = content(clone, "results/demo/runs")
    assert {name: after[name] for name in before} == before
    assert not (clone / "data/demo/upstream").exists()
    manifest = "data/demo/pascal/manifest.json"
    assert (clone / manifest).read_bytes() == (home / manifest).read_bytes()
    assert damaged(clone) == (0, ""), "nothing was written through a link"
    text = ok(clone, "dvc", "metrics", "diff", "--all", "HEAD")
    assert "small.U2PL.pascal_classic 1/8" in text and "small.SupOnly.pascal_classic 1/8" in text


def test_metrics_and_plots_show_the_cells_and_the_histories(home):
    cells = (home / "results/demo/cells.csv").read_text()
    means = re.findall(r",measured,[\d.]+,,,1,([\d.]+),", cells)
    shown = yaml.safe_load(ok(home, "dvc", "metrics", "show", "--json"))[""]["data"]["results/demo/metrics.json"][
        "data"
    ]
    expected = dict(zip(["SupOnly", "U2PL"], [{"pascal_classic 1/8": float(mean)} for mean in means], strict=True))
    assert shown == {"small": expected}
    plots = yaml.safe_load(ok(home, "dvc", "plots", "show", "--json").splitlines()[-1])["data"]
    (curves,), (bars,) = plots["learning curves"], plots["paper and ours"]
    drawn = {(row["run"], row["epoch"]): float(row["val_miou"]) for row in curves["content"]["data"]["values"]}
    assert {name for name, _ in drawn} == set(RUNS)
    for (name, epoch), miou in drawn.items():
        history = (home / f"results/demo/runs/{name}/history.csv").read_text().splitlines()
        column = history[0].split(",").index("val_miou")
        assert float(history[int(epoch)].split(",")[column]) == miou
    values = {(row["row"], row["field"]): row["dvc_inferred_y_value"] for row in bars["content"]["data"]["values"]}
    assert values["SupOnly", "paper"] == "54.92" and values["SupOnly", "mean"] == means[0]
    assert values["PseudoSeg", "paper"] == "65.5" and values["PseudoSeg", "mean"] == ""
    ok(home, "dvc", "plots", "show", "--out", "../plots")
    assert "paper and ours" in (home.parent / "plots/index.html").read_text()


def damage(path):
    """Flip a byte; size and read-only mode stay."""
    mode = path.stat().st_mode
    path.chmod(0o600)
    value = bytearray(path.read_bytes())
    value[len(value) // 2] ^= 1
    path.write_bytes(value)
    path.chmod(mode)


def stored(folder, file):
    """Where content-addressed storage has a file."""
    digest = hashlib.md5((folder / file).read_bytes()).hexdigest()
    return Path("files/md5") / digest[:2] / digest[2:]


def test_a_damaged_file_of_the_remote_is_refused_and_one_of_the_cache_is_found(home, clone):
    file = "results/demo/cells.csv"
    item = stored(home, file)
    shelf = home.parent / "shelf" / item
    damage(shelf)
    try:
        code, text = run(clone, "dvc", "pull")
        assert code != 0 and file in text and not (clone / file).exists()
        assert (clone / "results/demo/runs" / RUNS[0] / "run.json").exists(), "the rest is there"
    finally:
        damage(shelf)
    ok(clone, "dvc", "pull")
    assert (clone / file).read_bytes() == (home / file).read_bytes()
    # DVC trusts what is read-only in its cache; the line of the docs does not.
    assert damaged(clone) == (0, "")
    damage(clone / ".dvc/cache" / item)
    code, text = damaged(clone)
    assert code != 0 and [name for name in text.splitlines() if "FAILED" in name] == [f".dvc/cache/{item}: FAILED"]
    (clone / ".dvc/cache" / item).unlink()
    (clone / file).unlink()
    ok(clone, "dvc", "pull")
    assert (clone / file).read_bytes() == (home / file).read_bytes()


def test_a_read_only_cache_loses_nothing(clone):
    inside = "mount --bind .dvc/cache .dvc/cache && mount -o remount,bind,ro .dvc/cache"
    if run(clone, "unshare", "--mount", "true")[0] != 0:
        pytest.skip("may not mount here")
    ok(clone, "dvc", "pull", "train", "tables")
    if run(clone, "unshare", "--mount", "bash", "-c", inside)[0] != 0:
        pytest.skip("may not mount here")
    path = clone / "params/tables/small.yaml"
    path.write_text(path.read_text().replace("A small table", "Another caption"))
    ok(clone, "u2pl", "specs")
    command = ["dvc", "repro", "--allow-missing", "--single-item", "tables"]
    code, text = run(clone, "unshare", "--mount", "bash", "-c", f"{inside} && {' '.join(command)}")
    assert code != 0 and "Read-only file system" in text and "Traceback" not in text
    table = (clone / "results/demo/tables/small.md").read_text()
    assert "Another caption" in table
    assert stages_run(ok(clone, *command)) == ["tables"]
    assert (clone / "results/demo/tables/small.md").read_text() == table


def start(folder, log, *command):
    with log.open("w") as stream:
        return subprocess.Popen(
            command, cwd=folder, env=environment(folder), stdout=stream, stderr=stream, start_new_session=True
        )


def wait_for(process, condition):
    while not condition():
        assert process.poll() is None, "ended before it came to that"
        time.sleep(0.05)


def test_a_second_make_demo_in_the_folder_is_refused(home, clone, tmp_path):
    ok(clone, "dvc", "pull")
    (clone / ".venv").mkdir()
    (clone / ".venv/bin").symlink_to(BIN)
    make = ["make", "--old-file=.venv/.installed", "demo"]
    (clone / ".venv/.installed").touch()
    name = f"results/demo/runs/{RUNS[0]}"
    weights = (clone / name / "weights.pt").read_bytes()
    shutil.rmtree(clone / name)
    (clone / "results/demo/cells.csv").unlink()
    makefile = clone / "Makefile"
    makefile.write_text(makefile.read_text().replace("u2pl show table2", "u2pl show small"))  # the only one here
    first = start(clone, tmp_path / "first", *make)
    wait_for(first, lambda: "rule train:" in (tmp_path / "first").read_text())
    code, text = run(clone, *make)
    assert code != 0 and "another Snakemake at work on this scale" in text and "Traceback" not in text
    assert first.wait(timeout=300) == 0, (tmp_path / "first").read_text()
    assert (clone / name / "weights.pt").read_bytes() == weights
    assert (clone / "results/demo/cells.csv").exists()


def test_kill_9_during_table_writing(home, clone, tmp_path):
    ok(clone, "dvc", "pull", "train", "tables")
    made = [f"results/demo/tables/small.{ending}" for ending in ("csv", "md", "tex")] + ["results/demo/cells.csv"]
    whole = {name: (clone / name).read_bytes() for name in made}
    for name in made:
        (clone / name).unlink()
    process = start(clone, tmp_path / "log", "snakemake", "--profile", "demo")
    wait_for(process, lambda: (tmp_path / "log").read_text().count("localrule table:"))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not all((clone / name).exists() for name in made), "killed too late"
    for name in made:
        assert not (clone / name).exists() or (clone / name).read_bytes() == whole[name]
    # the same command, and nobody to unlock
    assert trained(ok(clone, "snakemake", "--profile", "demo")) == []
    assert {name: (clone / name).read_bytes() for name in made} == whole
