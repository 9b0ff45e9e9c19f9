"""The commands: a file per command, which wires rooms together; its docstring is its help.

A command's module has `run(recipe, dry_run=False) -> dict`: what summary.json holds or, for a
dry run, the plan. Its recipe is `<Name>Recipe`. Heavy imports belong inside `run`.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penchant.errors import RecipeError
from penchant.recipe import Recipe, load_recipe, resolve
from penchant.recipe.keys import nearest
from penchant.recipe.load import Overrides, Source

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Every command, by its file's name."""
    files = sorted(_FOLDER.glob("[!_]*.py"))
    return [file.stem.replace("_", "-") for file in files]


def help_line(command: str) -> str:
    """First line of a command's docstring, read without importing it."""
    path = _FOLDER / f"{command.replace('-', '_')}.py"
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def check_name(command: str) -> None:
    """Raises RecipeError, with the nearest command, where there is none of this name."""
    if command in names():
        return
    found = nearest(command, names())
    hint = f"did you mean {found}?" if found else f"there are: {', '.join(names())}"
    raise RecipeError(f"unknown command {command}; {hint}")


def prepare(command: str, recipe: Source = None, overrides: Overrides = None) -> Recipe:
    """The resolved recipe of a command.

    Raises RecipeError for an unknown command or a recipe that cannot be run.
    """
    check_name(command)
    return resolve(load_recipe(command, recipe, overrides))


def start(command: str, recipe: Recipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Runs a command with its resolved recipe; a dry run returns the plan and writes nothing."""
    module = importlib.import_module(f"{__name__}.{command.replace('-', '_')}")
    result: Mapping[str, Any] = module.run(recipe, dry_run=dry_run)
    return dict(result)


def run(
    command: str,
    recipe: Source = None,
    overrides: Overrides = None,
    *,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Runs a command; the public `penchant.run`.

    Args
        recipe: path of a YAML file, a mapping, or None.
        overrides: mapping with dotted keys, or a list of `key=value` texts; the last one wins.
        dry_run: return the plan; train and write nothing, but for the cache of tokens.
    Returns what the command's summary.json holds.
    Raises a PenchantError where it cannot be run.
    """
    return start(command, prepare(command, recipe, overrides), dry_run=dry_run)
