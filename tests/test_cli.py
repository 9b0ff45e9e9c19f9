"""The command line: help of every command, dry runs, errors of one line, nothing heavy loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from penchant import __version__, cli, commands
from penchant.commands import _help
from penchant.errors import NonFiniteLossError, PenchantError, RecipeError
from penchant.recipe import keys_of, load_recipe, recipe_class, resolve

HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets", "numpy", "plotly", "scipy"}
LEAST = ["model=m", "data=d.jsonl", "output_dir=o"]


def penchant(monkeypatch: Any, *arguments: str) -> int:
    """The exit code of a command line, run in this process."""
    monkeypatch.setattr(sys, "argv", ["penchant", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


@pytest.fixture
def no_work(monkeypatch: Any) -> list[tuple[str, Any, bool]]:
    """Commands that only note how they were called: what is tried here is the way to them."""
    calls: list[tuple[str, Any, bool]] = []

    def start(command: str, recipe: Any, *, dry_run: bool = False) -> dict[str, Any]:
        calls.append((command, recipe, dry_run))
        return {"rows": 3}

    monkeypatch.setattr(commands, "start", start)
    return calls


def test_the_commands_are_the_files() -> None:
    assert {"train", "sft", "merge", "init", "demo"} <= set(commands.names())
    for command in commands.names():
        assert recipe_class(command) is not None, command
        assert commands.help_line(command).endswith("."), command


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys; from penchant import cli\n"
        f"sys.argv = ['penchant', *{arguments!r}]\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print('loaded', sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_version(monkeypatch: Any, capsys: Any) -> None:
    assert penchant(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_root_help_lists_the_commands() -> None:
    shown = CliRunner().invoke(cli.app, ["--help"]).output
    for command in commands.names():
        assert f" {command} " in shown


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", commands.names())
def test_help_lists_every_key_with_default_and_meaning(
    command: str, width: int, capsys: Any
) -> None:
    kind = recipe_class(command)
    _help.print_help(command, "What it does.", kind, Console(width=width, highlight=False))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    shown = " ".join(" ".join(lines).split())
    for path, key in keys_of(kind).items():
        if not path.startswith("data.eval."):
            rows = [line for line in lines if line.split(" ")[0] == path]
            assert len(rows) == 1, path
            assert key.meaning.split()[0] in rows[0], path
            assert key.default.split(" ")[0] in shown
    assert "..." not in "".join(line.split("  ")[0] for line in lines if line.startswith("data"))


def test_help_of_train_names_the_objectives(monkeypatch: Any, capsys: Any) -> None:
    assert penchant(monkeypatch, "train", "--help") == 0
    shown = capsys.readouterr().out
    listed = next(line for line in shown.splitlines() if line.startswith("Objectives:"))
    assert {"dpo,", "mmpo,", "dpo-gamma,", "slic-dpo,", "dpo-bmc"} <= set(listed.split())


def test_dry_run_prints_the_resolved_recipe_and_the_plan(
    monkeypatch: Any, capsys: Any, no_work: list[Any], tmp_path: Path
) -> None:
    arguments = [*LEAST, "--training.seed", "7", "--model.adapter.r=4"]
    assert penchant(monkeypatch, "train", *arguments, "--dry-run") == 0
    shown = capsys.readouterr().out
    expected = resolve(load_recipe("train", None, arguments))
    assert no_work == [("train", expected, True)]
    assert shown.splitlines()[-1] == "# rows: 3"
    (tmp_path / "shown.yaml").write_text(shown)
    assert load_recipe("train", tmp_path / "shown.yaml") == expected


def test_arguments_reach_the_command_in_order(
    monkeypatch: Any, no_work: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: m\ndata: d.jsonl\noutput_dir: o\n")
    arguments = [str(path), "--max_steps", "-1", "training.seed=1", "--training.seed=2", "--bf16"]
    assert penchant(monkeypatch, "train", *arguments) == 0
    (command, recipe, dry_run) = no_work[0]
    assert (command, dry_run) == ("train", False)
    assert (recipe.training.seed, recipe.training.max_steps) == (2, None)
    assert recipe.model.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["trian"], "error: unknown command trian; did you mean train?"),
        (["qqqq"], "error: unknown command qqqq; there are: "),
        (["train", *LEAST, "training.sed=1"], "did you mean training.seed?"),
        (["train", *LEAST, "training.batch_size=0"], "given 0, allowed: integer >= 1"),
        (["train", "nowhere.yaml"], "error: no recipe file nowhere.yaml"),
        (["train"], "error: model is missing"),
        (["train", *LEAST, "-x"], "given '-x'"),
        (["init", "D"], "error: tokenizer is missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    monkeypatch: Any, capsys: Any, tmp_path: Path, arguments: list[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert penchant(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert line in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (NonFiniteLossError("loss is nan\nat row 3"), 1, "error: loss is nan at row 3\n"),
        (RecipeError("no"), 2, "error: no\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_exit_codes(
    monkeypatch: Any, capsys: Any, raised: BaseException, code: int, line: str
) -> None:
    def start(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(commands, "start", start)
    assert penchant(monkeypatch, "train", *LEAST) == code
    assert capsys.readouterr().err == line


def test_our_own_faults_are_not_hidden(monkeypatch: Any) -> None:
    def start(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(commands, "start", start)
    monkeypatch.setattr(sys, "argv", ["penchant", "train", *LEAST])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_schema_is_json(monkeypatch: Any, capsys: Any) -> None:
    assert penchant(monkeypatch, "train", "--schema") == 0
    assert "training" in json.loads(capsys.readouterr().out)["properties"]


def test_the_public_run_refuses_as_the_command_line_does() -> None:
    import penchant

    with pytest.raises(PenchantError, match="unknown command trian; did you mean train"):
        penchant.run("trian")
    with pytest.raises(RecipeError, match=r"training\.seed: given 'x'"):
        penchant.run(
            "train", {"model": "m", "data": "d", "output_dir": "o"}, {"training.seed": "x"}
        )


def test_the_public_run_runs_a_command(tmp_path: Path) -> None:
    adapter = {"adapter": str(tmp_path / "a"), "output_dir": str(tmp_path / "o")}
    plan = commands.run("merge", adapter, {"base": "elsewhere"}, dry_run=True)
    assert plan["base"] == "elsewhere"
    assert not (tmp_path / "o").exists()
