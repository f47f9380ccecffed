"""Imports go one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "u2pl"
GROUND = {"addresses", "errors", "files", "folders"}
LAYERS = [
    GROUND,
    {"experiments"},
    {"data"},
    {"components", "models"},
    {"methods"},
    {"report", "engine"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/**/*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    own = path.relative_to(ROOT).parts[0]
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "u2pl" and len(parts) > 1:
                assert parts[1] == own or LEVEL[parts[1]] < LEVEL[own], f"{own} imports {name}"
