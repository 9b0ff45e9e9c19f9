"""Reading rows: every kind of file, line numbers, broken lines, sampling, folders."""

from __future__ import annotations

import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from penchant import data
from penchant.data.source import parse_sources, read_source
from penchant.errors import DataError, MissingFileError
from tests.data.samples import preference_row, say, write_rows

ROWS = [preference_row(number) for number in range(20)]
PLAIN = [
    {"prompt": f"Which {n}?", "chosen": f'Se, "ven" \n{n}', "rejected": "Drei\u2028", "n": str(n)}
    for n in range(6)
]


def write_csv(path, rows, delimiter=","):
    import csv

    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write(path, rows):
    name = path.name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif name.endswith((".csv", ".tsv")):
        write_csv(path, rows, "\t" if name.endswith(".tsv") else ",")
    elif name.endswith(("data.json", "data.json.gz")):
        text = json.dumps({"data": rows}).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    else:
        write_rows(path, rows)
    return path


def values(path):
    (source,) = parse_sources(path)
    return [dict(row.value) for row in read_source(source, seed=0).rows]


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.jsonl.gz", "a.json", "data.json", "data.json.gz", "a.parquet", "a.csv", "a.tsv"],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    assert values(write(tmp_path / name, PLAIN)) == PLAIN


def test_json_lines_under_the_name_json(tmp_path):
    assert values(write_rows(tmp_path / "a.json", ROWS)) == ROWS


def test_parquet_padding_is_not_content(tmp_path):
    """A struct column gives every message every key, None where it has none."""
    rows = [
        preference_row(0, prompt=[{"role": "user", "content": "x", "name": "Ann"}]),
        preference_row(1),
    ]
    loaded = data.load(write(tmp_path / "a.parquet", rows))
    named, unnamed = (set(row.prompt[0]) for row in loaded)
    assert named == {"role", "content", "name"} and unnamed == {"role", "content"}


def test_messages_in_csv_cells_are_messages(tmp_path):
    row = {key: json.dumps(value) for key, value in preference_row().items()}
    row["prompt_id"] = "egg-0"
    (comparison,) = data.load(write_csv(tmp_path / "a.csv", [row]))
    assert comparison.prompt == tuple(preference_row()["prompt"])
    assert comparison.scores == (8.0, 3.0)


def test_lines_keep_their_numbers_and_broken_ones_are_set_aside(tmp_path):
    nested = "[" * 5000 + "]" * 5000
    path = write_rows(
        tmp_path / "a.jsonl", [ROWS[0], '{"prompt": "cut', "", "[1]", ROWS[1], nested, ROWS[2]]
    )
    path.write_bytes(path.read_bytes() + b'{"prompt": "\xff\xfe"}\n')
    loaded = data.load(path)
    assert [row.row_id for row in loaded] == ["a:1", "a:5", "a:7"]
    assert [(row.line, row.reason) for row in loaded.set_aside] == [
        (line, "broken_line") for line in (2, 4, 6, 8)
    ]
    assert '{"prompt": "cut' in loaded.set_aside[0].excerpt
    assert loaded.rows_in == 7


def test_a_csv_row_of_another_width_is_set_aside(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,chosen,rejected\nq,yes,no\nq,"two\nlines"\nq,a,b,c\nq,si,no\n')
    loaded = data.load(path)
    assert [row.row_id for row in loaded] == ["a:2", "a:6"]
    assert [(row.line, row.reason) for row in loaded.set_aside] == [
        (3, "broken_line"),
        (5, "broken_line"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "holds no rows"),
        ("a.jsonl", b"\n\n", "holds no rows"),
        ("a.json", b"", "holds no rows"),
        ("a.csv", b"prompt,chosen,rejected\n", "holds no rows"),
        ("a.jsonl", b"{\nnot json\n", r"nothing but broken lines \(2\); line 1"),
        ("a.json", b'{"data": [1, 2', "not valid JSON"),
        ("a.json", b"3", "neither a list"),
        ("a.jsonl.gz", b"not gzip", "damaged gzip"),
        ("a.jsonl.gz", gzip.compress(json.dumps(ROWS[0]).encode() + b"\n")[:-20], "damaged gzip"),
        ("a.parquet", b"PAR1", "not a whole Parquet file"),
        ("a.txt", b"hello", "cannot tell what it is"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        data.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["none.jsonl", "./none", "owner/none-such-data-set:c:train"])
def test_what_is_not_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError) as caught:
        data.load(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [[], 3, {"name": "x"}, {"path": "a", "weight": 2}])
def test_what_is_no_source(given):
    with pytest.raises(DataError):
        data.load(given)


def test_fraction_and_rows_are_drawn_by_the_seed_in_order(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    half = data.load({"path": str(path), "fraction": 0.5}, seed=1)
    lines = [int(row.row_id.split(":")[1]) for row in half]
    assert len(half) == 10 and lines == sorted(lines) and half.left_out == 10
    again = data.load({"path": str(path), "fraction": 0.5}, seed=1)
    other = data.load({"path": str(path), "fraction": 0.5}, seed=2)
    assert again == half and other != half
    assert len(data.load({"path": str(path), "rows": 3})) == 3
    assert len(data.load({"path": str(path), "rows": 999})) == 20


@pytest.mark.parametrize("change", [{"fraction": 0}, {"fraction": 1.5}, {"rows": 0}])
def test_a_share_that_cannot_be_drawn(tmp_path, change):
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(DataError, match=next(iter(change))):
        data.load({"path": str(path), **change})


def test_a_list_of_sources_keeps_names_apart(tmp_path):
    path = str(write_rows(tmp_path / "a.jsonl.gz", ROWS))
    loaded = data.load([path, {"path": path, "rows": 2}, {"path": path, "name": "mine", "rows": 1}])
    assert len(loaded) == 23
    assert loaded.formats == dict.fromkeys(["a", "a#2", "mine"], "preference")
    assert len({row.row_id for row in loaded}) == 23


def test_saved_folders_and_their_splits(tmp_path):
    train = datasets.Dataset.from_list(ROWS[:3])
    train.save_to_disk(str(tmp_path / "one"))
    assert len(data.load(tmp_path / "one")) == 3
    both = datasets.DatasetDict({"train": train, "test": datasets.Dataset.from_list(ROWS[3:5])})
    both.save_to_disk(str(tmp_path / "both"))
    assert len(data.load(tmp_path / "both")) == 3
    assert len(data.load(f"{tmp_path / 'both'}:test")) == 2
    assert len(data.load({"path": str(tmp_path / "both"), "split": "test"})) == 2
    assert len(data.load(tmp_path / "both", default_split="test")) == 2
    with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
        data.load(f"{tmp_path / 'both'}:dev")


def test_folders_in_hub_layout(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "pairs"
    (folder / "data").mkdir(parents=True)
    write(folder / "data" / "train-00000-of-00002.parquet", ROWS[:4])
    write(folder / "data" / "train-00001-of-00002.parquet", ROWS[4:6])
    write(folder / "data" / "test-00000-of-00001.parquet", ROWS[6:7])
    (folder / "README.md").write_text("# pairs\n")
    loaded = data.load(folder)
    assert [row.prompt_id for row in loaded] == [f"egg-{n}" for n in range(6)]
    assert loaded[0].prompt == tuple(ROWS[0]["prompt"])
    assert len(data.load({"path": str(folder), "split": "test"})) == 1
    with pytest.raises(DataError, match="could not be loaded"):
        data.load({"path": str(folder), "split": "dev"})
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="without data files"):
        data.load(tmp_path / "bare")


def test_the_same_rows_are_found_however_they_are_written(tmp_path):
    rows = [preference_row(n) for n in range(4)]
    whole = [
        {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}
        for row in rows[:3]
    ]
    train = data.load(write_rows(tmp_path / "a.jsonl", rows))
    other = data.load(write_rows(tmp_path / "b.jsonl", whole))
    assert data.same_rows(train, other) == 3
    unseen = data.load(write_rows(tmp_path / "c.jsonl", [preference_row(9)]))
    assert data.same_rows(train, unseen) == 0


def test_a_split_keeps_each_prompt_on_one_side(tmp_path):
    rows = [preference_row(n // 2, chosen=[say(f"A{n}")]) for n in range(40)]
    loaded = data.load(write_rows(tmp_path / "a.jsonl", [*rows, "{"]))
    train, evaluation = data.split(loaded, 0.25, seed=0)
    assert len(train) == 30 and len(evaluation) == 10
    assert not {row.prompt_id for row in train} & {row.prompt_id for row in evaluation}
    assert train.rows_in + evaluation.rows_in == loaded.rows_in
    assert data.split(loaded, 0.25, seed=0) == (train, evaluation)
    assert data.split(loaded, 0.25, seed=1)[1] != evaluation
    with pytest.raises(DataError, match="leaves none"):
        data.split(loaded, 0.999, seed=0)
