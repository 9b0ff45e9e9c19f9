"""What the README says is so: its commands run, its file tree is the file tree, its length."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from penchant import cli, objectives
from penchant.data import formats
from penchant.data.conversion import writable
from tests.commands.world import write_world

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SOURCE = ROOT / "src" / "penchant"
TRAINING = ["training.max_steps=1", "training.batch_size=4", "data.max_length=64"]
TINY = {"train": TRAINING, "sft": TRAINING, "reward": TRAINING, "generate": ["max_tokens=4"]}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line.split(" #")[0] for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("penchant")]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_its_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    targets = [line.split()[1] for line in lines if line.startswith("make ")]
    assert targets == ["demo", "test"]
    assert all(f"\n{target}: " in makefile for target in targets)


def test_its_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_world(tmp_path)
    (tmp_path / "MODEL").symlink_to(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    for name in ("helpful", "harmless"):
        (tmp_path / f"{name}.jsonl").write_text((tmp_path / "pairs.jsonl").read_text())
    assert len(commands()) == 9
    for _, command, *arguments in commands():
        result = CliRunner().invoke(cli.app, [command, *arguments, *TINY.get(command, [])])
        assert result.exit_code == 0, f"penchant {command}: {result.output}"
    for run in ("dpo", "rm", "best"):
        assert (tmp_path / "runs" / run / "summary.json").is_file()
    assert (tmp_path / "best.html").is_file()


def test_its_python_runs() -> None:
    (block,) = blocks("python")
    names = {name: torch.randn(3) for name in ("ref_chosen_P", "ref_rejected_P")}
    names |= {name: torch.randn(3, requires_grad=True) for name in ("chosen_P", "rejected_P")}
    exec(compile(block, "README.md", "exec"), names)
    assert names["chosen_P"].grad is not None


def test_its_table_lists_the_objectives() -> None:
    table = README.split("## Objectives")[1].split("## ")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, flags=re.MULTILINE)) == set(
        objectives.names()
    )


def test_its_rooms_are_the_rooms() -> None:
    rooms = README.split("## Where things are")[1].split("```")[1]
    assert {path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()} == set(
        re.findall(r"(\w+)/", rooms)
    )


def test_the_list_of_files_names_every_file() -> None:
    tree = (ROOT / "docs" / "files.md").read_text().split("```")[1]
    words = set(re.findall(r"[\w./]+", tree))
    missing = [
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if path.name != "__init__.py" and not words & {path.stem, path.name}
    ]
    assert not missing


def test_the_page_of_formats_lists_what_is_read_and_written() -> None:
    page = (ROOT / "docs" / "formats.md").read_text()
    assert set(re.findall(r"^\| `([\w-]+)` \|", page, flags=re.MULTILINE)) == set(formats.known())
    written = page.split("penchant.data.write")[1].split(", write ")[1].split("\n\n")[0]
    assert set(re.findall(r"`([\w-]+)`", written)) == set(writable())


def test_it_names_every_file_of_tests_and_bench_in_its_folder() -> None:
    page = (ROOT / "docs" / "files.md").read_text()
    folders = re.findall(r"^((?:tests|bench)/(?:\w+/)?) +(.*(?:\n +.*)*)", page, flags=re.MULTILINE)
    named = {folder: set(re.findall(r"\w+", text)) for folder, text in folders}
    missing = [
        str(path.relative_to(ROOT))
        for top in ("tests", "bench")
        for path in (ROOT / top).rglob("*.py")
        if path.name != "__init__.py"
        and path.stem.removeprefix("test_")
        not in named.get(f"{path.parent.relative_to(ROOT).as_posix()}/", ())
    ]
    assert not missing


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "tour.md"]
PAGES += sorted((ROOT / "docs" / "decisions").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_are_spoken_of_are_there(page: Path) -> None:
    """But for those of an objective that is still to be written, and one that became a package."""
    folders = (ROOT / name for name in ("src", "tests", "bench", "docs"))
    there = [path.as_posix() for folder in folders for path in folder.rglob("*.py")]
    for named in set(re.findall(r"`([\w/]+\.py)`", page.read_text())):
        if "my_loss" not in named and named != "recipe.py":
            assert any(path.endswith(f"/{named}") for path in there), named
