"""The demo's page: what it says, that it is safe, and how a real browser shows it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from penchant.pages import Answer, Entry, Example, Report, demo_page
from tests.pages.browsing import EVIL, Outline, assert_fits, without_policy

STEPS = list(range(1, 61))


def _entry(name: str, gold: float, win: float | None = None) -> Entry:
    curves = {
        metric: (STEPS, [0.5 + 0.004 * step for step in STEPS])
        for metric in ("loss", "rewards/margins", "rewards/accuracies")
    }
    return Entry(
        name=name,
        gold=gold,
        gold_interval=(gold - 0.02, gold + 0.02),
        win_rate=win,
        win_interval=(win - 0.03, win + 0.03) if win else (0, 1),
        kl=None if win is None else 4.25,
        kl_interval=(4.0, 4.5),
        mean_length=12.34,
        accuracy=None if win is None else 0.765,
        curves=curves if win else {},
    )


REPORT = Report(
    num_prompts=512,
    entries=[_entry("sft", 0.41), _entry("dpo", 0.58, 0.64), _entry("mmpo", 0.55, 0.51)],
    examples=[
        Example(
            prompt="add 37 & 48 <now>",
            answers=[
                Answer(name="sft", text="85", reward=1.0),
                Answer(name="dpo", text=EVIL, reward=0.0, is_cut=True),
                Answer(name="mmpo", text="", reward=0.0),
            ],
        )
    ],
    facts=[("Command", "penchant demo")],
)


def test_the_table_holds_the_numbers() -> None:
    text = " ".join(Outline(demo_page(REPORT)).texts).replace("\u00a0", " ")
    for shown in ("0.580", "0.560 \u2013 0.600", "64.0 %", "61.0 \u2013 67.0 %", "4.25", "12.3"):
        assert shown in text
    assert "76.5 %" in text


def test_the_headline_claims_only_what_the_intervals_bear() -> None:
    def said(*entries: Entry) -> str:
        page = demo_page(replace(REPORT, entries=entries))
        return re.search('class="lead">(.*?)</p>', page).group(1).replace("\u00a0", " ")

    start = _entry("sft", 0.41)
    assert "SFT reaches 41 % of the best" in said(start)
    assert "dpo beats it." in said(start, _entry("dpo", 0.58, 0.64), _entry("mmpo", 0.5, 0.51))
    assert "no objective beats it." in said(start, _entry("dpo", 0.42, 0.52))
    both = said(start, _entry("dpo", 0.58, 0.64), _entry("mmpo", 0.6, 0.7))
    assert "mmpo reaches 60 % and wins 70 %" in both
    assert "every objective beats it." in both


def test_nothing_on_the_page_can_run_or_be_fetched() -> None:
    page = demo_page(REPORT)
    outline = Outline(page)
    assert not {"script", "img", "iframe", "link", "object"} & set(outline.names)
    assert not [name for name in outline.attributes if name.startswith("on")]
    assert not {"src", "href"} & set(outline.attributes)
    assert "url(" not in page and "@import" not in page
    assert EVIL in outline.texts


def test_it_is_small_and_has_the_structure_that_a_screen_reader_needs() -> None:
    page = demo_page(REPORT)
    outline = Outline(page)
    assert len(page.encode()) < 300_000
    assert outline.names.count("h1") == 1
    for name in ("main", "caption", "thead", "figcaption"):
        assert name in outline.names
    assert page.count('scope="col"') == 6
    assert page.count('scope="row"') == 3
    for picture in re.findall("<svg[^>]*>", page):
        assert re.search('aria-label="[^"]{20,}"', picture) or 'aria-hidden="true"' in picture


def test_several_seeds_get_a_table_of_their_own() -> None:
    wins = {"dpo": [(0.64, (0.61, 0.67)), (0.52, (0.49, 0.55))]}
    page = demo_page(replace(REPORT, seeds=[3, 4], per_seed=wins))
    assert "Seed 4" in page and "49.0 \u2013 55.0" in page
    assert "Every seed" not in demo_page(REPORT)


def test_a_warning_stands_at_the_top() -> None:
    page = demo_page(REPORT, "The figures mean <nothing>.")
    assert page.index("mean &lt;nothing&gt;.") < page.index("<table")


def test_a_script_in_an_answer_is_text_in_a_real_browser(browser, tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text(without_policy(demo_page(REPORT)))
    tree = browser(page, "--dump-dom")
    assert "<title>Penchant demo" in tree and "owned</title>" not in tree
    assert "<script" not in tree and "<img" not in tree
    assert "&lt;script&gt;document.title = 'owned'&lt;/script&gt;" in tree
    # The same browser does run scripts: were the text not escaped, the title would have changed.
    bare = tmp_path / "bare.html"
    bare.write_text(f"<!doctype html><title>Penchant demo</title><p>{EVIL}</p>")
    assert "<title>owned</title>" in browser(bare, "--dump-dom")


@pytest.mark.parametrize("width", [320, 400, 1280])
def test_nothing_is_wider_than_the_window(browser, tmp_path: Path, width: int) -> None:
    assert_fits(browser, demo_page(REPORT), tmp_path, width)
