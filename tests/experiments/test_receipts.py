"""A receipt makes a result current only if it is one, and has the hashes of today's files."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from u2pl.experiments.specs import Job, is_current

INPUT = b"a small input"
SHA256 = hashlib.sha256(INPUT).hexdigest()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "input").write_bytes(INPUT)
    files = {name: str(tmp_path / name) for name in ("input", "spec", "made")}
    return Job("table", "a", {"a": 1}, [files["input"]], [], files["spec"], files["made"])


def current(job: Job, **changes: Any) -> bool:
    receipt = {"spec_sha256": job.sha256, "inputs": {job.inputs[0]: SHA256}, "above": {}} | changes
    Path(job.receipt).write_text(json.dumps(receipt))
    return is_current(job, {})


def test_todays_hashes_are_current(job: Job) -> None:
    assert current(job)
    Path(job.inputs[0]).unlink()
    assert current(job), "an input that was not pulled is not judged"
    Path(job.inputs[0]).write_bytes(INPUT + b"!")
    assert not current(job)


@pytest.mark.parametrize("inputs", [{}, [], 3, None, "input", {"another": SHA256}])
def test_other_inputs_are_not(job: Job, inputs: Any) -> None:
    assert not current(job, inputs=inputs)
    assert not current(job, inputs=job.inputs)


@pytest.mark.parametrize("spec", [None, 1, "", "0" * 64])
def test_another_specification_is_not(job: Job, spec: Any) -> None:
    assert not current(job, spec_sha256=spec)


def test_no_flipped_bit_makes_a_stale_result_current(job: Job) -> None:
    assert not current(job, spec_sha256="0" * 64)
    content = Path(job.receipt).read_bytes()
    for place in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        Path(job.receipt).write_bytes(flipped)
        assert not is_current(job, {})
