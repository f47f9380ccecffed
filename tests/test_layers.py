"""Imports go one way, and in no circle."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "u2pl"
LAYERS = [
    {"addresses", "errors"},
    {"files", "folders"},
    {"experiments"},
    {"ranks", "data"},
    {"components", "models"},
    {"methods"},
    {"engine", "report"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
PATHS = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def module(path: Path) -> str:
    return ".".join(["u2pl", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


def imported(path: Path, top: bool = False) -> Iterator[str]:
    """The suite's modules that a file imports; `top`: as soon as it is imported itself."""
    tree = ast.parse(path.read_text())
    known = {module(other) for other in PATHS}
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("u2pl."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("u2pl"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else str(node.module)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    own = module(path).split(".")[1]
    for name in imported(path):
        other = name.split(".")[1]
        assert other == own or LEVEL[other] < LEVEL[own], f"{own} imports {name}"


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {module(path): set(imported(path, top=True)) - {module(path)} for path in PATHS}
    while graph:
        leaves = {name for name, needed in graph.items() if not needed & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: needed for name, needed in graph.items() if name not in leaves}


def test_methods_and_models_need_torch_alone() -> None:
    """Whoever takes them for work of their own installs no more."""
    code = "import sys; sys.modules |= dict.fromkeys(['pydantic', 'yaml', 'pandas']); import u2pl.methods, u2pl.models"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_state_knows_all_code_that_makes_numbers() -> None:
    """Every package that a training imports, but for what reads params, is part of the hash that a resume compares."""
    code = "import sys, u2pl.engine.train, u2pl.engine.checkpoints as c; print(*c.NUMERICS); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    known, loaded = (set(line.split()) for line in done.stdout.splitlines())
    packages = {name.split(".")[1] for name in loaded if name.startswith("u2pl.") and name.count(".") > 1}
    assert packages - {"experiments"} == known
