"""Damaged rows of every format: each is used or set aside with a reason, and nothing crashes."""

from __future__ import annotations

import copy
import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from penchant import data
from penchant.errors import DataError
from tests.data.real_rows import REAL_ROWS, WANTED, real_rows
from tests.data.samples import bpe_tokenizer

EACH = [(name, place) for name, rows in REAL_ROWS.items() for place in range(len(rows))]
ROWS_AT_ONCE = 30

_deep: list = []
for _ in range(300):
    _deep = [_deep]

_odd = st.one_of(
    st.sampled_from(
        [
            None, True, False, 0, 1, -1, 2**70, 1e308, float("nan"), float("inf"), "", " ", "\n\n",
            "\x00", "\ud800", "日本語", "مرحبا", "🙂" * 3, "\u202e", "<|im_end|>", "{{ 1/0 }}", "1",
            "nan", "true", "[", '[{"role": "user"}]', '{"a": 1}', "\n\nHuman: ", "\n\nAssistant: x",
            "<sep>", "egg " * 2000, [], {}, [[]], [None], [{}], [{"role": "user"}], ["a"], [1, 2],
            [{"role": "user", "content": "x"}], [{"role": "assistant", "content": "x"}],
            [{"role": "assistant", "content": None}], [{"role": 3, "content": "x"}],
            [{"from": "gpt", "value": "x"}], {"role": "user", "content": "x"}, {"a": {"b": []}},
            [{"role": "assistant", "content": None, "tool_calls": [3]}], _deep,
        ]
    ),
    st.text(max_size=8),
    st.floats(),
    st.integers(),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.text(max_size=3)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=6,
    ),
)  # fmt: skip


def places(value, path=()):
    """Every place inside a row, the row itself left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*path, key))


def damage_place(draw, row):
    """Removes, renames or replaces something somewhere in a row."""
    found = list(places(row))
    if not found:
        return
    *path, key = draw(st.sampled_from(found))
    target = row
    for step in path:
        target = target[step]
    how = draw(st.sampled_from(["remove", "replace", "replace", "replace", "rename", "repeat"]))
    if how == "remove":
        del target[key]
    elif how == "rename" and isinstance(target, dict):
        target[draw(st.text(max_size=5))] = target.pop(key)
    elif how == "repeat" and isinstance(target, list):
        target += copy.deepcopy(target)
    else:
        target[key] = copy.deepcopy(draw(_odd))


@st.composite
def damaged_lines(draw, row):
    """A line of JSON made from a good row: one to three things changed, then perhaps the text."""
    row = copy.deepcopy(row)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        damage_place(draw, row)
    line = json.dumps(row, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    how = draw(st.integers(0, 11))
    if how == 0:
        return line[: draw(st.integers(1, len(line)))]
    if how == 1:
        cut = draw(st.integers(0, len(line)))
        return line[:cut] + draw(st.binary(max_size=4)).replace(b"\n", b"\\") + line[cut:]
    return line


@st.composite
def damaged_files(draw, num_rows=ROWS_AT_ONCE):
    """A format's name and lines, one of them whole."""
    name = draw(st.sampled_from(sorted(REAL_ROWS)))
    rows = real_rows(name)
    lines = [draw(damaged_lines(draw(st.sampled_from(rows)))) for _ in range(num_rows)]
    return name, [json.dumps(rows[0]).encode(), *lines]


def account_for(path, name, lines, counts):
    """Loads and tokenises; asserts that every row is used or set aside with a reason."""
    path.write_bytes(b"\n".join(lines) + b"\n")
    num_rows = sum(1 for line in lines if line.strip())
    loaded = data.load(path, format=WANTED.get(name, name))
    assert loaded.rows_in == len(loaded) + len(loaded.set_aside) == num_rows
    assert all(row.reason and row.detail for row in loaded.set_aside)
    for use in ("pairs", "chosen"):
        report = data.report(loaded, bpe_tokenizer(), use=use, max_length=128)
        assert report.rows_in == num_rows
        assert report.rows_in == report.rows_used + sum(report.set_aside.values())
        assert all(report.examples[reason] for reason in report.set_aside)
    counts["used"] += report.rows_used - 1
    counts["read"] += len(loaded) - 1
    counts.update(f"- {row.reason}" for row in loaded.set_aside)
    counts["rows"] += num_rows - 1
    try:
        data.load(path)
    except DataError as error:
        assert "\n" not in str(error)


def check(tmp_path, examples):
    """Runs that many files of 30 damaged rows; returns the counts."""
    counts: Counter[str] = Counter()

    @seed(1)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged_files())
    def run(drawn):
        account_for(tmp_path / "rows.jsonl", *drawn, counts)

    run()
    return counts


def test_damaged_rows_are_used_or_set_aside(tmp_path):
    counts = check(tmp_path, 10)
    assert counts["rows"] >= 300 and 0 < counts["read"] < counts["rows"]


@pytest.mark.slow
def test_ten_thousand_damaged_rows(tmp_path):
    counts = check(tmp_path, 340)
    print(dict(counts))
    assert counts["rows"] >= 10_000 and 0 < counts["read"] < counts["rows"]


def test_every_place_of_every_format_emptied_and_removed(tmp_path):
    """Without chance: each place inside each row gone, None, and of another type."""
    for name, number in EACH:
        lines = [json.dumps(real_rows(name)[number]).encode()]
        for path in places(real_rows(name)[number]):
            for value in (None, 7, "x", [], {}, [3], "\n\nHuman: x"):
                row = real_rows(name)[number]
                target = row
                for step in path[:-1]:
                    target = target[step]
                target[path[-1]] = value
                lines.append(json.dumps(row).encode())
            row = real_rows(name)[number]
            target = row
            for step in path[:-1]:
                target = target[step]
            del target[path[-1]]
            lines.append(json.dumps(row).encode())
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"\n".join(lines))
        loaded = data.load(path, format=WANTED.get(name, name))
        assert loaded.rows_in == len(lines) and len(loaded) >= 1
        assert all(row.reason and row.detail for row in loaded.set_aside)
