"""Fetching under Snakemake, which deletes the outputs of what it runs."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FILE = "data/own/archives/gtFine_trainvaltest.zip"
TARGET = f"{FILE}.json"


@pytest.fixture
def checkout(tmp_path):
    for name in ("params", "workflow"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "Snakefile", tmp_path)
    return tmp_path


def snakemake(checkout, *arguments, **archive):
    """Make the manifest of the Cityscapes labels, at a scale with the given entries for their archive."""
    archives = {"labels": {"url": "", "md5": None} | archive}
    scale = {"title": "t", "synthetic": False, "seeds": [0], "datasets": {"cityscapes": {"archives": archives}}}
    (checkout / "params/scales/own.yaml").write_text(yaml.safe_dump(scale))
    command = [str(Path(sys.executable).parent / "snakemake"), "--cores", "1", "--config", "scale=own", "--nolock"]
    done = subprocess.run(
        [*command, *arguments, "--", TARGET], cwd=checkout, capture_output=True, text=True, timeout=300
    )
    return done, (checkout / "logs/own/fetch_cityscapes_labels.log")


def test_a_file_put_there_by_hand_survives(checkout):
    content = b"from the user's disk"
    md5 = hashlib.md5(content).hexdigest()
    done, log = snakemake(checkout)
    assert done.returncode != 0
    assert f"put by hand at {FILE}" in log.read_text()
    (checkout / FILE).parent.mkdir(parents=True, exist_ok=True)  # Snakemake removes an empty one
    (checkout / FILE).write_bytes(content)
    done, log = snakemake(checkout, md5="0" * 32)
    assert done.returncode != 0
    assert f"{FILE}: found md5 {md5}, expected {'0' * 32}" in log.read_text()
    assert (checkout / FILE).read_bytes() == content, "a failed rule leaves it alone"
    done, log = snakemake(checkout, md5=md5)
    assert done.returncode == 0, done.stderr + log.read_text()
    manifest = (checkout / TARGET).read_bytes()
    mirrors = ["https://elsewhere.invalid/a"]
    done, _ = snakemake(checkout, md5=md5, url="https://nowhere.invalid/a", mirrors=mirrors)
    assert "Nothing to be done" in done.stdout + done.stderr, "another address is no other file"
    done, _ = snakemake(checkout, "--forcerun", "fetch_cityscapes_labels", md5=md5)
    assert done.returncode == 0
    assert (checkout / FILE).read_bytes() == content, "nor does a rule that runs again delete it"
    assert (checkout / TARGET).read_bytes() == manifest
