"""Prompts from files of any format: rows with responses, whose prompt is taken, or without.

Rows that have no response are read as their format would read them with one: `prompt`; `question`
or `problem`, with its `options`; `instruction` and `input`; `query`; `messages`. Of a conversation
everything up to its last answer is the prompt. The other columns are carried along, but for those
by which a format would take the output for something else.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from penchant.data import fields
from penchant.data.formats import alpaca, answers, detect, solutions, usual_columns
from penchant.data.reading import looked_at
from penchant.data.rows import Row, RowError, SetAside, excerpt
from penchant.data.source import Source, parse_sources, read_rows
from penchant.data.transcripts import is_transcript, turns
from penchant.errors import DataError, RecipeError
from penchant.types import Comparison, Text

OWN = ("row_id", "prompt", "responses", "generation", "error", "same_prompt")
"""Columns that the output has itself."""
NOT_CARRIED = frozenset({
    "messages", "conversations", "question", "problem", "instruction", "input", "query", "history",
    "system", "chosen", "rejected", "completion", "completions", "output", "solutions", "text",
    "texts", "label", "labels", "kto_tag", "is_correct", "score", "scores", "rating", "ratings",
    "score_chosen", "score_rejected", "chosen_score", "rejected_score", "chosen_rating",
    "rejected_rating", "chosen-rating", "rejected-rating",
})  # fmt: skip
"""Columns that hold prompts, responses and scores in some format: the output's are others."""
PLAIN = "prompts"
"""What `data.format` calls rows of prompts without responses."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt that is to be answered."""

    index: int
    """Its place in the output, from 0."""
    row_id: str
    prompt: Text
    """As the model is asked."""
    key: str
    """16 hexadecimal digits that stand for what is asked; where rows repeat a prompt, and each is
    answered, also for which of them it is."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    carried: Mapping[str, Any] = field(default_factory=dict)
    """Columns of the row that the output keeps."""
    same_prompt: tuple[str, ...] = ()
    """Further rows with this prompt, which are not answered again."""
    lead: str = ""
    """White space that the chat template writes before an answer: no part of the answer's text."""

    def answer_text(self, text: str) -> str:
        """A model's words without what its template writes anyway."""
        return text.removeprefix(self.lead)

    def sample_key(self, sample: int) -> int:
        """64 bits for one of its samples: with the seed they decide what is drawn."""
        return int.from_bytes(_digest(f"{self.key}:{sample}"), "big")

    def to_row(self) -> dict[str, Any]:
        """What its row of the output begins with."""
        prompt = self.prompt if isinstance(self.prompt, str) else list(self.prompt)
        row: dict[str, Any] = {"row_id": self.row_id, "prompt": prompt}
        return row | ({"same_prompt": list(self.same_prompt)} if self.same_prompt else {})


@dataclass(frozen=True)
class Questions:
    """All prompts of a recipe's data, and what became of the other rows."""

    questions: tuple[Question, ...]
    set_aside: tuple[SetAside, ...] = ()
    left_out: int = 0
    """Rows that `fraction` or `rows` did not draw."""
    repeated: int = 0
    """Rows whose prompt an earlier row has; not answered again."""
    formats: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    """Columns not carried along because the output has its own of that name."""

    @property
    def digest(self) -> str:
        """Equal for the same prompts in the same order, whatever else the rows hold."""
        return _digest("\n".join(one.key for one in self.questions)).hex()


def read_questions(
    sources: Any,
    *,
    format: str = "auto",
    seed: int = 42,
    prompt_as: str = "text",
    system_prompt: str | None = None,
    repeated: str = "once",
) -> Questions:
    """The prompts of some sources, in order.

    Args:
        sources: as of `penchant.data.load`.
        format: a format's name, `prompts` for rows without responses, or "auto".
        seed: decides which rows a fraction draws.
        prompt_as: "text" leaves plain-text prompts as they are, "user" makes each a user's turn.
        system_prompt: first turn of conversations without a system turn.
        repeated: "once" or "each": whether rows with the same prompt are one question.
    Raises:
        MissingFileError: a source is not there.
        DataError: a source is empty or has no known format, or no prompt remains.
        RecipeError: a system prompt for prompts that are plain text.
    """
    comparisons: list[tuple[Comparison, Mapping[str, Any]]] = []
    set_aside: list[SetAside] = []
    formats: dict[str, str] = {}
    left_out = 0
    for source in parse_sources(sources):
        rows, num_left = read_rows(source, seed)
        left_out += num_left
        for found in _comparisons(source, rows, format, formats):
            if isinstance(found, SetAside):
                set_aside.append(found)
            else:
                comparisons.append(found)
    asked = [(_asked(one, prompt_as, system_prompt), row) for one, row in comparisons]
    if not asked:
        reasons = Counter(one.reason for one in set_aside)
        raise DataError(f"no prompt can be used; rows set aside: {_counted(reasons)}")
    questions, num_repeated = _numbered(asked, repeated)
    hidden = {name for _, row in comparisons for name in row if name in OWN and name != "prompt"}
    return Questions(
        tuple(questions), tuple(set_aside), left_out, num_repeated, formats, tuple(sorted(hidden))
    )


def _comparisons(
    source: Source, rows: Iterator[Row | SetAside], format: str, formats: dict[str, str]
) -> Iterator[tuple[Comparison, Mapping[str, Any]] | SetAside]:
    values, rows = looked_at(rows)
    read, formats[source.name] = _reader(values, source.name, source.format or format)
    for row in rows:
        if isinstance(row, SetAside):
            yield row
            continue
        try:
            found = read(row.value, row.row_id, row.source)
            if fields.is_empty(found.prompt):
                raise RowError("empty_prompt", "the prompt holds no text")
            yield found, row.value
        except RecursionError:
            yield SetAside(row.source, row.line, "broken_line", "nested too deep")
        except RowError as error:
            shown = excerpt(row.value)
            yield SetAside(row.source, row.line, error.reason, error.detail, shown)


def _reader(values: Sequence[Mapping[str, Any]], name: str, wanted: str) -> tuple[Any, str]:
    """What reads a row of these, and the format's name."""
    columns = usual_columns(values)
    is_plain = bool(columns & {"messages", "prompt", "question", "problem", "instruction", "query"})
    compares = {"chosen", "rejected"} & columns
    if wanted == PLAIN or (wanted == "auto" and "messages" in columns and not compares):
        return _plain, PLAIN
    try:
        reader = detect(values, name, wanted)
    except DataError as error:
        # More than one format fits: then the user says which. None fits: prompts by themselves?
        if wanted != "auto" or "more than one format" in str(error) or not is_plain:
            raise
        return _plain, PLAIN
    if reader.module.NAME == answers.NAME:
        return _plain, reader.label  # whatever was answered: of these rows only the prompt is asked
    return reader.read, reader.label


def _plain(row: Mapping[str, Any], row_id: str, source: str) -> Comparison:
    """A row without a response, with a prompt in any of its usual columns; raises RowError."""
    more: dict[str, Any] = {"template_kwargs": fields.template_kwargs(row)}
    if row.get("messages") is not None:
        said = fields.messages(row["messages"], "messages")
        while said and said[-1]["role"] == "assistant":
            said = said[:-1]
        prompt: Text = said
    elif row.get("prompt") is not None:
        prompt = fields.text(row["prompt"], "prompt")
        if isinstance(prompt, str) and is_transcript(prompt):
            prompt = turns(prompt, "prompt")
            while prompt and prompt[-1] == {"role": "assistant", "content": ""}:
                prompt = prompt[:-1]
    elif row.get("question") is not None or row.get("problem") is not None:
        prompt = solutions.read({**row, "solution": "."}, row_id, source).prompt
    elif row.get("instruction") is not None:
        known = {name: row.get(name) for name in ("instruction", "input", "system", "history")}
        prompt = alpaca.read({**known, "output": "."}, row_id, source).prompt
    elif row.get("query") is not None:
        prompt = fields.user_turn(fields.checked_string(row["query"], "query"))
    else:
        raise RowError("missing_column", "no prompt, messages, question, instruction or query")
    if not prompt:
        raise RowError("empty_prompt", "no turn comes before the answer")
    return Comparison(row_id=row_id, prompt=prompt, responses=(), source=source, **more)


def _asked(row: Comparison, prompt_as: str, system_prompt: str | None) -> Comparison:
    """The row with its prompt as the model is asked."""
    prompt: Any = row.prompt
    if len(row.responses) == 1 and not row.pairs and not isinstance(row.responses[0], str):
        # Of a conversation that nobody compared, everything before its last answer.
        said: Any = row.responses[0]
        last = max((i for i, turn in enumerate(said) if turn["role"] == "assistant"), default=0)
        prompt = (*prompt, *said[:last])
    if isinstance(prompt, str) and prompt_as == "user":
        prompt = fields.user_turn(prompt)
    if system_prompt is not None:
        if isinstance(prompt, str):
            raise RecipeError(
                f"system_prompt is given, but {row.row_id} is plain text, which has no turns; "
                "set prompt_as=user, or leave system_prompt out"
            )
        if prompt[0]["role"] != "system":
            prompt = ({"role": "system", "content": system_prompt}, *prompt)
    return replace(row, prompt=prompt)


def _numbered(
    asked: Sequence[tuple[Comparison, Mapping[str, Any]]], repeated: str
) -> tuple[list[Question], int]:
    """Questions with their keys, and how many rows are not asked because an earlier one is."""
    questions: list[Question] = []
    seen: dict[bytes, list[int]] = {}
    same: dict[int, list[str]] = {}
    for row, columns in asked:
        content = _digest(json.dumps([row.prompt, row.template_kwargs], sort_keys=True))
        places = seen.setdefault(content, [])
        if places and repeated == "once":
            same.setdefault(places[0], []).append(row.row_id)
            continue
        places.append(len(questions))
        which = f":{len(places)}" if len(places) > 1 else ""
        questions.append(
            Question(
                index=len(questions),
                row_id=row.row_id,
                prompt=row.prompt,
                key=_digest(content.hex() + which).hex(),
                template_kwargs=row.template_kwargs,
                carried=_carried(columns),
            )
        )
    for place, ids in same.items():
        questions[place] = replace(questions[place], same_prompt=tuple(ids))
    return questions, len(asked) - len(questions)


def _carried(row: Mapping[str, Any]) -> dict[str, Any]:
    """Columns that the output keeps, as JSON can hold them."""
    kept = {
        name: value
        for name, value in row.items()
        if name not in OWN and name not in NOT_CARRIED and value is not None
    }
    return json.loads(json.dumps(kept, default=str)) if kept else {}


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items())) or "none"
