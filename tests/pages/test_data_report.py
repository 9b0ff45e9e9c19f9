"""The data report's page: what it says, that it is safe, small and readable on a phone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from penchant import data
from penchant.pages.data_report import data_page
from tests.data.samples import ask, bpe_tokenizer, preference_row, say, write_rows
from tests.pages.browsing import EVIL, Outline, assert_fits, without_policy


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Rows with every kind of trouble, some of them hostile; evaluation data too."""
    folder = tmp_path_factory.mktemp("rows")
    rows = [preference_row(n) for n in range(20)]
    rows += [preference_row(0), preference_row(30, chosen=[say("")], prompt=[ask(EVIL)])]
    rows += [preference_row(31, chosen=[say(EVIL + " word" * 90)])]
    write_rows(folder / "<b>name.jsonl", rows)
    write_rows(folder / "eval.jsonl", [preference_row(0), preference_row(50)])
    train = data.load(folder / "<b>name.jsonl")
    evaluation = data.load(folder / "eval.jsonl")
    found = data.report(train, bpe_tokenizer(), max_length=128, bt_beta=3.0)
    other = data.report(evaluation, bpe_tokenizer(), max_length=128)
    other.overlap = data.overlap(train, evaluation)
    other.find_problems()
    return found.to_dict() | {"eval": other.to_dict()}


def test_it_says_what_the_report_says(report: dict[str, Any]) -> None:
    text = " ".join(Outline(data_page(report)).texts).replace("\u00a0", " ")
    assert "22 of 23 rows can be used, as 22 pairs." in text
    for shown in ("<b>name", "max_length 128", "empty response", "repeats <b>name:1", "hard"):
        assert shown in text
    for one in [*report["problems"], *report["eval"]["problems"]]:
        assert one["text"][1:] in text and one["advice"] in text


def test_every_bar_of_every_histogram_is_drawn(report: dict[str, Any]) -> None:
    page = data_page(report | {"eval": None})
    drawn = len(re.findall('<rect[^>]*class="column', page))
    filled = [report["lengths"][name]["histogram"] for name in ("whole", "chosen", "prompt")]
    filled += [report["score_gaps"]["histogram"], report["score_gaps"]["soft_labels"]["histogram"]]
    bars = sum(sum(count > 0 for count in one["counts"]) for one in filled)
    assert drawn == 2 * bars + 3  # Wide and narrow; and the bar of three parts.


def test_nothing_on_it_can_run_or_be_fetched(report: dict[str, Any]) -> None:
    page = data_page(report)
    outline = Outline(page)
    assert not {"script", "img", "iframe", "link", "object", "b"} & set(outline.names)
    assert not [name for name in outline.attributes if name.startswith("on")]
    assert not {"src", "href"} & set(outline.attributes)
    assert "url(" not in page and "@import" not in page
    assert len(page.encode()) < 300_000
    for picture in re.findall("<svg[^>]*>", page):
        assert re.search('aria-label="[^"]{20,}"', picture)


def test_without_pairs_or_rows_there_is_still_a_page(tmp_path: Path) -> None:
    chats = [{"messages": [ask("Q"), say("A" * n)]} for n in (1, 5)]
    sft = data.text_report(data.load(write_rows(tmp_path / "c.jsonl", chats)), use="chosen")
    text = " ".join(Outline(data_page(sft.to_dict())).texts)
    assert "All 2 rows can be used, as 2 responses. Nothing wrong was found." in text
    none = [preference_row(0, chosen=[say("")])]
    empty = data.text_report(data.load(write_rows(tmp_path / "n.jsonl", none)))
    assert "None of the 1 rows can be used." in " ".join(Outline(data_page(empty.to_dict())).texts)


def test_a_script_in_an_excerpt_is_text_in_a_real_browser(
    browser: Any,
    report: dict[str, Any],
    tmp_path: Path,
) -> None:
    page = tmp_path / "page.html"
    page.write_text(without_policy(data_page(report)))
    tree = browser(page, "--dump-dom")
    assert "<title>Data report: &lt;b&gt;name</title>" in tree and "owned</title>" not in tree
    assert "<script" not in tree and "<img" not in tree
    assert "&lt;script&gt;document.title = 'owned'&lt;/script&gt;" in tree


@pytest.mark.parametrize("width", [320, 1280])
def test_it_fits_the_window(
    browser: Any,
    report: dict[str, Any],
    tmp_path: Path,
    width: int,
) -> None:
    assert_fits(browser, data_page(report), tmp_path, width)
