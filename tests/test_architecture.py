"""The house keeps its order: which room may import which, and how big things may grow."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "penchant"
FILES = sorted(SOURCE.rglob("*.py"))

BASE = {"types", "errors", "plugins"}
"""What every room may import; see docs/decisions/0002-base-tier.md."""
MAY_IMPORT: dict[str, set[str]] = {
    "types": {"errors"},
    "errors": set(),
    "plugins": {"errors"},
    **dict.fromkeys(("objectives", "weights", "grading", "pages", "compare", "miniature"), BASE),
    "data": BASE,
    "models": BASE,
    "engine": BASE | {"models", "data"},
    "reward": BASE | {"data", "models", "engine", "objectives"},
    "train": BASE | {"data", "models", "engine", "objectives", "weights", "reward"},
    "generate": BASE | {"data", "models"},
    "bridge": BASE | {"data", "generate", "grading"},
    "evaluate": BASE | {"data", "models", "engine", "generate", "reward", "grading"},
}
ENGINE_OF_DATA = {"penchant.data.pack"}
"""All that the engine may know of the data room."""
ROOMS_OF_COMMANDS = {"commands", "cli", "__main__"}
BUDGETS = {"file": 300, "function": 40, "parameters": 7, "objective": 80}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Full names of our modules that a file imports, at any depth of its code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name == "penchant" or name.startswith("penchant.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    room = room_of(path)
    for name in imports_of(path):
        parts = name.split(".")
        target = parts[1] if len(parts) > 1 else "__init__"
        if target == room or room in ROOMS_OF_COMMANDS or target == "__version__":
            continue
        if room == "__init__":
            assert target in ("commands", "errors"), f"{path.name} imports {name}"
        elif room == "recipe":
            assert parts[2:3] == ["config"] or target in BASE, f"recipe imports {name}"
        else:
            assert target in MAY_IMPORT[room], f"{room} imports {name}"
        if room == "engine" and target == "data":
            assert any(name.startswith(allowed) for allowed in ENGINE_OF_DATA), name


def functions_of(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring: a long explanation is no fault."""
    first = node.body[0]
    docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    explained = (first.end_lineno or 0) - first.lineno + 1 if docstring else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - explained


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_and_functions_keep_their_budgets(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    is_objective = room_of(path) == "objectives" and not path.name.startswith("_")
    budget = BUDGETS["objective"] if is_objective else BUDGETS["file"]
    if path.name == "__init__.py":
        budget = BUDGETS["file"]
    assert lines <= budget, f"{path.name}: {lines} lines, budget {budget}"
    for node in functions_of(path):
        size = body_lines(node)
        assert size <= BUDGETS["function"], f"{path.name}:{node.name}: {size} lines"


def test_no_drawers() -> None:
    drawers = {"utils", "util", "common", "misc", "helpers"}
    assert not [path for path in FILES if path.stem in drawers]


def test_every_module_says_what_it_is() -> None:
    silent = [
        path for path in FILES if len(ast.get_docstring(ast.parse(path.read_text())) or "") < 9
    ]
    assert not silent


def test_classes_of_ours_are_abstract_or_final() -> None:
    """No class of ours that can be used itself is a base of another one."""
    defined: dict[str, ast.ClassDef] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                defined[node.name] = node
    for node in defined.values():
        for base in node.bases:
            name = ast.unparse(base)
            if name in defined and not name.endswith("Error"):
                docstring = ast.get_docstring(defined[name]) or ""
                assert docstring.startswith("Abstract"), f"{node.name} inherits {name}"
