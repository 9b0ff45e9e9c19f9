"""Prompts from every kind of row; repeated ones; what is carried; keys that stay."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from penchant import data
from penchant.errors import DataError, RecipeError
from penchant.generate.questions import read_questions
from tests.commands.world import write_rows
from tests.shared import shared_folder


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


CASES: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "prompt": ({"prompt": "Hi", "id": 3}, "Hi", {"id": 3}),
    "prompt of messages": ({"prompt": [user("Hi")]}, (user("Hi"),), {}),
    "transcript": (
        {"prompt": "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: Hm\n\nAssistant:"},
        (user("Hi"), assistant("Ho"), user("Hm")),
        {},
    ),
    "question": ({"question": "1+1?"}, (user("1+1?"),), {}),
    "gsm8k": (
        {"question": "1+1?", "answer": "2\n#### 2", "final": "2"},
        (user("1+1?"),),
        {"answer": "2\n#### 2", "final": "2"},
    ),
    "options": (
        {"question": "Which?", "options": ["A) a", "B) b"]},
        (user("Which?\nOptions:\nA) a\nB) b"),),
        {"options": ["A) a", "B) b"]},
    ),
    "problem": ({"problem": "1+1?", "level": 2}, (user("1+1?"),), {"level": 2}),
    "instruction": (
        {"instruction": "Add", "input": "1 1", "system": "Sum."},
        ({"role": "system", "content": "Sum."}, user("Add\n1 1")),
        {},
    ),
    "answers": (
        {"id": 3, "prompt": "Hi", "answer": ["a", "b"]},
        "Hi",
        {"id": 3, "answer": ["a", "b"]},
    ),
    "answers of a transcript": (
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "answer": ["a"]},
        (user("Hi"),),
        {"answer": ["a"]},
    ),
    "query": ({"query": "Hi"}, (user("Hi"),), {}),
    "messages": ({"messages": [user("Hi")]}, (user("Hi"),), {}),
    "conversation": (
        {"messages": [user("a"), assistant("b"), user("c"), assistant("d")]},
        (user("a"), assistant("b"), user("c")),
        {},
    ),
    "open conversation": (
        {"messages": [user("a"), assistant("b"), user("c")]},
        (user("a"), assistant("b"), user("c")),
        {},
    ),
    "sharegpt": (
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
                {"from": "human", "value": "c"},
                {"from": "gpt", "value": "d"},
            ]
        },
        (user("a"), assistant("b"), user("c")),
        {},
    ),
    "pair": (
        {"prompt": [user("Hi")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
        | {"score_chosen": 2, "score_rejected": 1, "subset": "x", "prompt_id": "p"},
        (user("Hi"),),
        {"subset": "x", "prompt_id": "p"},
    ),
    "scored": (
        {"prompt": "Hi", "responses": ["a", "b"], "scores": [1, 2], "task": "t"},
        "Hi",
        {"task": "t"},
    ),
    "kto": ({"prompt": "Hi", "completion": "a", "label": True}, "Hi", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_prompts_of_rows(tmp_path: Path, name: str) -> None:
    row, prompt, carried = CASES[name]
    write_rows(tmp_path / "rows.jsonl", [row])
    found = read_questions(tmp_path / "rows.jsonl")
    (question,) = found.questions
    assert question.prompt == prompt and question.row_id == "rows:1"
    assert question.carried == carried
    made = question.to_row()
    assert json.loads(json.dumps(made))["prompt"] == (
        prompt if isinstance(prompt, str) else list(prompt)
    )


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("sharegpt", "kto", "scored")])
def test_the_output_of_any_is_read_as_scored_rows(tmp_path: Path, name: str) -> None:
    """What generate writes and score adds to is one format, whatever was carried along."""
    row, prompt, _ = CASES[name]
    write_rows(tmp_path / "rows.jsonl", [row])
    (question,) = read_questions(tmp_path / "rows.jsonl").questions
    output = {**question.to_row(), "responses": ["x", "y"], "generation": {}, **question.carried}
    write_rows(tmp_path / "scored.jsonl", [output | {"scores": [1.0, 2.0]}])
    comparisons = data.load(tmp_path / "scored.jsonl")
    assert comparisons.formats == {"scored": "scored"}
    assert comparisons[0].prompt == prompt and len(comparisons[0].responses) == 2


def test_answers_that_are_odd_set_no_prompt_aside(tmp_path: Path) -> None:
    """Of MORE's files, and of questions with several right answers, only the prompt is asked."""
    rows = [{"prompt": "a", "answer": ["x"]}, {"prompt": "b", "answer": []}]
    write_rows(tmp_path / "rows.jsonl", [*rows, {"prompt": "c", "answer": ["x", 3]}])
    found = read_questions(tmp_path / "rows.jsonl")
    assert [one.prompt for one in found.questions] == ["a", "b", "c"] and not found.set_aside
    assert found.formats == {"rows": "answers"}


def test_rows_that_hold_no_prompt_are_set_aside_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi"}, {"prompt": "  "}, {"prompt": 3}, {"other": 1}, {"prompt": []}]
    write_rows(tmp_path / "rows.jsonl", rows)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("{broken\n")
    found = read_questions(tmp_path / "rows.jsonl")
    assert [one.row_id for one in found.questions] == ["rows:1"]
    reasons = {one.line: one.reason for one in found.set_aside}
    assert reasons == {
        2: "empty_prompt", 3: "wrong_type", 4: "missing_column", 5: "empty_prompt",
        6: "broken_line",
    }  # fmt: skip
    write_rows(tmp_path / "none.jsonl", [{"prompt": " "}, {"prompt": ""}])
    with pytest.raises(DataError, match="no prompt can be used; rows set aside: 2 empty_prompt"):
        read_questions(tmp_path / "none.jsonl")
    write_rows(tmp_path / "odd.jsonl", [{"post": "x"}])
    with pytest.raises(DataError, match="no format has the columns"):
        read_questions(tmp_path / "odd.jsonl")


def test_a_repeated_prompt_is_one_question_or_each(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "k": 1}, {"prompt": "b"}, {"prompt": "a", "k": 2}, {"prompt": "a"}]
    write_rows(tmp_path / "rows.jsonl", rows)
    once = read_questions(tmp_path / "rows.jsonl")
    assert [one.prompt for one in once.questions] == ["a", "b"] and once.repeated == 2
    assert once.questions[0].to_row()["same_prompt"] == ["rows:3", "rows:4"]
    assert "same_prompt" not in once.questions[1].to_row()
    each = read_questions(tmp_path / "rows.jsonl", repeated="each")
    assert [one.prompt for one in each.questions] == ["a", "b", "a", "a"] and not each.repeated
    assert len({one.key for one in each.questions}) == 4
    assert each.questions[0].key == once.questions[0].key
    assert each.questions[2].carried == {"k": 2}


def test_keys_are_of_the_prompt_not_of_its_place(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"prompt": text} for text in "abc"])
    write_rows(tmp_path / "b.jsonl", [{"prompt": text, "more": 1} for text in "cxa"])
    one, other = (read_questions(tmp_path / name) for name in ("a.jsonl", "b.jsonl"))
    keys = [{q.prompt: q.key for q in found.questions} for found in (one, other)]
    assert keys[0]["a"] == keys[1]["a"] and keys[0]["c"] == keys[1]["c"]
    assert one.digest != other.digest
    samples = {q.sample_key(n) for q in one.questions for n in range(50)}
    assert len(samples) == 150 and all(0 <= key < 2**64 for key in samples)
    # Roles and template arguments are part of what is asked.
    turns = [{"prompt": [{"role": role, "content": "a"}]} for role in ("user", "tool")]
    write_rows(tmp_path / "c.jsonl", [*turns, {**turns[0], "chat_template_kwargs": {"x": 1}}])
    assert len({q.key for q in read_questions(tmp_path / "c.jsonl").questions}) == 3


def test_a_system_prompt_and_the_user_s_turn(tmp_path: Path) -> None:
    write_rows(tmp_path / "text.jsonl", [{"prompt": "a"}])
    own = [{"role": "system", "content": "own"}, user("a")]
    write_rows(tmp_path / "chat.jsonl", [{"prompt": [user("a")]}, {"prompt": own}])
    with pytest.raises(RecipeError, match=r"text:1 is plain text.*prompt_as=user"):
        read_questions(tmp_path / "text.jsonl", system_prompt="Be brief.")
    (put,) = read_questions(
        tmp_path / "text.jsonl", system_prompt="Be brief.", prompt_as="user"
    ).questions
    assert put.prompt == ({"role": "system", "content": "Be brief."}, user("a"))
    first, second = read_questions(tmp_path / "chat.jsonl", system_prompt="Be brief.").questions
    assert first.prompt == put.prompt and second.prompt == tuple(own)
    (plain,) = read_questions(tmp_path / "text.jsonl", prompt_as="user").questions
    assert plain.prompt == (user("a"),)


def test_columns_with_the_output_s_names_are_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "row_id": "x", "error": "y", "k": 1}])
    found = read_questions(tmp_path / "rows.jsonl")
    assert found.hidden == ("error", "row_id") and found.questions[0].carried == {"k": 1}


def test_fractions_and_several_sources(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"prompt": f"a{n}"} for n in range(20)])
    write_rows(tmp_path / "b.jsonl", [{"question": f"b{n}"} for n in range(3)])
    sources = [{"path": str(tmp_path / "a.jsonl"), "rows": 5}, str(tmp_path / "b.jsonl")]
    found = read_questions(sources, seed=1)
    assert len(found.questions) == 8 and found.left_out == 15
    assert found.formats == {"a": "prompts", "b": "prompts"}
    other = read_questions(sources, seed=2)
    assert [q.row_id for q in other.questions] != [q.row_id for q in found.questions]


@pytest.mark.parametrize(
    ("name", "rows", "usable"),
    [
        ("gsm8k_test", 1319, 1319),
        ("arena_hard_questions", 1250, 1250),
        ("hh_harmless_test", 2307, None),
        ("math_math_oai", 500, 500),
        ("qa_arc", 4446, None),
        ("ultrafeedback_binarized_sample", 1200, None),
        ("gsm8k_model_solutions", 1319, None),
        ("llamafactory_kto_demo", 300, None),
    ],
)
def test_real_files_give_prompts(name: str, rows: int, usable: int | None) -> None:
    path = shared_folder() / "data" / f"{name}.jsonl.gz"
    with gzip.open(path) as file:
        assert sum(1 for _ in file) == rows
    found = read_questions(path)
    accounted = len(found.questions) + found.repeated + len(found.set_aside)
    assert accounted == rows and len(found.set_aside) <= 0.02 * rows
    if usable is not None:
        assert len(found.questions) + found.repeated == usable
    assert all(q.prompt for q in found.questions)
