"""Scripts under tests/ that docs, README or a script's own text call can be called that way."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [*ROOT.glob("tests/benchmarks/*.py"), ROOT / "tests/scene.py"]
TEXTS = {path: path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
TEXTS |= {path: ast.get_docstring(ast.parse(path.read_text())) or "" for path in SCRIPTS}
COMMANDS = sorted({c for text in TEXTS.values() for c in re.findall(r"python (?:-m tests|tests/)\S+", text)})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_script_is_called_as_a_module(command: str) -> None:
    """Called by its path, a script does not find what it imports from `tests`."""
    name = command.removeprefix("python -m ")
    assert "/" not in name, f"`{command}`: expected `python -m` and a module"
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None, f"no module {name}"
    assert '__name__ == "__main__"' in Path(spec.origin).read_text(), f"{name} is no script"
