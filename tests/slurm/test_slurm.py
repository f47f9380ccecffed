"""The slurm profile on a real SLURM: from fetch to LaTeX, and through everything that stops a training in the middle.

The trainings compute on the CPU; the GPUs they ask SLURM for are fake.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[2]
SNAKEMAKE = str(Path(sys.executable).parent / "snakemake")
SUPONLY, U2PL = (f"pascal_classic-4-{method}-seed0" for method in ("suponly", "u2pl"))
CELL = {"table": "small", "row": "U2PL", "protocol": "pascal_classic", "fraction": "1/8"}
FIGURES = {"fig1": {"kind": "classes", "caption": "Classes.", "cells": {"U2PL": CELL}}}
EPOCHS = 16


def profile(folder: Path, **changes) -> None:
    """The shipped profile with what this site changes: partitions, one fake GPU a run, states asked for more often."""
    site = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text())
    site["default-resources"]["slurm_partition"] = "low"
    for rule in ("train", "predicted_figure"):
        site["set-resources"][rule] |= {"slurm_partition": "low", "gpu": 1}
    # Without the early warning: the limit itself has to be survived.
    site["set-resources"]["train"].pop("slurm_extra")
    own = {
        "config": ["scale=demo", "device=cpu"],
        "slurm-status-command": "squeue",
        "slurm-init-seconds-before-status-checks": 3,
    }
    path = folder / "workflow/profiles/slurm/config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(site | own | changes))


def snakemake(folder: Path, *arguments: str, wait: bool = True):
    """`snakemake --profile slurm` in a process group of its own; its output goes into a file."""
    with (folder / "snakemake.out").open("ab") as log:
        process = subprocess.Popen(
            [SNAKEMAKE, "--profile", "slurm", *arguments],
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # A shell that starts the tests in the background makes them, and all they start, deaf to Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    if not wait:
        return process
    try:
        assert process.wait(600) == 0, output(folder)
    finally:
        process.kill()
    return process


def output(folder: Path) -> str:
    logs = [folder / "snakemake.out", *folder.glob("logs/demo/train/*.log")]
    return "\n".join(f"--- {path}\n{path.read_text()[-4000:]}" for path in logs)


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory, small_checkout):
    """A checkout whose only table has been made on the cluster."""
    folder = small_checkout(tmp_path_factory.mktemp("checkout"), FIGURES)
    profile(folder)
    snakemake(folder)
    return folder


@pytest.fixture
def longer(finished, tmp_path):
    """That checkout before the training of longer runs, whose state is written after every step."""
    folder = tmp_path / "checkout"
    shutil.copytree(finished, folder, symlinks=True)
    for name in ("results", "logs"):
        shutil.rmtree(folder / name)
    change_recipe(folder, epochs=EPOCHS, validate_every=1, save_every_minutes=0)
    return folder


def change_recipe(folder: Path, **changes) -> None:
    path = folder / "params/scales/demo.yaml"
    scale = yaml.safe_load(path.read_text())
    scale["recipes"]["pascal"] |= changes
    path.write_text(yaml.safe_dump(scale))


@pytest.fixture(scope="module")
def undisturbed(finished, tmp_path_factory):
    """weights.pt of the longer U2PL run, trained here and in one go."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for name in ("params", "data"):
        shutil.copytree(finished / name, folder / name)
    change_recipe(folder, epochs=EPOCHS, validate_every=1)
    done = subprocess.run([sys.executable, "-m", "u2pl", "train", U2PL], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return weights(folder)


def weights(folder: Path) -> bytes:
    return (folder / "results/demo/runs" / U2PL / "weights.pt").read_bytes()


def log(folder: Path) -> str:
    """The training's output since it last started or resumed: a resumed job begins a new log."""
    path = folder / "logs/demo/train" / f"{U2PL}.log"
    return path.read_text() if path.exists() else ""


def epochs(text: str) -> list[int]:
    """The epochs that a log tells of."""
    return [int(epoch) for epoch in re.findall(rf" epoch (\d+)/{EPOCHS}:", text)]


def test_from_fetch_to_latex(finished, cluster):
    assert "synthetic" in (finished / "results/demo/tables/small.tex").read_text()
    cells = pd.read_csv(finished / "results/demo/cells.csv")
    assert list(cells["source"]) == ["measured", "quoted", "measured"] and cells["mean"].count() == 2
    trained = cluster.jobs("rule_train")
    assert {job["Comment"].removeprefix("rule_train_wildcards_") for job in trained} == {SUPONLY, U2PL}
    for job in trained:
        assert job["TresPerJob"] == "gres:gpu:1" and job["Partition"] == "low" and job["Requeue"] == "1"
    (figure,) = cluster.jobs("rule_predicted_figure")
    assert figure["TresPerJob"] == "gres:gpu:1" and (finished / "results/demo/figures/fig1.png").stat().st_size
    # Downloads never left the login node.
    assert not cluster.jobs("rule_fetch") and (finished / "logs/demo/fetch_pascal_voc.log").exists()


def hold(cluster, folder: Path, before: int) -> str:
    """Stop the training in mid-step after one epoch more than `before`; returns its log.

    So no machine is too fast for what happens next; SLURM wakes a process that it ends.
    """
    cluster.wait_for(lambda: epochs(log(folder))[-1:] > [before], f"an epoch after {before}", lambda: output(folder))
    cluster.slurm("scancel", "--signal=STOP", cluster.jobs("rule_train_wildcards_" + U2PL)[-1]["JobId"])
    return log(folder)


def test_preemption_node_failure_and_time_limit(cluster, longer, undisturbed):
    """SLURM starts the same job again after the first two, Snakemake submits another one after the third."""
    site = yaml.safe_load((longer / "workflow/profiles/slurm/config.yaml").read_text())
    site["set-resources"]["train"]["runtime"] = "20 * attempt"
    profile(longer, **{"set-resources": site["set-resources"]})
    process = snakemake(longer, f"results/demo/runs/{U2PL}/evaluation.json", wait=False)

    def went_on(held: str) -> int:
        """The last epoch of the log `held`, once another log tells of one."""
        text = ""

        def told() -> bool:
            nonlocal text
            text = log(longer)
            return not text.startswith(held) and bool(epochs(text))

        cluster.wait_for(told, "the training to resume", lambda: output(longer))
        seen = epochs(held)[-1]
        assert epochs(text)[0] >= seen  # killed between the report of an epoch and its state, it comes again
        return seen

    held = hold(cluster, longer, 1)
    first = cluster.jobs("rule_train")[-1]["JobId"]
    urgent = ["--partition=high", "--gpus=4", "--time=1", "--output=/dev/null", "--wrap=true"]
    cluster.slurm("sbatch", *urgent)
    seen = went_on(held)

    held = hold(cluster, longer, seen)
    cluster.fail_node()
    cluster.wait_for(lambda: cluster.slurm("sinfo", "-h", "-p", "low", "-o", "%T").startswith("down"), "the node's end")
    cluster.start_node()
    seen = went_on(held)

    held = hold(cluster, longer, seen)
    # Only now, since a slow machine may need more than a minute to get here.
    cluster.slurm("scontrol", "update", f"JobId={first}", "TimeLimit=1")
    cluster.wait_for(lambda: cluster.jobs("rule_train")[-1]["JobId"] != first, "another job")
    try:
        assert process.wait(400) == 0, output(longer)
    finally:
        process.kill()
    jobs = [job for job in cluster.jobs("rule_train_wildcards_" + U2PL) if int(job["JobId"]) >= int(first)]
    states = [(job["JobState"], job["Restarts"], job["TimeLimit"]) for job in jobs]
    assert states == [("TIMEOUT", "2", "00:01:00"), ("COMPLETED", "0", "00:40:00")]
    assert epochs(log(longer))[0] >= epochs(held)[-1]
    assert weights(longer) == undisturbed


def test_ctrl_c_leaves_no_job(cluster, longer):
    """One job runs and the other one waits for its GPUs."""
    resources = yaml.safe_load((longer / "workflow/profiles/slurm/config.yaml").read_text())["set-resources"]
    profile(longer, **{"set-resources": {"train": resources["train"] | {"gpu": 4}}})
    process = snakemake(longer, wait=False)
    states = ["squeue", "-h", "-o", "%T"]
    cluster.wait_for(lambda: set(cluster.slurm(*states).split()) == {"RUNNING", "PENDING"}, "both jobs")
    process.send_signal(signal.SIGINT)
    assert process.wait(120) != 0
    cluster.wait_for(lambda: not cluster.slurm("squeue", "-h"), "an empty queue", seconds=60)
    assert not (longer / "results/demo/runs" / U2PL / "run.json").exists()


def test_two_gpus_are_two_ranks(cluster, finished, tmp_path):
    folder = tmp_path / "checkout"
    shutil.copytree(finished, folder, symlinks=True)
    shutil.rmtree(folder / "results")
    change_recipe(folder, gpus=2)
    profile(folder, config=["scale=demo", "device=cpu"], **{"set-resources": {"train": {"slurm_partition": "low"}}})
    snakemake(folder, f"results/demo/runs/{U2PL}/evaluation.json")
    assert cluster.jobs("rule_train")[-1]["TresPerJob"] == "gres:gpu:2"
    run = json.loads((folder / "results/demo/runs" / U2PL / "run.json").read_text())
    assert run["provenance"]["world_size"] == 2


def test_a_hundred_short_jobs(cluster, tmp_path, capsys):
    """Grouped as the profile groups splits: one SLURM job for 25 of them."""
    rule = 'rule split:\n    output: "{protocol}/{source}/{n}"\n    shell: "touch {output}"\n'
    (tmp_path / "Snakefile").write_text(
        'rule all:\n    localrule: True\n    input: expand("a/drawn/{n}", n=range(100))\n\n' + rule
    )
    profile(tmp_path, config=[])
    (tmp_path / "slurm").symlink_to("workflow/profiles/slurm")
    before = len(cluster.jobs())
    started = time.monotonic()
    snakemake(tmp_path)
    seconds = time.monotonic() - started
    assert len(list((tmp_path / "a/drawn").iterdir())) == 100
    assert len(cluster.jobs()) - before == 4
    with capsys.disabled():
        print(f"\n100 short jobs in 4 SLURM jobs: {seconds / 100:.2f} s a job")
