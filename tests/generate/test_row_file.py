"""Where rows and their summaries lie: no two outputs share a name."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from penchant.errors import RecipeError
from penchant.generate.journal import Journal, finished, folder_of
from penchant.generate.row_file import KINDS, check, summary_of

ENDS = [kind + gz for kind in KINDS for gz in ("", ".gz")]


def test_distinct_outputs_have_distinct_summaries() -> None:
    stems = ["a", "a.b", *(f"a{end}" for end in ENDS)]
    outputs = [Path("x") / f"{stem}{end}" for stem, end in product(stems, ENDS)]
    assert len({summary_of(one) for one in outputs}) == len(set(outputs)) == 48
    assert len({folder_of(one) for one in outputs}) == 48
    assert not {summary_of(one) for one in outputs} & set(outputs)


@pytest.mark.parametrize(
    ("output", "summary"),
    [
        ("a.jsonl", "a.summary.json"),
        ("a.b.jsonl", "a.b.summary.json"),
        ("a.json", "a.json.summary.json"),
        ("a.jsonl.gz", "a.jsonl.gz.summary.json"),
        ("a.json.jsonl", "a.json.jsonl.summary.json"),
    ],
)
def test_names_of_summaries(output: str, summary: str) -> None:
    assert summary_of(Path("x") / output) == Path("x") / summary


def test_outputs_beside_each_other_are_both_finished(tmp_path: Path) -> None:
    for number, name in enumerate(("a.jsonl", "a.json", "a.jsonl.gz")):
        with Journal.open(tmp_path / name, {"seed": number}) as journal:
            journal.publish(0, {"rows": number})
    for number, name in enumerate(("a.jsonl", "a.json", "a.jsonl.gz")):
        summary = finished(tmp_path / name, {"seed": number})
        assert summary == {"rows": number, "identity": {"seed": number}}


def test_an_output_is_never_another_one_s_summary() -> None:
    with pytest.raises(RecipeError, match=r"end in \.summary\.json are summaries of others"):
        check(Path("a.summary.json"))
