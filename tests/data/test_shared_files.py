"""The public files, read and tokenised with GPT-2's tokenizer: every row accounted for."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from penchant import data
from penchant.errors import DataError
from tests.shared import shared_folder

FILES = {
    "ultrafeedback_binarized_sample": ("preference", 1200, 1193),
    "hh_harmless_test": ("preference", 2307, 2303),
    "llamafactory_dpo_demo": ("preference", 600, 600),
    "gsm8k_model_solutions": ("scored", 1319, 1319),
    "prometheus_rubric_scores": ("scored", 160, 80),
}


@pytest.mark.parametrize("name", sorted(FILES))
def test_rows_in_are_rows_used_and_set_aside(name):
    folder = shared_folder() / "data"
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "tokenizer_gpt2"))
    kind, rows_in, rows_used = FILES[name]
    loaded = data.load(folder / f"{name}.jsonl.gz")
    assert loaded.formats == {name: kind}
    trees, report = data.build_trees(loaded, tokenizer, chat_template="chatml")
    assert (report.rows_in, report.rows_used) == (rows_in, rows_used)
    assert rows_in == rows_used + sum(report.set_aside.values()) and len(trees) == rows_used
    assert report.longest <= 1024


def test_ids_equal_the_template_of_the_whole():
    """ChatML without tokens of its own, so that words may merge over the border; then counted."""
    folder = shared_folder() / "data"
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "tokenizer_gpt2"))
    tokenizer.chat_template = data.chat_template("chatml")
    files = ["ultrafeedback_binarized_sample", "hh_harmless_test", "llamafactory_dpo_demo"]
    sources = [{"path": str(folder / f"{name}.jsonl.gz"), "rows": 80} for name in files]
    loaded = data.load(sources)
    trees, report = data.build_trees(loaded, tokenizer, max_length=10**6)
    rows = {row.row_id: row for row in loaded}
    differing = 0
    for tree in trees:
        row = rows[tree.row_id]
        for response, ids in zip(row.responses, tree.response_ids, strict=True):
            whole = tokenizer.apply_chat_template([*row.prompt, *response], return_dict=False)
            differing += [*tree.prompt_ids, *ids] != whole
    assert len(trees) > 200 and differing == report.prefix_retokenised


def test_unpaired_labels_are_refused_by_name():
    with pytest.raises(DataError, match="completion, label, prompt"):
        data.load(shared_folder() / "data" / "llamafactory_kto_demo.jsonl.gz")


def test_evaluation_files_serve_for_decontamination():
    folder = shared_folder() / "data"
    loaded = data.load(
        folder / "gsm8k_model_solutions.jsonl.gz",
        decontaminate=[str(folder / "gsm8k_test.jsonl.gz")],
    )
    # The solutions answer the questions of the test set: nothing may be left.
    assert len(loaded) == 0 and {row.reason for row in loaded.set_aside} == {"contaminated"}
    clean = data.load(
        folder / "hh_harmless_test.jsonl.gz",
        decontaminate=[str(folder / "arena_hard_questions.jsonl.gz")],
    )
    assert len(clean) >= 2300
