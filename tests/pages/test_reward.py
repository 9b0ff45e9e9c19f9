"""The evaluation's page: what it says, that it is safe, and that it fits a phone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penchant.commands._evaluate_measure import intervals
from penchant.evaluate.policy import ResponseTotals
from penchant.evaluate.preferences import (
    figures,
    judged_by_policy,
    judged_by_scores,
    rewardbench_scores,
)
from penchant.evaluate.rewardbench import SECTIONS
from penchant.evaluate.sets import read_sets
from penchant.pages.reward import reward_page
from tests.commands.world import pair, write_rows
from tests.pages.browsing import EVIL, Outline, assert_fits, without_policy
from tests.tiny import tiny_tokenizer

BASE = {"model": f"runs/{EVIL}", "revision": None, "beta": None, "dtype": "float32",
        "max_length": 96, "seed": 0, "penchant": "0", "reference": None}  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Of a reward model on two sets, one of them RewardBench; of a policy; of three pairs."""
    folder = tmp_path_factory.mktemp("rows")
    ways = intervals(0)
    rows = [pair(n) for n in range(60)] + [{"prompt": "nothing else"}]
    rows[7]["chosen"] = [{"role": "assistant", "content": "long" * 60}]
    write_rows(folder / "rows.jsonl", rows)
    subsets = [name for names in SECTIONS.values() for name in names][:-2]
    bench = [
        {"prompt": f"Q{n}", "chosen": "a", "rejected": "b", "subset": subsets[n % len(subsets)],
         "id": n}
        for n in range(84)
    ]  # fmt: skip
    bench[0]["subset"] = EVIL
    write_rows(folder / "bench.jsonl", bench)
    write_rows(folder / "few.jsonl", rows[:3])

    def sets(*names: str) -> list[Any]:
        sources = [{"path": str(folder / f"{name}.jsonl"), "name": name + EVIL} for name in names]
        return read_sets(sources, tiny_tokenizer(), format="auto", seed=0, subset_by=None,
                         settings={"max_length": 96})  # fmt: skip

    rng = np.random.default_rng(0)

    def scored(data: Any) -> dict[str, Any]:
        drawn = [rng.normal([0.8, 0.0], 1.0).tolist() for _ in data.trees]
        return figures(judged_by_scores(data, drawn), ways)

    def run(kind: str, found: list[dict[str, Any]], **facts: Any) -> dict[str, Any]:
        scores = rewardbench_scores(found)
        return BASE | {"kind": kind, "preferences": {"sets": found, "rewardbench": scores}} | facts

    two = [scored(data) for data in sets("rows", "bench")]
    few = sets("few")[0]
    plain = sets("rows")[0]
    size = 2 * len(plain.trees)
    policy, reference = (
        ResponseTotals(rng.normal(-30, 4, size), np.full(size, 9)) for _ in range(2)
    )
    judged = judged_by_policy(plain, policy, reference, 0.1)
    alone = judged_by_policy(few, ResponseTotals(-np.arange(6.0), np.full(6, 2)), None, None)
    return {
        "reward": run("reward", two),
        "policy": run("policy", [figures(judged, ways)], reference="base", beta=0.1),
        "few": run("policy", [figures(alone, ways)]),
        "one": run("reward", [figures(judged_by_scores(few, [[1, 0]] * 3), ways)]),
    }


def said(evaluation: dict[str, Any]) -> str:
    return " ".join(Outline(reward_page(evaluation)).texts).replace("\u00a0", " ")


def test_it_says_what_the_figures_say(pages: dict[str, dict[str, Any]]) -> None:
    text = said(pages["reward"])
    for one in pages["reward"]["preferences"]["sets"]:
        found = one["measures"]["reward"]
        assert f"{100 * found['accuracy']:.1f} %" in text
        assert f"{found['nll']:.3f}" in text
        for calibration in found["calibration"]:
            assert f"{calibration['ece']:.4f}" in text and f"{calibration['mce']:.4f}" in text
    score = pages["reward"]["preferences"]["rewardbench"]["reward"]["score"]
    assert f"{100 * score:.1f} %" in text
    assert "not comparable with published" in text
    assert f"rows{EVIL}, set aside: missing column 1." in text


def test_a_policys_page_has_what_it_kept_and_mended(pages: dict[str, dict[str, Any]]) -> None:
    text = said(pages["policy"])
    split = pages["policy"]["preferences"]["sets"][0]["split"]
    for part in ("easy", "hard"):
        for name in ("implicit_reward", "logp", "logp_per_token"):
            assert f"{100 * split[part]['measures'][name]['accuracy']:.1f} %" in text
    assert f"{split['easy']['shift']['chosen']:+.2f}".replace("-", "\u2212") in text
    shown = re.findall('class="value">([^<]*)<', reward_page(pages["policy"]))
    kept, mended = (split[part]["measures"]["logp"]["accuracy"] for part in ("easy", "hard"))
    assert shown[4:6] == [f"{100 * kept:.1f}\u00a0%", f"{100 * mended:.1f}\u00a0%"]
    assert "Retention" in text and "Correction" in text
    assert "Retention" not in said(pages["few"])


@pytest.mark.parametrize("name", ["reward", "policy", "few", "one"])
def test_nothing_on_it_can_run_or_be_fetched(pages: dict[str, dict[str, Any]], name: str) -> None:
    page = reward_page(pages[name])
    outline = Outline(page)
    assert not {"script", "img", "iframe", "link", "object"} & set(outline.names)
    assert not [name for name in outline.attributes if name.startswith("on")]
    assert not {"src", "href"} & set(outline.attributes)
    assert outline.names.count("h1") == 1
    assert len(page.encode()) < 400_000
    for picture in re.findall("<svg[^>]*>", page):
        assert re.search('aria-label="[^"]{20,}"', picture) or 'aria-hidden="true"' in picture


def test_each_filled_bin_has_a_dot_and_a_column(pages: dict[str, dict[str, Any]]) -> None:
    page = reward_page(pages["one"])
    found = pages["one"]["preferences"]["sets"][0]["measures"]["reward"]
    filled = [one for one in found["calibration"][1]["bins"] if one["count"]]
    assert len(filled) == 2  # all margins are 1: 0.731, and 0.269 from the other side
    bars = sum(count > 0 for count in found["margins"]["histogram"]["counts"])
    assert page.count('class="column"') == 2 * (2 + bars)  # drawn for a desk and for a phone
    assert page.count("promised 0.731") == 2


def test_the_headline_claims_only_what_the_interval_bears(
    pages: dict[str, dict[str, Any]],
) -> None:
    lead = re.search('class="lead">(.*?)</p>', reward_page(pages["few"])).group(1)
    assert "chance could give as well" in lead
    assert "beyond chance in every set" in reward_page(pages["reward"])


@pytest.mark.parametrize("name", ["reward", "policy"])
def test_a_script_in_a_name_is_text_in_a_real_browser(
    browser: Any,
    pages: dict[str, dict[str, Any]],
    tmp_path: Path,
    name: str,
) -> None:
    page = tmp_path / "page.html"
    page.write_text(without_policy(reward_page(pages[name])))
    shown = browser(page, "--dump-dom")
    assert "<title>Evaluation: runs/&lt;script" in shown and "owned</title>" not in shown
    assert "<script" not in shown and "<img" not in shown


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("name", ["reward", "policy"])
def test_it_fits_the_window(
    browser: Any,
    pages: dict[str, dict[str, Any]],
    tmp_path: Path,
    name: str,
    width: int,
) -> None:
    assert_fits(browser, reward_page(pages[name]), tmp_path, width)
