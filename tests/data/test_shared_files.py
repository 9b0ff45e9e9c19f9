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
    "llamafactory_kto_demo": ("kto", 300, 150),
    "gsm8k_test": ("solutions", 1319, 1319),
    "gsm8k_train_3000": ("solutions", 3000, 3000),
    "math_math_oai": ("solutions", 500, 500),
    "qa_arc": ("solutions", 4446, 4446),
    "qa_ecqa": ("solutions", 4784, 4784),
    "qa_qasc": ("solutions", 3352, 3352),
}
"""Format, rows in and rows used."""

SFT = ("kto", "solutions")

NO_COMPARISONS = {
    "arena_hard_questions.jsonl.gz": "prompt, set, uid",
    "mt_bench_questions_refs_prompts.jsonl.gz": "turns",
    "math_svamp.jsonl.gz": "Question, Type, idx",
    "rouge_known_values.jsonl": "prediction, target",
    "chat_templates.jsonl": "name, template",
}
"""Files without anything to learn from, and some of the columns that the refusal names."""


@pytest.mark.parametrize("name", sorted(FILES))
def test_rows_in_are_rows_used_and_set_aside(name):
    folder = shared_folder() / "data"
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "tokenizer_gpt2"))
    kind, rows_in, rows_used = FILES[name]
    loaded = data.load(folder / f"{name}.jsonl.gz")
    assert loaded.formats == {name: kind}
    assert loaded.rows_in == rows_in == len(loaded) + len(loaded.set_aside)
    use = "chosen" if kind in SFT else "pairs"
    trees, report = data.build_trees(loaded, tokenizer, chat_template="chatml", use=use)
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


def test_every_file_is_read_or_refused():
    found = {path.name for path in (shared_folder() / "data").glob("*.jsonl*")}
    assert found == {f"{name}.jsonl.gz" for name in FILES} | set(NO_COMPARISONS)


@pytest.mark.parametrize("name", sorted(NO_COMPARISONS))
def test_files_without_comparisons_are_refused_by_their_columns(name):
    with pytest.raises(DataError, match=f"no format has the columns .*{NO_COMPARISONS[name]}"):
        data.load(shared_folder() / "data" / name)


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
