"""`penchant generate` on an output that is there: only prompts decide; other columns follow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penchant.errors import DataError, RecipeError
from penchant.generate.journal import Journal
from tests.commands.generate_world import borrowed, generate, rows_of
from tests.commands.world import pair, write_rows, write_world


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = write_world(tmp_path_factory.mktemp("made"), 2)
    rows = [{"prompt": pair(n)["prompt"], "answer": n, "k": "x"} for n in range(8)]
    write_rows(world / "prompts.jsonl", rows)
    generate(world, output=str(world / "whole.jsonl"))
    return world


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    return borrowed(made, tmp_path)


def changed_columns(world: Path) -> list[dict[str, Any]]:
    """Changes columns of the prompts: one more in all, others in two; returns the rows to come."""
    rows = [row | {"more": [1]} for row in rows_of(world / "prompts.jsonl")]
    rows[2]["answer"], rows[6]["k"] = "new", None
    (world / "prompts.jsonl").unlink()  # a link to what other tests read
    write_rows(world / "prompts.jsonl", rows)
    expected = rows_of(world / "whole.jsonl")
    for row, given in zip(expected, rows, strict=True):
        row |= {name: value for name, value in given.items() if name != "prompt"}
    del expected[6]["k"]
    return expected


def test_columns_that_changed_are_brought_over_and_said(world: Path, capsys: Any) -> None:
    expected, whole = changed_columns(world), world / "whole.jsonl"
    found = generate(world, output=str(whole))
    assert found["new_tokens"] == 0 and found["rows_refreshed"] == 8
    assert rows_of(whole) == expected
    said = capsys.readouterr().out
    assert "8 rows got the columns that the input has now (such as prompts:1)" in said
    assert "complete already; nothing was generated" in said
    before = whole.read_bytes(), whole.stat().st_mtime_ns
    assert generate(world, output=str(whole))["rows_refreshed"] == 0
    assert "complete already; nothing was done" in capsys.readouterr().out
    assert (whole.read_bytes(), whole.stat().st_mtime_ns) == before
    # The same prompts under another name, one of them twice: ids and counts follow.
    write_rows(world / "named.jsonl", [*rows_of(world / "prompts.jsonl"), {"prompt": "say red"}])
    with pytest.raises(RecipeError, match="differs in prompts"):
        generate(world, output=str(whole), data=str(world / "named.jsonl"))
    rows = rows_of(world / "prompts.jsonl")
    write_rows(world / "named.jsonl", [*rows, rows[0]])
    found = generate(world, output=str(whole), data=str(world / "named.jsonl"))
    assert found["rows_refreshed"] == 8 and rows_of(whole)[0]["same_prompt"] == ["named:9"]
    assert rows_of(whole)[1]["row_id"] == "named:2"
    assert json.loads((world / "whole.summary.json").read_text())["rows_repeated"] == 1


def test_columns_that_changed_before_a_run_goes_on(world: Path, capsys: Any) -> None:
    """An earlier start answered five prompts: their rows are written as the input is now."""
    identity = json.loads((world / "whole.summary.json").read_text())["identity"]
    with Journal.open(world / "out.jsonl", identity) as journal:
        for index, row in enumerate(rows_of(world / "whole.jsonl")[:5]):
            journal.append(index, row)
    expected = changed_columns(world)
    found = generate(world)
    assert rows_of(world / "out.jsonl") == expected
    assert found["rows_refreshed"] == 5 and found["new_tokens"] < found["completion_tokens"]
    assert "5 rows got the columns that the input has now" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "more", "turned", "text"])
def test_an_output_that_somebody_changed_is_not_called_complete(world: Path, damage: str) -> None:
    whole = world / "whole.jsonl"
    lines = whole.read_bytes().splitlines(keepends=True)
    lines = {
        "cut": lines[:-1],
        "more": [*lines, lines[0]],
        "turned": [lines[1], lines[0], *lines[2:]],
        "text": [*lines[:3], b"{\n", *lines[4:]],
    }[damage]
    whole.write_bytes(b"".join(lines))
    place = {"cut": 8, "more": 9, "turned": 1, "text": 4}[damage]
    with pytest.raises(DataError, match=rf"is not as this command left it \(row {place}\); remove"):
        generate(world, output=str(whole))
    assert whole.read_bytes() == b"".join(lines)


def test_rows_that_are_not_drawn_are_said(world: Path, capsys: Any) -> None:
    source = {"path": str(world / "prompts.jsonl"), "rows": 2}
    found = generate(world, data={"train": source})
    assert (found["prompts"], found["rows_left_out"]) == (2, 6)
    assert "6 rows left out: not drawn by fraction or rows" in capsys.readouterr().out
