"""What became of every row, before any training: the data report.

Rows in = rows used + rows set aside, always; pairs of used rows that were dropped are counted
apart. Figures come from `statistics`, comparisons of rows from `content`, advice from `problems`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence, Sized
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from penchant.data import statistics
from penchant.data.content import Overlap, Repeats
from penchant.data.gathered import NUM_EXAMPLES, Gathered
from penchant.data.problems import find_problems
from penchant.data.reasons import Problem
from penchant.data.rows import SetAside, excerpt
from penchant.data.trees import Cuts
from penchant.errors import DataError
from penchant.types import Comparison, TokenTree


@dataclass
class SourceReport:
    """One data set's part."""

    format: str = ""
    rows_in: int = 0
    rows_used: int = 0
    set_aside: dict[str, int] = field(default_factory=dict)
    pairs: int = 0
    prompt_tokens: int = 0
    """Over the rows used, in the report's unit, after cutting; as the three below."""
    response_tokens: int = 0
    chosen_tokens: int = 0
    """Scored ones, over pairs."""
    rejected_tokens: int = 0
    responses: int = 0
    columns_not_read: list[str] = field(default_factory=list)
    """Of its first rows: what its format does not look at."""


@dataclass
class DataReport:
    """Counts, lengths, figures, and examples of what is wrong."""

    unit: Literal["tokens", "characters"] = "tokens"
    """What lengths are counted in: characters where there is no tokenizer."""
    rows_in: int = 0
    rows_used: int = 0
    set_aside: dict[str, int] = field(default_factory=dict)
    """Rows by reason."""
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """At most three rows for each reason: source, line, detail, excerpt."""
    left_out: int = 0
    """Rows that a fraction or number of rows did not draw; not part of rows_in."""
    pairs: int = 0
    pairs_dropped: dict[str, int] = field(default_factory=dict)
    """Pairs of used rows that are not used, by reason."""
    drawn_ties: int = 0
    """Pairs drawn by score from responses with equal scores: which is chosen says nothing."""
    responses: int = 0
    max_length: int | None = None
    """The limit that rows were cut to; None where nothing was cut."""
    prompts_cut: int = 0
    responses_cut: int = 0
    one_sided_cuts: dict[str, int] = field(default_factory=lambda: {"chosen": 0, "rejected": 0})
    """Pairs of which only this side was cut: the missing end of turn gives the label away."""
    ends_of_turn_lost: int = 0
    """Responses that no longer end as the template or EOS ends them: the cut ones."""
    prefix_retokenised: int = 0
    """Responses tokenised apart, because a token would span their border with the prompt."""
    double_bos: int = 0
    """Rows with BOS twice at the start, or again where a response begins."""
    double_ends: int = 0
    """Responses that end in the same special token twice."""
    special_in_text: int = 0
    """Rows whose words hold one of the tokenizer's special tokens."""
    prompt_tokens: int = 0
    response_tokens: int = 0
    scored_tokens: int = 0
    """Of response_tokens; the others belong to turns that are not the assistant's."""
    longest: int = 0
    """Tokens of the longest prompt + response."""
    mean_chosen_tokens: float | None = None
    """Scored tokens of the chosen responses, mean over pairs."""
    mean_rejected_tokens: float | None = None
    lengths: dict[str, statistics.Lengths] = field(default_factory=dict)
    """Before cutting: `whole` (prompt + longest response), `prompt`, `chosen` and `rejected`, or
    `response` where there are no pairs."""
    limits: list[statistics.Limit] = field(default_factory=list)
    """How many rows other values of max_length would cut."""
    length_bias: statistics.LengthBias | None = None
    """Over scored tokens of the pairs used, after cutting."""
    score_gaps: statistics.ScoreGaps | None = None
    """Of the pairs used, as the objective sees the scores."""
    repeats: Repeats = field(default_factory=Repeats)
    """Among the rows that have pairs (or, for SFT, a response)."""
    overlap: Overlap | None = None
    """In the report of evaluation data: what training has too."""
    sources: dict[str, SourceReport] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    """What is wrong, the gravest first, each with advice."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know of how the data was understood."""

    def __post_init__(self) -> None:
        # No field: what it holds is in the figures.
        self.gathered = Gathered()

    def add_set_aside(self, row: SetAside) -> None:
        """Counts a row that is not used."""
        source = self.sources.setdefault(row.source, SourceReport())
        source.rows_in += 1
        self.rows_in += 1
        for counts in (self.set_aside, source.set_aside):
            counts[row.reason] = counts.get(row.reason, 0) + 1
        shown = self.examples.setdefault(row.reason, [])
        if len(shown) < NUM_EXAMPLES:
            given = {key: value for key, value in asdict(row).items() if key != "reason"}
            shown.append({**given, "detail": excerpt(row.detail)})

    def add_tree(
        self, row: Comparison, tree: TokenTree, cuts: Cuts, dropped: Sequence[str]
    ) -> None:
        """Counts a row that is used, and the pairs it lost on its way."""
        lengths = [len(ids) for ids in tree.response_ids]
        scored = [sum(mask) for mask in tree.response_masks]
        self.add_lengths(row, len(tree.prompt_ids), lengths, scored, tree.pairs_P2)
        self.gathered.use(scored, tree.pairs_P2, tree.scores_R)
        for reason, count in Counter(dropped).items():
            self.pairs_dropped[reason] = self.pairs_dropped.get(reason, 0) + count
        self._add_cuts(row, tree, cuts)
        if self.gathered.has_double_bos(tree):
            self.double_bos += 1
            self.gathered.see("double_bos", row)
        is_cut = cuts.responses or (False,) * len(lengths)
        ends = [ids for ids, lost in zip(tree.response_ids, is_cut, strict=True) if not lost]
        doubled = sum(map(self.gathered.has_double_end, ends))
        if doubled:
            self.double_ends += doubled
            self.gathered.see("double_ends", row)

    def add_lengths(
        self,
        row: Comparison,
        prompt: int,
        lengths: Sequence[int],
        scored: Sequence[int],
        pairs: Sequence[tuple[int, int]],
    ) -> None:
        """Counts a row that is used: the lengths of its parts, and which are scored."""
        mine = self.sources.setdefault(row.source, SourceReport())
        for part in (self, mine):
            part.rows_in += 1
            part.rows_used += 1
            part.pairs += len(pairs)
            part.responses += len(lengths)
            part.prompt_tokens += prompt
            part.response_tokens += sum(lengths)
        mine.chosen_tokens += sum(scored[chosen] for chosen, _ in pairs)
        mine.rejected_tokens += sum(scored[rejected] for _, rejected in pairs)
        self.scored_tokens += sum(scored)
        self.longest = max(self.longest, prompt + max(lengths))

    def _add_cuts(self, row: Comparison, tree: TokenTree, cuts: Cuts) -> None:
        self.prompts_cut += cuts.prompt
        if cuts.prompt:
            self.gathered.see("prompts_cut", row)
        if not any(cuts.responses):
            return
        self.responses_cut += sum(cuts.responses)
        self.ends_of_turn_lost += sum(cuts.responses)
        self.gathered.see("responses_cut", row)
        for chosen, rejected in tree.pairs_P2:
            if cuts.responses[chosen] != cuts.responses[rejected]:
                side = "chosen" if cuts.responses[chosen] else "rejected"
                self.one_sided_cuts[side] += 1
                self.gathered.see("one_sided_cuts", row, f"only {side} is cut")

    def finish(self, used: Sized, bt_beta: float | None = None) -> None:
        """Turns what was gathered into figures, and asserts that every row is accounted for.

        Args:
            used: the trees.
            bt_beta: of an objective that makes soft labels of score gaps.
        """
        held = self.gathered
        self.lengths = held.lengths(self.max_length)
        if self.unit == "tokens":
            self.limits = held.limits(self.max_length)
        if held.used_chosen_P:
            chosen_P = statistics.as_values(held.used_chosen_P)
            rejected_P = statistics.as_values(held.used_rejected_P)
            self.length_bias = statistics.length_bias(chosen_P, rejected_P)
            self.mean_chosen_tokens = self.length_bias.mean_chosen
            self.mean_rejected_tokens = self.length_bias.mean_rejected
        gaps_P = statistics.as_values(held.gaps_P, float)
        self.score_gaps = statistics.score_gaps(gaps_P, bt_beta)
        parts: list[DataReport | SourceReport] = [self, *self.sources.values()]
        for part in parts:
            accounted = part.rows_used + sum(part.set_aside.values())
            assert part.rows_in == accounted, f"{part.rows_in} rows in, {accounted} accounted for"
        assert self.rows_used == len(used), f"{self.rows_used} rows used, {len(used)} trees"
        self.find_problems()

    def find_problems(self) -> None:
        """Looks for problems anew, after something was added."""
        self.problems = find_problems(self)

    def reasons(self) -> str:
        """Reasons with counts, the commonest first: "empty_response 3, tie 1"."""
        ordered = sorted(self.set_aside.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{reason} {count}" for reason, count in ordered)

    def check(self, strict: bool, max_cut_fraction: float | None = None) -> None:
        """Raises DataError where no row is left, any was set aside (strict), or too much is cut."""
        if self.set_aside and (strict or not self.rows_used):
            self._refuse()
        share = self.responses_cut / max(self.responses, 1)
        if max_cut_fraction is None or share <= max_cut_fraction:
            return
        found = next(one for one in self.problems if one.name == "responses_cut")
        raise DataError(
            f"data.max_cut_fraction is {max_cut_fraction:g}, and {self.responses_cut} of "
            f"{self.responses} responses ({share:.1%}) are cut; {found.advice}"
        )

    def _refuse(self) -> None:
        reason, rows = next(iter(self.examples.items()))
        first = rows[0]
        example = f"{first['source']}:{first['line']} {reason}: {first['detail']}".rstrip(": ")
        if not self.rows_used:
            raise DataError(f"no usable row of {self.rows_in}: {self.reasons()}; {example}")
        count = self.rows_in - self.rows_used
        raise DataError(
            f"data.strict, and {count} of {self.rows_in} rows cannot be used: {self.reasons()}; "
            f"{example}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as data_report.json holds them."""
        return asdict(self)

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as JSON text; written to `path` where one is given."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def lines(self) -> list[str]:
        """A short summary, a fact a line."""
        read = ", ".join(f"{name} as {part.format}" for name, part in self.sources.items())
        lines = [f"read {read}", f"{self.rows_used:,} of {self.rows_in:,} rows used"]
        if self.pairs:
            lines[1] += (
                f", {self.pairs:,} pairs; chosen {self.mean_chosen_tokens:.0f}, rejected "
                f"{self.mean_rejected_tokens:.0f} {self.unit} on average"
            )
        if self.set_aside:
            lines.append(f"set aside: {self.reasons()}")
        dropped = ", ".join(f"{reason} {count}" for reason, count in self.pairs_dropped.items())
        lines += [f"pairs dropped: {dropped}"] if dropped else []
        told = [one for one in self.problems if one.name not in self.set_aside]
        lines += [f"{one.text}; {one.advice}" for one in told if one.level == "warning"]
        return lines + self.notes

    def print(self) -> None:
        """The summary on the terminal."""
        from rich.console import Console

        console = Console(highlight=False, soft_wrap=True)
        for line in self.lines():
            console.print("data  ", style="bold", end="")
            console.print(line, markup=False)
