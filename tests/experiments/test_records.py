"""The committed records of the scale mini, which earlier versions wrote, are read and written to the byte."""

from pathlib import Path

import pytest
from made import record

from u2pl.errors import UserError
from u2pl.experiments.records import RunEvaluation, RunRecord, read, write
from u2pl.files import write_json
from u2pl.folders import Results

ROOT = Path(__file__).parents[2]


def test_committed_records_keep_their_bytes(tmp_path: Path) -> None:
    runs = [path.parent.name for path in Results(ROOT / "results/mini").records()]
    assert len(runs) == 70
    for run in map(Results(ROOT / "results/mini").run, runs):
        for path, model in ((run.record, RunRecord), (run.evaluation, RunEvaluation)):
            write(tmp_path / "again.json", read(model, path))
            assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_an_unknown_key_is_named_with_the_nearest(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", record("run") | {"best_epohc": 3})
    with pytest.raises(UserError, match=r"run.json: best_epohc: found an unknown key, expected 'best_epoch'"):
        read(RunRecord, tmp_path / "run.json")
