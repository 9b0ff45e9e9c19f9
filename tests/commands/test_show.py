"""What the terminal shows at the end: read as a newcomer reads it, and typed as it says."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from penchant import cli
from penchant.commands import _show
from penchant.recipe import load_recipe, resolve
from tests.commands.world import pair, write_rows, write_world

SHORT = "data.max_length=64 training.batch_size=8 training.max_steps=1 training.device=cpu"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: Any) -> Path:
    write_world(tmp_path, num_rows=8)
    row = pair(1)
    write_rows(tmp_path / "mixed.jsonl", [*map(pair, range(8)), row | {"rejected": row["chosen"]}])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(line: str, monkeypatch: Any, capfd: Any) -> list[str]:
    """The closing block of a command line, which must succeed."""
    capfd.readouterr()
    monkeypatch.setattr(sys, "argv", shlex.split(f"penchant {line}"))
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out = capfd.readouterr().out
    assert not caught.value.code
    assert "\x1b" not in out, "escape codes where there is no terminal"
    lines = out.splitlines()
    assert all(line == line.rstrip() for line in lines)
    start = next((n for n, text in enumerate(lines) if text.startswith("Done: ")), len(lines))
    return lines[start:]


def facts(block: list[str]) -> dict[str, str]:
    rows = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in block[1:-2]]
    return dict(rows)


def test_train(world: Path, monkeypatch: Any, capfd: Any) -> None:
    line = f"train model=model data=mixed.jsonl data.eval=eval.jsonl output_dir=run {SHORT}"
    block = shown(line, monkeypatch, capfd)
    assert block[0] == "Done: dpo, 1 step"
    assert max(map(len, block)) <= 80
    found = facts(block)
    assert found["rows"] == "8 used, 1 set aside  (why: run/data_report.json)"
    assert found["loss"] == "0.6931 in the last step"
    assert found["eval loss"] == "0.6931"
    assert found["eval accuracy"].endswith("% of held-out pairs")
    assert found["written"].startswith("run  (model and tokenizer;")
    assert set(found) >= {"accuracy", "time"}
    again = shown(block[-1].strip().removeprefix("penchant "), monkeypatch, capfd)
    assert again[0] == "Done: slic-dpo, 1 step"
    assert (world / "run-slic-dpo" / "summary.json").is_file()


def test_an_adapter_leads_to_merge_and_merge_to_a_model(
    world: Path, monkeypatch: Any, capfd: Any
) -> None:
    line = f"sft model=model data=chats.jsonl output_dir='my run' model.adapter.r=2 {SHORT}"
    block = shown(line, monkeypatch, capfd)
    assert block[0] == "Done: sft, 1 step"
    assert facts(block)["written"].startswith("my run  (adapter and tokenizer;")
    merged = shown(block[-1].strip().removeprefix("penchant "), monkeypatch, capfd)
    assert facts(merged)["base"] == "model"
    assert (world / "my run-merged" / "model.safetensors").is_file()
    assert "model='my run-merged'" in merged[-1]


def test_init_and_sft_without_adapter(world: Path, monkeypatch: Any, capfd: Any) -> None:
    block = shown("init new tokenizer=model hidden_size=32 num_layers=1", monkeypatch, capfd)
    assert block[0] == "Done: a new llama with random weights"
    assert facts(block)["vocabulary"] == "259"
    command = block[-1].strip().removeprefix("penchant ")
    command = command.replace("CHATS.jsonl", "chats.jsonl").replace("DIR", "start")
    block = shown(f"{command} {SHORT}", monkeypatch, capfd)
    assert block[-2:] == [
        "Next: train it on preference pairs",
        "  penchant train model=start data=PAIRS.jsonl output_dir=DIR",
    ]


def test_miniature(world: Path, monkeypatch: Any, capfd: Any) -> None:
    sizes = "num_sft=2 num_pairs=2 num_scored=2 num_held_out=8"
    block = shown(f"miniature mini {sizes}", monkeypatch, capfd)
    assert facts(block)["pairs.jsonl"] == "2 rows"
    assert block[-1] == "  cd mini && penchant sft sft.yaml && penchant train train.yaml"


def test_a_dry_run_is_a_recipe_with_a_plan(world: Path, monkeypatch: Any, capfd: Any) -> None:
    arguments = ["model=model", "data=mixed.jsonl", "output_dir=run", *SHORT.split()]
    monkeypatch.setattr(sys, "argv", ["penchant", "train", *arguments, "--dry-run"])
    with pytest.raises(SystemExit):
        cli.main()
    out, err = capfd.readouterr()
    (world / "plan.yaml").write_text(out)
    assert load_recipe("train", "plan.yaml") == resolve(load_recipe("train", None, arguments))
    assert err == ""
    assert "# data  set aside: chosen_equals_rejected 1" in out
    assert "# rows_set_aside: 1" in out
    assert re.search(r"^# estimated_peak: [\d.]+ (MiB|GiB)$", out, re.MULTILINE)
    assert re.search(r"^# estimated_time: about [\d.]+ s$", out, re.MULTILINE)
    assert not (world / "run").exists()


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (1.25 * 2**30, "1.2 GiB")],
)
def test_size(number: float, text: str) -> None:
    assert _show.size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.123, "0.12 s"),
        (9.96, "10 s"),
        (59.7, "1 min 0 s"),
        (200, "3 min 20 s"),
        (18_420, "5 h 7 min"),
        (187_200, "2 days 4 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert _show.duration(seconds) == text
