"""Paths are spelled in one place."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
# In code, a file's name stands in quotes of its own; messages and docstrings may mention it.
NAME = re.compile(r'"(run\.json|history\.csv|evaluation\.json|manifest\.json|checksums\.sha256|labeled\.txt|val\.txt)"')
RECORD = ROOT / "u2pl/experiments/records.py"  # the keys of run.json's `files`


def test_no_other_file_spells_a_path() -> None:
    files = [path for path in (ROOT / "u2pl").rglob("*.py") if path not in (ROOT / "u2pl/folders.py", RECORD)]
    assert [str(path) for path in files if NAME.search(path.read_text())] == []
