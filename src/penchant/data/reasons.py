"""What a problem of the data is; and the advice for rows set aside, reason by reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

ADVICE = {
    "broken_line": "mend or remove these lines",
    "missing_column": "name the format with data.format=..., or fill the column",
    "wrong_type": "mend these rows; their detail says what stands where",
    "bad_text": "mend these rows: they hold text that UTF-8 cannot",
    "empty_response": "nothing to do: an empty response teaches nothing",
    "empty_prompt": "give these rows a prompt, or a tokenizer that has a BOS token",
    "chosen_equals_rejected": "nothing to do: equal responses teach no preference",
    "equal_after_cut": "the two sides differ only beyond data.max_length",
    "prompt_too_long": "the prompt alone fills data.max_length",
    "too_long": "data.overlong=cut would keep these rows, cut",
    "nothing_scored": "no assistant token is left to learn from; raise data.max_length",
    "nan_score": "the objective needs two scores that are numbers",
    "missing_score": "the objective needs scores; add them or take objective=dpo",
    "no_pair": "for rows with one response use penchant sft",
    "no_soft_label": "add these prompt ids to the table of soft labels",
    "tie": "as asked by data.ties=drop",
    "score_gap_too_small": "as asked by data.min_score_gap",
    "negative_gap": "as asked by data.negative_gap=drop",
    "over_pair_cap": "as asked by data.max_pairs_per_prompt (for SHP 5 where it is not given)",
    "over_gap_bin": "as asked by data.gap_bins",
    "thumb_down": "nothing to do: nobody should learn a response with its thumb down",
    "no_assistant_turn": "mend these rows: a conversation ends with a turn of the assistant",
    "unknown_role": "rename the speaker to human, gpt, system or tool",
    "not_a_transcript": "mend these rows, or read them as text with data.format=preference",
    "scores_do_not_fit": "mend these rows: each response needs one score",
    "prompt_per_response": "give each prompt a row of its own",
    "contaminated": "as asked by data.decontaminate",
    "template_not_prefix": "choose another template with data.chat_template",
    "template_error": "the chat template refuses these conversations; detail says why",
}
ASKED_FOR = {
    "tie", "score_gap_too_small", "negative_gap", "over_pair_cap", "over_gap_bin", "contaminated",
    "too_long", "empty_response", "chosen_equals_rejected", "thumb_down",
}  # fmt: skip
"""Nobody need be warned of these."""
NEEDS_LENGTH = {"equal_after_cut", "prompt_too_long"}
"""Another max_length would keep some of these."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong with the data, or that a reader should know."""

    name: str
    level: Literal["warning", "note"]
    count: int
    of: int
    what: str
    """What is counted: rows, pairs, responses, prompts."""
    text: str
    """What was found, with its figure."""
    advice: str
    """What to do about it."""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """At most three: row_id, detail, excerpt."""
