"""A row or two of every format, in the layout in which the data set is published."""

from __future__ import annotations

import copy
from typing import Any

from tests.data.samples import ask, preference_row, say

TOOLS = [{"type": "function", "function": {"name": "boil", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "boil", "arguments": {"minutes": 8}}}


def _completion(text: str, overall: float, *ratings: str) -> dict[str, Any]:
    aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    return {
        "model": "alpaca-7b",
        "principle": "helpfulness",
        "custom_system_prompt": "As an AI assistant, be helpful.",
        "response": text,
        "critique": "Clear.",
        "overall_score": overall,
        "fine-grained_score": 2.5,
        "annotations": {
            aspect: {"Rating": rating, "Rationale": "Because."}
            for aspect, rating in zip(aspects, ratings)
        },
    }


_SHP = {
    "post_id": "qt3nxl",
    "domain": "askculinary_train",
    "upvote_ratio": 0.98,
    "history": "How long does an egg boil?",
    "c_root_id_A": "hkh25sc",
    "c_root_id_B": "hkh25lp",
    "created_at_utc_A": 1636822112,
    "created_at_utc_B": 1636822110,
    "score_A": 340,
    "score_B": 166,
    "human_ref_A": "Eight minutes.",
    "human_ref_B": "Ask your mother.",
    "labels": 1,
    "seconds_difference": 2.0,
    "score_ratio": 2.0481927711,
}

_POST = {
    "subreddit": "relationships",
    "title": "My friend (21F) eats raw eggs",
    "post": "She says that boiling them is a waste of time. What should I do?",
}

REAL_ROWS: dict[str, list[dict[str, Any]]] = {
    "preference": [
        preference_row(1),
        {
            # MT-pref, as its rows are used: rendered text.
            "prompt": "<|im_start|>user\nTranslate: Das Ei kocht.<|im_end|>\n<|im_start|>assistant",
            "chosen": "The egg is boiling.",
            "rejected": "The egg cooks itself.",
        },
        {
            # LLaMA-Factory's demo, as messages, with a tool of its own.
            "prompt": [{"role": "system", "content": ""}, ask("Boil one.")],
            "chosen": [
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "done", "name": "boil"},
                say("It is done."),
            ],
            "rejected": [say("I cannot.")],
            "tools": TOOLS,
        },
    ],
    "orca": [
        {"system": "", "question": "Which is larger?", "chosen": "Seven.", "rejected": "Three."},
    ],
    "messages": [
        {"messages": [ask("Which is larger?"), say("Seven."), ask("Why?"), say("It has more.")]},
        {"prompt": "Which is larger? ", "completion": "Seven."},
    ],
    "scored": [
        {"prompt": "Which?", "responses": ["Seven.", "Three.", "Two."], "scores": [3, 1.5, None]},
        {"question": "1+1?", "solutions": {"a": "2", "b": "3"}, "is_correct": {"a": 1, "b": 0}},
    ],
    "candidates": [
        {
            "row_id": "q:1",
            "prompt": [ask("Which?")],
            "responses": ["Seven.", "", "Three."],
            "generation": {"model": "m", "seed": 1},
        },
        {"prompt": "2 + 2 =", "responses": [" 4", " 5"]},
        {"instruction": "Which?", "output": "7", "responses": [[say("Seven.")], [say("Three.")]]},
    ],
    "answers": [
        {"id": 3, "prompt": "2 + 2 =", "answer": [" 4", " 5", ""]},
        {
            "id": 4,
            "prompt": "\n\nHuman: An egg?\n\nAssistant:",
            "answer": [" Boil it.", " No."],
        },
    ],
    "samples": [
        {
            "query": "2 + 2 =",
            "sample_0": " 4",
            "sample_1": " 5",
            "sample_2": " 4, since",
            "sample_3": " 22",
        },
        {
            "query": "\n\nHuman: An egg?\n\nAssistant:",
            "sample_0": " Boil it.",
            "sample_10": " No.",
            "sample_9": " Why?",
        },
    ],
    "kto": [
        {"prompt": [ask("Which?")], "completion": [say("Seven.")], "label": True},
        {"messages": [ask("Which?"), say("Three.")], "label": False},
        {
            "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
            "kto_tag": True,
        },
        {"instruction": "Which?", "input": "3 or 7", "output": "7", "kto_tag": False},
    ],
    "hh": [
        {
            "chosen": "\n\nHuman: Hello\n\nAssistant: Hi!\n\nHuman: An egg?\n\nAssistant: Boil it.",
            "rejected": "\n\nHuman: Hello\n\nAssistant: Hi!\n\nHuman: An egg?\n\nAssistant: No.",
        },
        {
            "prompt": "\n\nHuman: An egg?\n\nAssistant:",
            "response": " Boil it.",
            "chosen": " Boil it.",
            "rejected": " No.",
        },
    ],
    "ultrafeedback": [
        {
            "source": "evol_instruct",
            "instruction": "How do I boil an egg?",
            "models": ["alpaca-7b", "pythia-12b", "llama-2-7b-chat", "gpt-4"],
            "completions": [
                _completion("Eight minutes.", 7.5, "4", "5", "5", "4"),
                _completion("Two hours.", 10.0, "1", "1", "N/A", "1"),
                _completion("Ask.", 2.0, "2", "3", "3", "2"),
                _completion("In water, for eight minutes.", 9.0, "5", "5", "5", "5"),
            ],
            "correct_answers": ["None"],
            "incorrect_answers": ["None"],
        }
    ],
    "shp": [_SHP],
    "summarize-from-feedback": [
        {
            "info": {"id": "t3_34xale", "site": None, "article": None, **_POST},
            "summaries": [
                {"text": " Friend eats raw eggs.", "policy": "sup2", "note": None},
                {"text": " Eggs, what should I do?", "policy": "ref", "note": None},
            ],
            "choice": 1,
            "worker": "ikNmucwunMnYJCQpnq6ZYb57OW7NiD",
            "batch": "batch9",
            "split": "train",
            "extra": {"confidence": 8},
        }
    ],
    "tldr": [{"id": "t3_1hxu8s", **_POST, "summary": "Friend eats raw eggs, worried."}],
    "text-score": [
        {
            "text": [
                "\n\nHuman: An egg?\n\nAssistant: Boil it.",
                "\n\nHuman: An egg?\n\nAssistant: No.",
            ],
            "score": [1.0, 0.0],
        },
        {
            "text": [
                "## Human:\nAn egg?\n\n## Assistant:\nBoil it [1].",
                "## Human:\nAn egg?\n\n## Assistant:\nNo.",
            ],
            "score": [0.5, 1.5],
        },
        {
            "texts": ["Human: An egg?<sep>Boil it.", "Human: An egg?<sep>No."],
            "scores": [[0.3], [0.1]],
        },
        {"text": ["An egg? Boil it.", "An egg? No.", " "], "score": [2, 1, -1]},
    ],
    "dsp": [
        {
            "query": "What is an egg?",
            "responses": {
                "academy": "A cell.",
                "business": "A product.",
                "entertainment": "A joke.",
                "literature": "A beginning.",
                "normal": "Food.",
            },
        }
    ],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": "An egg?"}, {"from": "gpt", "value": "Yes"}]},
        {
            "conversations": [{"from": "human", "value": "An egg?"}],
            "chosen": {"from": "gpt", "value": "Boil it."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        {
            "system": "Use the pan.",
            "tools": '[{"name": "boil", "parameters": {}}]',
            "conversations": [
                {"from": "human", "value": "Boil one."},
                {"from": "function_call", "value": '{"name": "boil", "arguments": {"n": 1}}'},
                {"from": "observation", "value": "done"},
                {"from": "gpt", "value": "It is done."},
            ],
        },
    ],
    "alpaca": [
        {
            "instruction": "Name the larger number.",
            "input": "3, 7",
            "output": "7",
            "text": "Below is an instruction that describes a task.",
        },
        {
            "instruction": "And now?",
            "input": "",
            "chosen": "7",
            "rejected": "3",
            "system": "Be brief.",
            "history": [["Hello", "Hi"]],
        },
        {"instruction": "Which?", "input": "", "output": ["7", "3"]},
    ],
    "rewardbench": [
        {
            "prompt": "How do I boil an egg?",
            "chosen": "Eight minutes.",
            "chosen_model": "GPT4-Turbo",
            "rejected": "Two hours.",
            "rejected_model": "alpaca-7b",
            "subset": "alpacaeval-easy",
            "id": 0,
        },
        {
            "id": "factuality:0",
            "prompt": "How do I boil an egg?",
            "chosen": ["Eight minutes."],
            "rejected": ["Two hours.", "No.", "Ask."],
            "num_correct": 1,
            "subset": "Factuality",
        },
    ],
    "solutions": [
        {"question": "1+1?", "answer": "It is 2.\n#### 2", "final": "2"},
        {
            "split": "train",
            "question": "Which is larger?",
            "options": ["three", "seven"],
            "solution": "The answer is seven",
            "answer": "seven",
        },
        {"problem": "1+1", "solution": "2", "answer": "2", "subject": "Algebra", "level": 1},
    ],
}

WANTED = {"dsp": "dsp:academy"}
"""What has to be said where columns are not enough."""


def real_rows(name: str) -> list[dict[str, Any]]:
    """Rows of a format, to be changed at will."""
    return copy.deepcopy(REAL_ROWS[name])
