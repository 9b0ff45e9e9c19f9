"""The cache of tokens: the same on a hit, another for anything that changes, never damaged."""

from __future__ import annotations

import os
import shutil
import threading
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from penchant import data, objectives, weights
from penchant.commands._prepare import Marker, marker
from penchant.data import build, cache, fingerprint
from penchant.data.fingerprint import NoFingerprintError, RowsDigest, ingredients
from penchant.data.pairing import PairSettings
from penchant.data.plan import BuildSettings
from penchant.data.render import chat_template
from penchant.data.rows import SetAside
from penchant.data.trees import TokenSettings
from penchant.errors import DataError
from penchant.types import Comparison
from tests.data.samples import ask, bpe_tokenizer, preference_row, say, write_rows


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and whether anything is tokenised counted nowhere but there."""
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = [preference_row(number, chosen=[say("egg " * number)]) for number in range(30)]
    return write_rows(tmp_path / "rows.jsonl", [*rows, "{broken"])


def make(rows: Any, tokenizer: Any = None, **settings: Any) -> tuple[Any, Any]:
    tokenizer = tokenizer or bpe_tokenizer()
    given = {"max_length": 48, "chat_template": "chatml", "cache": True, **settings}
    return data.build_trees(rows, tokenizer, **given)


@pytest.fixture
def no_tokenising(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, making trees fails: what comes then came from the cache."""

    def start() -> None:
        def fail(*_: Any) -> Any:
            raise AssertionError("tokenised anew")

        monkeypatch.setattr(build, "make_batches", fail)

    return start


@pytest.mark.parametrize("mark", [None, weights.mark])
def test_a_hit_gives_equal_trees_and_an_equal_report(
    path: Path, folder: Path, no_tokenising: Callable[[], None], mark: Any
) -> None:
    plain, plain_report = make(data.load(path), cache=False, mark=mark)
    assert not folder.exists()
    first, first_report = make(data.load(path), mark=mark)
    assert len(list(folder.iterdir())) == 1
    no_tokenising()
    for rows in (data.load(path), data.read_comparisons(path)):
        found, report = make(rows, mark=mark)
        assert list(found) == list(first) == list(plain)
        assert report == first_report == plain_report
        assert report.gathered == plain_report.gathered
        assert report.lines() == plain_report.lines()
        report.find_problems()
        assert report == plain_report


def test_what_would_be_refused_is_refused_from_the_cache_too(path: Path) -> None:
    for _ in range(2):
        with pytest.raises(DataError, match="max_cut"):
            make(data.load(path), max_length=24, max_cut_fraction=0.01)


def test_the_report_alone_shares_the_entry(path: Path, folder: Path) -> None:
    _, report = make(data.load(path))
    settings = {"max_length": 48, "chat_template": "chatml", "cache": True}
    assert data.report(data.load(path), bpe_tokenizer(), **settings) == report
    assert len(list(folder.iterdir())) == 1


ROW = Comparison(
    row_id="rows:1",
    prompt=(ask("How?"),),
    responses=((say("So."),), (say("No."),)),
    scores=(2.0, 1.0),
    labels=(True, False),
    pairs=((0, 1),),
    soft_labels=(0.75,),
    prompt_id="1",
    source="rows",
    format="messages",
    template_kwargs={"tools": [{"name": "boil"}]},
)
OTHER: dict[str, Any] = {
    "row_id": "rows:2",
    "prompt": (ask("How"),),
    "responses": ((say("So"),), (say("No."),)),
    "scores": (2.0, 0.5),
    "labels": (False, True),
    "pairs": ((1, 0),),
    "soft_labels": (0.5,),
    "prompt_id": None,
    "source": "rows ",
    "format": "hh",
    "template_kwargs": {"tools": [{"name": "cool"}]},
}


def digest(*rows: Any, rest: Any = None) -> str:
    found = RowsDigest()
    for row in rows:
        found.add(row)
    return found.result(rest)


@pytest.mark.parametrize("field", [field.name for field in fields(Comparison)])
def test_everything_of_a_row_is_in_the_digest(field: str) -> None:
    again = replace(ROW, prompt=({"role": "user", "content": "Ho" + "w?"},))
    assert digest(ROW) == digest(again)
    assert digest(replace(ROW, **{field: OTHER[field]})) != digest(ROW)


def test_order_and_rows_set_aside_are_in_the_digest() -> None:
    second = replace(ROW, row_id="rows:2")
    lost = SetAside("rows", 3, "broken_line", "line 3", "{")
    found = {
        digest(ROW, second),
        digest(second, ROW),
        digest(ROW, second, lost),
        digest(ROW, second, replace(lost, reason="tie")),
        digest(ROW, second, rest=({"rows": "hh"}, 4)),
        digest(replace(ROW, template_kwargs={"when": object}), second),
    }
    assert len(found) == 6


def test_one_byte_of_the_data_makes_another_entry(path: Path, folder: Path) -> None:
    make(data.load(path))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"boil egg number 7", b"boil egg number 8"))
    trees, _ = make(data.load(path))
    assert len(list(folder.iterdir())) == 2
    assert list(trees) == list(make(data.load(path), cache=False)[0])


def settings_of(**changes: Any) -> list[Any]:
    parts = (BuildSettings, PairSettings, TokenSettings)
    return [
        kind(**{f.name: changes[f.name] for f in fields(kind) if f.name in changes})
        for kind in parts
    ]


def key(tokenizer: Any = None, **changes: Any) -> str:
    return fingerprint.combine(ingredients(tokenizer or bpe_tokenizer(), settings_of(**changes)))


CHANGED: dict[str, Any] = {
    "use": "chosen",
    "score_transform": "rank",
    "max_pairs_per_prompt": 3,
    "gap_bins": 4,
    "strict": True,
    "max_cut_fraction": 0.5,
    "bt_beta": 0.5,
    "seed": 43,
    "pairing": "all",
    "min_score_gap": 0.5,
    "ties": "drop",
    "negative_gap": "swap",
    "soft_labels": {"1": 0.5},
    "soft_labels_below_half": "swap",
    "needs_scores": True,
    "chat_template": "alpaca",
    "max_length": 1023,
    "max_prompt_length": 7,
    "truncate_prompt": "keep_start",
    "overlong": "drop",
    "train_on": "all",
    "mark": weights.mark,
}
FIELDS = [f.name for kind in (BuildSettings, PairSettings, TokenSettings) for f in fields(kind)]


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_makes_another_entry(name: str) -> None:
    assert key(**{name: CHANGED[name]}) != key()
    assert key(**{name: CHANGED[name]}) == key(**{name: CHANGED[name]})


def test_values_within_settings_make_another_entry() -> None:
    tables = [{"1": 0.5}, {"1": 0.25}, {"2": 0.5}, {"1": 0.5, "2": 0.5}]
    assert len({key(soft_labels=table) for table in tables}) == len(tables)
    assert key(soft_labels={"1": 0.5, "2": 0.25}) == key(soft_labels={"2": 0.25, "1": 0.5})


def test_everything_of_a_weighting_makes_another_entry() -> None:
    tokenizer = bpe_tokenizer()
    keys = [
        key(mark=marker(objectives.load("dpo-bmc", **changes).token_weights, tokenizer))
        for changes in ({}, {"delta": 3.0}, {"alignment": "difflib"}, {"stop_words": "none"})
    ]
    weighting = objectives.load("dpo-bmc").token_weights
    keys += [key(mark=Marker(weighting, frozenset({1, 2}))), key(mark=weights.mark), key()]
    assert len(set(keys)) == len(keys)
    assert keys[0] == key(mark=marker(weighting, bpe_tokenizer()))


def added(tokenizer: Any, *tokens: str) -> Any:
    tokenizer.add_special_tokens({"extra_special_tokens": list(tokens)})
    return tokenizer


def changed(attribute: str, value: Any) -> Any:
    tokenizer = fresh()
    setattr(tokenizer, attribute, value)
    return tokenizer


def fresh() -> Any:
    import copy

    return copy.deepcopy(bpe_tokenizer())


def test_every_part_of_a_tokenizer_makes_another_entry(tmp_path: Path) -> None:
    normalised = fresh()
    from tokenizers import normalizers

    normalised.backend_tokenizer.normalizer = normalizers.Lowercase()
    words = fresh()
    words.add_tokens(["eight minutes"])
    tokenizers = [
        fresh(),
        normalised,
        words,
        added(fresh(), "<a>"),
        added(fresh(), "<b>"),
        changed("eos_token", "egg"),
        changed("bos_token", "water"),
        changed("split_special_tokens", True),
        changed("chat_template", chat_template("zephyr")),
        changed("chat_template", chat_template("zephyr") + " "),
    ]
    keys = [key(tokenizer) for tokenizer in tokenizers]
    assert len(set(keys)) == len(keys)
    tokenizers[3].save_pretrained(tmp_path / "saved")
    from transformers import AutoTokenizer

    saved = [key(AutoTokenizer.from_pretrained(tmp_path / "saved")) for _ in range(2)]
    shutil.copytree(tmp_path / "saved", tmp_path / "moved")
    moved = key(AutoTokenizer.from_pretrained(tmp_path / "moved"))
    assert saved[0] == saved[1] == moved
    tokenizers[3]("eggs " * 9, truncation=True, max_length=4)
    assert key(tokenizers[3]) == keys[3]


def test_text_of_a_template_file_makes_another_entry(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text(chat_template("chatml"))
    first = key(chat_template=str(path))
    assert key(chat_template="chatml") == first
    path.write_text(chat_template("chatml") + "\n")
    assert key(chat_template=str(path)) != first


def test_a_template_that_prints_the_day_is_kept_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{{ strftime_now('%d %b %Y') }}" + chat_template("chatml"))
    names = (str(path), "chatml")
    before = [key(chat_template=name) for name in names]
    monkeypatch.setattr(fingerprint.time, "strftime", lambda _: "2031-01-01")
    after = [key(chat_template=name) for name in names]
    assert after[0] != before[0] and after[1] == before[1]


def test_other_code_and_other_libraries_make_another_entry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = key()
    with monkeypatch.context() as patched:
        patched.setattr(fingerprint, "code_version", lambda: "another")
        assert key() != first
    with monkeypatch.context() as patched:
        patched.setattr(fingerprint.metadata, "version", lambda _: "99.0")
        assert key() != first
    assert key() == first


def test_the_code_version_sees_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(fingerprint.__file__).parent.parent
    copied = tmp_path / "penchant"
    for name in ("data", "weights"):
        shutil.copytree(root / name, copied / name)
    shutil.copy(root / "types.py", copied)
    monkeypatch.setattr(fingerprint, "__file__", str(copied / "data" / "fingerprint.py"))
    version = fingerprint.code_version.__wrapped__
    seen = {version()}
    for name in ("types.py", "data/formats/hh.py", "data/tokens.py", "weights/_marks.py"):
        (copied / name).write_text((copied / name).read_text() + "\n")
        seen.add(version())
    assert len(seen) == 5


def test_what_cannot_be_compared_is_not_cached(path: Path, folder: Path) -> None:
    number = 3

    def own(chosen: Any, rejected: Any) -> Any:
        return weights.mark(chosen, rejected, ignored_ids=frozenset({number}))

    for mark in (own, lambda chosen, rejected: weights.mark(chosen, rejected)):
        with pytest.raises(NoFingerprintError):
            key(mark=mark)
        assert make(data.load(path), mark=mark)[0][0].marks
    assert not folder.exists()


def entry(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("harm", [truncate, flip, Path.unlink])
def test_a_damaged_entry_is_made_anew_and_said(
    path: Path, folder: Path, harm: Callable[[Path], None]
) -> None:
    trees, report = make(data.load(path), mark=weights.mark, needs_scores=True)
    expected = list(trees)
    names = [file.name for file in entry(folder).iterdir() if file.stat().st_size]
    assert {"prompt_ids", "response_masks", "marks", "report", "manifest.json"} <= set(names)
    for name in names:
        harm(entry(folder) / name)
        with pytest.warns(UserWarning, match=r"cached tokens in .* are damaged .*; made anew"):
            made, again = make(data.load(path), mark=weights.mark, needs_scores=True)
        assert list(made) == expected and again == report
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert list(make(data.load(path), mark=weights.mark, needs_scores=True)[0]) == expected


def test_a_report_from_elsewhere_runs_no_code(path: Path, folder: Path, tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    _, report = make(data.load(path))
    manifest = entry(folder) / "manifest.json"
    content = pickle.dumps(Evil())
    old = cache._digest((entry(folder) / "report").read_bytes())
    (entry(folder) / "report").write_bytes(content)
    text = manifest.read_text().replace(old, cache._digest(content))
    import json

    sealed = json.loads(text)
    sealed["digest"] = cache._digest(sealed["manifest"].encode())
    manifest.write_text(json.dumps(sealed))
    with pytest.warns(UserWarning, match="is no part of a report"):
        assert make(data.load(path))[1] == report
    assert not (tmp_path / "ran").exists()


def test_two_at_once_leave_one_whole_entry(path: Path, folder: Path) -> None:
    rows = data.load(path)
    found: list[Any] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        found.append(make(rows, num_proc=1))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(list(trees) == list(found[0][0]) for trees, _ in found)
    first = list(found[0][0])
    found.clear()
    assert [one.name for one in folder.iterdir() if one.name.startswith("partial-")] == []
    assert list(make(rows)[0]) == first and entry(folder)


def test_the_oldest_go_where_it_is_full(path: Path, folder: Path) -> None:
    for number, length in enumerate((40, 41, 42)):
        make(data.load(path), max_length=length)
        newest = max(folder.iterdir(), key=lambda one: one.stat().st_mtime)
        os.utime(newest, (1000 + number, 1000 + number))
    held, _ = make(data.load(path), max_length=40)  # Used last now.
    trees = list(held)
    sizes = [sum(file.stat().st_size for file in one.iterdir()) for one in folder.iterdir()]
    ages = sorted(folder.iterdir(), key=lambda one: one.stat().st_mtime)
    (folder / "partial-old").mkdir()
    os.utime(folder / "partial-old", (1000, 1000))
    (folder / "partial-new").mkdir()
    cache.prune(max_bytes=sum(sizes) - 1)
    assert set(folder.iterdir()) == {*ages[1:], folder / "partial-new"}
    cache.prune(max_bytes=0)
    assert set(folder.iterdir()) == {ages[2], folder / "partial-new"}
    assert list(held) == trees


def test_a_folder_that_cannot_be_written_only_costs_the_cache(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path / "file"))
    assert list(make(data.load(path))[0]) == list(make(data.load(path), cache=False)[0])


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("PENCHANT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "penchant"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache" / "penchant"


def test_temporary_folders_go_with_the_trees(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees, _ = make(data.load(path), cache=False)
    owner = trees._owner.path
    assert owner.is_dir() and len(trees) == 30 - 1
    del trees
    assert not owner.exists()
