"""Rows one after another: the same as all at once, and nothing kept."""

from __future__ import annotations

import itertools
import json
import shutil
import tracemalloc

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from penchant import data
from penchant.data import source
from penchant.data.rows import SetAside
from penchant.errors import DataError
from penchant.types import Comparison
from tests.data.real_rows import real_rows
from tests.data.samples import bpe_tokenizer, preference_row, write_rows

ROWS = [preference_row(n) for n in range(20)]


def test_a_stream_gives_what_load_gives_and_counts(tmp_path):
    first = write_rows(tmp_path / "a.jsonl", [*ROWS, "{", preference_row(99, chosen=None)])
    second = write_rows(tmp_path / "b.jsonl", real_rows("orca"))
    sources = [{"path": str(first), "fraction": 0.5}, str(second)]
    stream = data.read_comparisons(sources, seed=3)
    given = list(stream)
    loaded = data.load(sources, seed=3)
    assert [row for row in given if isinstance(row, Comparison)] == list(loaded)
    assert [row for row in given if isinstance(row, SetAside)] == list(loaded.set_aside)
    assert (stream.rows_used, stream.rows_in) == (len(loaded), loaded.rows_in)
    assert stream.left_out == loaded.left_out == 11
    assert stream.formats == loaded.formats == {"a": "preference", "b": "orca"}
    assert list(stream) == given and stream.rows_in == loaded.rows_in


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "csv", "parquet"])
def test_the_first_comparison_needs_the_first_rows_only(tmp_path, monkeypatch, suffix):
    """100 rows decide on the format; reading on is the caller's choice."""
    path = tmp_path / f"a.{suffix}"
    data.write(data.load(write_rows(tmp_path / "in.jsonl", ROWS * 50)), path)
    read = 0
    original = source._row

    def counted(*given):
        nonlocal read
        read += 1
        return original(*given)

    monkeypatch.setattr(source, "_row", counted)
    first = list(itertools.islice(data.read_comparisons(path), 3))
    assert len(first) == 3 and read == 100


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    row = preference_row(0, chosen=[{"role": "assistant", "content": "egg " * 500}])
    peaks = []
    for times in (2000, 8000):
        path = tmp_path / f"{times}.{suffix}"
        if suffix == "parquet":
            table = pyarrow.Table.from_pylist([row] * times)
            pyarrow.parquet.write_table(table, path, row_group_size=500)
        else:
            line = json.dumps(row) + "\n"
            path.write_text(line * times)
        stream = data.read_comparisons(path)
        tracemalloc.start()
        assert sum(1 for _ in stream) == times
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] < 20e6


def test_errors_come_with_the_rows(tmp_path):
    stream = data.read_comparisons(write_rows(tmp_path / "a.jsonl", ["{", "{"]))
    with pytest.raises(DataError, match=r"nothing but broken lines \(2\)"):
        next(iter(stream))
    with pytest.raises(DataError, match="no data source"):
        data.read_comparisons([])


def test_only_broken_lines_drawn_is_said(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", ["{"] * 50 + [ROWS[0]])
    with pytest.raises(DataError, match="nothing but broken lines"):
        data.load({"path": str(path), "rows": 1}, seed=1)


def test_each_source_may_have_its_format(tmp_path):
    scored = write_rows(tmp_path / "a.jsonl", real_rows("dsp"))
    twice = {"prompt": "Q", "completion": "A", "responses": ["a", "b"], "is_correct": [1, 0]}
    both = write_rows(tmp_path / "b.jsonl", [twice])
    loaded = data.load(
        [{"path": str(scored), "format": "dsp:normal"}, {"path": str(both), "format": "messages"}]
    )
    assert loaded.formats == {"a": "dsp:normal", "b": "messages"} and len(loaded) == 2


def hub_folder(folder, readme):
    """A data set as it lies on the hub: configurations and splits named in the card."""
    (folder / "pairs").mkdir(parents=True)
    (folder / "sft").mkdir()
    write_rows(folder / "pairs" / "one.jsonl", ROWS[:4])
    write_rows(folder / "pairs" / "held_out.jsonl", ROWS[4:6])
    write_rows(folder / "sft" / "all.jsonl", real_rows("messages")[:1])
    (folder / "README.md").write_text(readme)
    return folder


CARD = """---
configs:
- config_name: pairs
  data_files:
  - {split: train_prefs, path: pairs/one.jsonl}
  - {split: test_prefs, path: pairs/held_out.jsonl}
- config_name: sft
  data_files:
  - {split: train, path: sft/*.jsonl}
---
# Eggs
"""


def test_a_card_names_configurations_and_splits(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = str(hub_folder(tmp_path / "eggs", CARD))
    assert data.load(f"{folder}:sft:train").formats == {"eggs": "messages"}
    assert len(data.load({"path": folder, "config": "pairs", "split": "train_prefs"})) == 4
    assert len(data.load(f"{folder}:pairs:test_prefs")) == 2
    with pytest.raises(DataError, match="no split 'train'; it has train_prefs, test_prefs"):
        data.load({"path": folder, "config": "pairs"})
    with pytest.raises(DataError, match="could not be loaded"):
        data.load({"path": folder, "config": "none"})


def test_a_hub_id_is_read_from_the_cache_while_offline(tmp_path, monkeypatch):
    """What a cache holds after a download: a data set by its owner and name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "eggs").mkdir()
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "eggs" / "train.parquet")
    datasets.load_dataset("./eggs", cache_dir=str(tmp_path / "first"))
    (found,) = (tmp_path / "first").rglob("*.arrow")
    cached = tmp_path / "cache" / "owner___eggs" / "default" / "0.0.0" / "0123"
    shutil.copytree(found.parent, cached)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("owner/eggs", "owner/eggs:default", "owner/eggs:default:train"):
        loaded = data.load(name)
        assert loaded.formats == {"owner/eggs": "preference"} and len(loaded) == 20
        assert loaded[0].row_id == "owner/eggs:1"
    with pytest.raises(DataError, match="dev"):
        data.load("owner/eggs:default:dev")


def test_keys_that_arrow_adds_to_tools_and_calls_are_taken_off(tmp_path):
    def call(name, arguments):
        turn = {"role": "assistant", "content": None}
        return [turn | {"tool_calls": [{"function": {"name": name, "arguments": arguments}}]}]

    rows = [
        preference_row(0, chosen=call("boil", {"minutes": 8}), tools=[{"name": "boil"}]),
        preference_row(
            1, chosen=call("fry", {"oil": "much"}), tools=[{"name": "fry", "hot": True}]
        ),
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    for place in (tmp_path / "a.parquet", tmp_path / "saved"):
        boil, fry = data.load(place)
        assert boil.responses[0][0]["tool_calls"] == rows[0]["chosen"][0]["tool_calls"]
        assert fry.responses[0][0]["tool_calls"] == rows[1]["chosen"][0]["tool_calls"]
        assert boil.template_kwargs == {"tools": [{"name": "boil"}]}


def test_the_same_rows_from_a_saved_folder_a_file_and_a_stream(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    path = write_rows(tmp_path / "saved.jsonl", ROWS)
    assert list(data.load(tmp_path / "saved")) == list(data.load(path))


def test_columns_that_no_format_looks_at_are_named(tmp_path):
    rows = [preference_row(n) | {"split": "train", "judge": n} for n in range(3)]
    loaded = data.load(write_rows(tmp_path / "rows.jsonl", rows))
    assert loaded.unread == {"rows": ("split", "judge")}
    report = data.report(loaded, bpe_tokenizer())
    assert report.sources["rows"].columns_not_read == ["split", "judge"]
    assert "rows: columns not read: split, judge" in report.notes
    plain = data.load(write_rows(tmp_path / "plain.jsonl", [preference_row(n) for n in range(3)]))
    assert not any("not read" in note for note in data.report(plain, bpe_tokenizer()).notes)
