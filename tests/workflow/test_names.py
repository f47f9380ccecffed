"""Names that a shell, a format string or a wildcard could take for something else."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# Snakemake with a suite as the schema would not let it pass: the quotes of the rules are the second wall.
HOSTILE = """
import sys
import u2pl.experiments as experiments
from snakemake.cli import main
load = experiments.load_suite
def hostile(*arguments):
    suite = load(*arguments)
    archive = next(iter(suite.weights.values()))
    return suite.model_copy(update={"weights": {sys.argv[1]: archive.model_copy(update={"file": sys.argv[1]})}})
experiments.load_suite = hostile
main(["--cores", "1", "--nolock", "--", "weights/" + sys.argv[1] + ".json"])
"""


@pytest.mark.parametrize("name", ["$(touch pwned).pth", "a 'b' \"c\" `touch pwned`; touch pwned #.pth"])
def test_no_shell_runs_the_name_of_a_file(tmp_path: Path, small_checkout, name: str) -> None:
    folder = small_checkout(tmp_path / "checkout")
    command = [sys.executable, "-c", HOSTILE, name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert not (folder / "pwned").exists()
    # The rule has run, and the verb has got the whole name: the params on the disk have none like it.
    assert (
        done.returncode != 0
        and f"archive of weights: found {name!r}" in (folder / f"logs/fetch_weights_{name}.log").read_text()
    )


def test_a_checkout_and_an_environment_in_a_folder_of_any_name(tmp_path: Path, small_checkout) -> None:
    folder = small_checkout(tmp_path / "a{b}c d's {scale}")
    (folder / "environment").symlink_to(BIN.parent)
    command = [str(folder / "environment/bin/python"), "-m", "snakemake", "--profile", "demo"]
    done = subprocess.run([*command, "-n"], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    archive = "data/demo/upstream/benchmark.tgz"
    done = subprocess.run([*command, "--", archive], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / archive).stat().st_size > 0
