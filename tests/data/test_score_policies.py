"""Score policies together: even gaps, caps, SHP's votes and ties, mixing; spec/mmpo.md whole."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant import data
from penchant.data.pairing import even_gaps
from penchant.errors import DataError
from tests.data.real_rows import real_rows
from tests.data.samples import bpe_tokenizer, preference_row, say, write_rows


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=60),
    st.integers(2, 12),
)
@settings(deadline=None)
def test_even_gaps_never_favours_a_range(gaps, bins):
    kept = even_gaps(gaps, bins, 0)
    assert kept == sorted(set(kept)) and kept == even_gaps(gaps, bins, 0)
    low, width = min(gaps), (max(gaps) - min(gaps)) / bins
    if width == 0:
        assert kept == list(range(len(gaps)))
        return

    def place(index):
        return min(int((gaps[index] - low) / width), bins - 1)

    before = Counter(map(place, range(len(gaps))))
    after = Counter(map(place, kept))
    limit = math.ceil(len(gaps) / len(before))
    assert after == {number: min(count, limit) for number, count in before.items()}


def test_even_gaps_by_hand():
    """Ranges [0, 5) with six pairs and [5, 10] with two: at most four each."""
    gaps = [0, 1, 1, 2, 2, 4, 9, 10]
    kept = even_gaps(gaps, 2, 0)
    assert len(kept) == 6 and kept[-2:] == [6, 7]
    assert len({tuple(even_gaps(gaps, 2, seed)) for seed in range(20)}) > 1
    assert even_gaps([3, 3, 3], 4, 0) == [0, 1, 2] and even_gaps([], 4, 0) == []


def votes(tmp_path, counts, name="shp"):
    """SHP rows, each with a post of its own; the second comment has no votes."""
    rows = [
        real_rows("shp")[0]
        | {"post_id": f"p{n}", "history": f"Egg {n}?", "score_A": a, "score_B": 0}
        for n, a in enumerate(counts)
    ]
    return data.load(write_rows(tmp_path / f"{name}.jsonl", rows))


def test_gap_bins_draw_from_few_large_gaps_as_from_many_small_ones(tmp_path):
    loaded = votes(tmp_path, [1, 2, 3] * 10 + [900, 1000])
    trees, report = data.build_trees(loaded, bpe_tokenizer(), gap_bins=2)
    assert report.set_aside == {"over_gap_bin": 14} and len(trees) == 18
    assert sum(tree.scores_R[0] > 100 for tree in trees) == 2
    # On the scale that the objective sees the gaps lie otherwise.
    counts = [
        len(data.build_trees(loaded, bpe_tokenizer(), gap_bins=10, score_transform=how)[0])
        for how in ("raw", "log")
    ]
    assert counts[0] == 13 and counts[1] != counts[0]
    other, _ = data.build_trees(loaded, bpe_tokenizer(), gap_bins=2, seed=7)
    assert [tree.row_id for tree in other] != [tree.row_id for tree in trees]
    everything, _ = data.build_trees(loaded, bpe_tokenizer())
    assert len(everything) == 32


def test_gap_bins_need_scores_and_count_each_data_set_alone(tmp_path):
    plain = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    path = write_rows(tmp_path / "plain.jsonl", [plain])
    with pytest.raises(DataError, match="data set 'plain' has none"):
        data.build_trees(data.load(path), bpe_tokenizer(), gap_bins=2)
    with pytest.raises(DataError, match="gap_bins is 1"):
        data.build_trees(data.load(path), bpe_tokenizer(), gap_bins=1)
    few = votes(tmp_path, [1, 1, 1, 9], "few")
    many = votes(tmp_path, [10] * 6 + [5000] * 6, "many")
    _, report = data.build_trees([*few, *many], bpe_tokenizer(), gap_bins=2)
    assert report.sources["few"].rows_used == 3 and report.sources["many"].rows_used == 12


def test_shp_has_a_cap_of_five_pairs_unless_the_recipe_has_one(tmp_path):
    (row,) = real_rows("shp")
    shp = [row | {"human_ref_A": f"Answer {n}."} for n in range(8)]
    usual = [preference_row(0, chosen=[say(f"A{n}")]) for n in range(8)]
    sources = [write_rows(tmp_path / "shp.jsonl", shp), write_rows(tmp_path / "p.jsonl", usual)]
    loaded = data.load(sources)
    for cap, expected in ((None, (5, 8)), (3, (3, 3)), (99, (8, 8))):
        _, report = data.build_trees(loaded, bpe_tokenizer(), max_pairs_per_prompt=cap)
        used = tuple(report.sources[name].rows_used for name in ("shp", "p"))
        assert used == expected
    _, sft = data.build_trees(loaded, bpe_tokenizer(), use="chosen")
    assert sft.rows_used == 16


def test_shp_ties_are_kept_with_the_label_or_dropped(tmp_path):
    (row,) = real_rows("shp")
    tie = row | {"score_A": 166, "labels": 0, "post_id": "x"}
    loaded = data.load(write_rows(tmp_path / "shp.jsonl", [row, tie]))
    trees, _ = data.build_trees(loaded, bpe_tokenizer(), needs_scores=True)
    assert [tree.pairs_P2 for tree in trees] == [((0, 1),), ((1, 0),)]
    trees, report = data.build_trees(loaded, bpe_tokenizer(), ties="drop")
    assert len(trees) == 1 and report.set_aside == {"tie": 1}


def test_votes_saturate_and_a_transform_mends_it(tmp_path):
    """spec/mmpo.md A2.11: raw vote gaps make every soft label 1; log and rank do not."""
    loaded = votes(tmp_path, [40, 90, 300, 2000])
    for how, saturated in (("raw", 4), ("log", 0), ("rank", 0)):
        trees, _ = data.build_trees(loaded, bpe_tokenizer(), score_transform=how)
        labels = [1 / (1 + math.exp(-1.1 * (t.scores_R[0] - t.scores_R[1]))) for t in trees]
        assert sum(label > 0.9999 for label in labels) == saturated


def test_policies_apply_to_the_source_scores_and_all_at_once(tmp_path):
    """Gap, tie and sign are read before the transform; cap and bins come after them."""
    rows = [
        preference_row(0, score_chosen=5, score_rejected=4),
        preference_row(1, score_chosen=4, score_rejected=4),
        preference_row(2, score_chosen=1, score_rejected=4),
        preference_row(3, score_chosen=9, score_rejected=1),
        preference_row(4, score_chosen=None, score_rejected=None),
        preference_row(5, score_chosen=9),
    ]
    loaded = data.load(write_rows(tmp_path / "a.jsonl", rows))
    fields = {"needs_scores": True, "ties": "drop", "min_score_gap": 2, "negative_gap": "swap"}
    trees, report = data.build_trees(loaded, bpe_tokenizer(), score_transform="rank", **fields)
    assert [tree.row_id for tree in trees] == ["a:3", "a:4", "a:6"]
    assert report.set_aside == {"score_gap_too_small": 1, "tie": 1, "missing_score": 1}
    assert trees[0].pairs_P2 == ((1, 0),)
    assert all(t.scores_R[t.pairs_P2[0][0]] > t.scores_R[t.pairs_P2[0][1]] for t in trees)


def test_a_mix_of_fractions_caps_and_decontamination(tmp_path):
    first = write_rows(tmp_path / "a.jsonl", [preference_row(n) for n in range(40)])
    second = write_rows(tmp_path / "b.jsonl", [preference_row(n) for n in range(100, 140)])
    leaked = write_rows(tmp_path / "test.jsonl", [{"prompt": "How do I boil egg number 105?"}])
    sources = [{"path": str(first), "fraction": 0.25}, {"path": str(second), "rows": 40}]
    loaded = data.load(sources, decontaminate=[str(leaked)])
    _, report = data.build_trees(loaded, bpe_tokenizer())
    assert report.sources["a"].rows_used == 10 and report.sources["b"].rows_used == 39
    assert report.set_aside == {"contaminated": 1} and report.left_out == 30
    assert report.rows_in == 50
