"""The DAG as Snakemake plans it, without running a job."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from u2pl.experiments import load_suite

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SNAKEMAKE = str(Path(sys.executable).parent / "snakemake")


def snakemake(cwd, *arguments):
    return subprocess.run([SNAKEMAKE, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture
def checkout(tmp_path):
    for name in ("params", "workflow"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("Snakefile", "demo", "slurm"):
        shutil.copy(ROOT / name, tmp_path / name, follow_symlinks=False)
    return tmp_path


def planned(checkout, *arguments):
    """Jobs a rule, as the summary of a dry run gives them."""
    done = snakemake(checkout, "-n", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.split("Job stats:")[1].split("\n\n")[0].splitlines()[3:]
    return {line.split()[0]: int(line.split()[1]) for line in lines if line.strip()}


def test_demo_and_paper_plans(checkout):
    runs = len(load_suite("demo", ROOT).runs)
    assert planned(checkout)["train"] == runs
    assert planned(checkout, "--profile", "demo")["train"] == runs
    paper = planned(checkout, "--config", "scale=paper")
    suite = load_suite("paper", ROOT)
    assert (paper["train"], paper["table"]) == (len(suite.runs), len(suite.tables))
    assert (paper["figure"] + paper["predicted_figure"], paper["page"]) == (len(suite.figures), 1)
    # the authors' lists of the three protocols, and of Table D one of CPS's and one drawn with each of three seeds
    assert paper["split"] == 5 + 4 + 4 + 1 + 3


def test_on_synthetic_data_a_mirror_is_drawn_for_the_rows_that_ask_for_published_lists(checkout):
    """Table D asks for those of CPS; no preset does, so that those of the authors need a row of their own."""

    def mirrors():
        return {rule for rule in planned(checkout) if rule.startswith("synthesize_lists")}

    assert mirrors() == {"synthesize_lists_cps_pascal_blender"}
    path = checkout / "params/tables/table3.yaml"
    table = yaml.safe_load(path.read_text())
    row = {"title": "authors", "method": "u2pl", "overrides": {"split_source": "u2pl"}, "paper": [None] * 4}
    path.write_text(yaml.safe_dump(table | {"rows": [*table["rows"], row]}))
    assert mirrors() == {"synthesize_lists_cps_pascal_blender", "synthesize_lists_u2pl_cityscapes"}


def test_one_table_and_one_run(checkout):
    jobs = planned(checkout, "--profile", "demo", "table5")
    assert (jobs["train"], jobs["table"]) == (10, 1)
    jobs = planned(checkout, "results/demo/runs/pascal_classic-2-suponly-seed0/evaluation.json")
    assert jobs["train"] == 1


def test_figures_alone_train_only_what_they_show(checkout):
    suite = load_suite("demo", ROOT)
    jobs = planned(checkout, "--profile", "demo", "figures")
    assert (jobs["figure"] + jobs["predicted_figure"], jobs["train"]) == (len(suite.figures), len(suite.runs))
    assert planned(checkout, "--profile", "demo", "results/demo/figures/fig4.pdf")["train"] == 3


def test_figures_that_ask_a_network_ask_for_a_gpu(checkout):
    targets = [f"results/paper/figures/{name}.pdf" for name in ("fig1", "comparison_table1")]
    done = snakemake(checkout, "-n", "--config", "scale=paper", "--", *targets)
    jobs = [job for job in (done.stdout + done.stderr).split("[") if "figure:" in job]
    assert {("fig1" in job, "gpu=1" in job) for job in jobs} == {(True, True), (False, False)}


def test_a_mistake_in_params_stops_the_plan(checkout):
    path = checkout / "params/recipes.yaml"
    path.write_text(path.read_text().replace("momentum", "momentun").replace("epochs: 80", "epoch: 80"))
    done = snakemake(checkout, "-n")
    assert done.returncode != 0
    assert "pascal.epoch" in done.stdout + done.stderr


def test_unknown_config_key_is_refused(checkout):
    assert snakemake(checkout, "-n", "--config", "scal=demo").returncode != 0


def test_lint_asks_for_nothing_but_conda():
    done = snakemake(ROOT, "--lint")
    text = done.stdout + done.stderr
    titles = {line.strip("* :") for line in text.splitlines() if line.lstrip().startswith("* ")}
    assert "Lints for rule" in text
    # The environment is requirements.lock, installed by make; Snakemake knows conda and containers only.
    assert titles == {"Specify a conda environment or container for each rule."}
