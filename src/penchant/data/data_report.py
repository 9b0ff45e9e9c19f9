"""What became of every row, before any training: the data report.

Rows in = rows used + rows set aside, always; pairs of used rows that were dropped are counted
apart.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from penchant.data.rows import SetAside, excerpt
from penchant.data.trees import Cuts
from penchant.errors import DataError
from penchant.types import TokenTree

_NUM_EXAMPLES = 3


@dataclass
class SourceReport:
    """One data set's part."""

    format: str = ""
    rows_in: int = 0
    rows_used: int = 0
    set_aside: dict[str, int] = field(default_factory=dict)
    pairs: int = 0


@dataclass
class DataReport:
    """Counts, lengths in tokens, and examples of what is wrong."""

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
    prompts_cut: int = 0
    responses_cut: int = 0
    ends_of_turn_lost: int = 0
    """Responses that no longer end as the template or EOS ends them: the cut ones."""
    prefix_retokenised: int = 0
    """Responses tokenised apart, because a token would span their border with the prompt."""
    prompt_tokens: int = 0
    response_tokens: int = 0
    scored_tokens: int = 0
    longest: int = 0
    """Tokens of the longest prompt + response."""
    mean_chosen_tokens: float | None = None
    """Scored tokens of the chosen responses, mean over pairs."""
    mean_rejected_tokens: float | None = None
    sources: dict[str, SourceReport] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What a reader should know of how the data was understood."""

    def add_set_aside(self, row: SetAside) -> None:
        """Counts a row that is not used."""
        source = self.sources.setdefault(row.source, SourceReport())
        source.rows_in += 1
        self.rows_in += 1
        for counts in (self.set_aside, source.set_aside):
            counts[row.reason] = counts.get(row.reason, 0) + 1
        shown = self.examples.setdefault(row.reason, [])
        if len(shown) < _NUM_EXAMPLES:
            given = {key: value for key, value in asdict(row).items() if key != "reason"}
            shown.append({**given, "detail": excerpt(row.detail)})

    def add_tree(self, source: str, tree: TokenTree, cuts: Cuts, dropped: Sequence[str]) -> None:
        """Counts a row that is used, and the pairs it lost on its way."""
        mine = self.sources.setdefault(source, SourceReport())
        for part in (self, mine):
            part.rows_in += 1
            part.rows_used += 1
            part.pairs += len(tree.pairs_P2)
        for reason, count in Counter(dropped).items():
            self.pairs_dropped[reason] = self.pairs_dropped.get(reason, 0) + count
        lengths = [len(ids) for ids in tree.response_ids]
        self.responses += len(lengths)
        self.prompts_cut += cuts.prompt
        self.responses_cut += sum(cuts.responses)
        self.ends_of_turn_lost += sum(cuts.responses)
        self.prompt_tokens += len(tree.prompt_ids)
        self.response_tokens += sum(lengths)
        self.scored_tokens += sum(map(sum, tree.response_masks))
        self.longest = max(self.longest, len(tree.prompt_ids) + max(lengths))

    def finish(self, trees: Sequence[TokenTree]) -> None:
        """Adds the means, and asserts that every row is accounted for."""
        sides: tuple[list[int], list[int]] = ([], [])
        for tree in trees:
            for pair in tree.pairs_P2:
                for lengths, index in zip(sides, pair, strict=True):
                    lengths.append(sum(tree.response_masks[index]))
        if sides[0]:
            self.mean_chosen_tokens = sum(sides[0]) / len(sides[0])
            self.mean_rejected_tokens = sum(sides[1]) / len(sides[1])
        parts: list[DataReport | SourceReport] = [self, *self.sources.values()]
        for part in parts:
            accounted = part.rows_used + sum(part.set_aside.values())
            assert part.rows_in == accounted, f"{part.rows_in} rows in, {accounted} accounted for"
        assert self.rows_used == len(trees), f"{self.rows_used} rows used, {len(trees)} trees"

    def reasons(self) -> str:
        """Reasons with counts, the commonest first: "empty_response 3, tie 1"."""
        ordered = sorted(self.set_aside.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{reason} {count}" for reason, count in ordered)

    def check(self, strict: bool) -> None:
        """Raises DataError where no row is left, or, if strict, where any was set aside."""
        if not self.set_aside or (self.rows_used and not strict):
            return
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
                f"{self.mean_rejected_tokens:.0f} tokens on average"
            )
        if self.set_aside:
            lines.append(f"set aside: {self.reasons()}")
        if self.prompts_cut or self.responses_cut:
            lines.append(
                f"cut: {self.prompts_cut:,} prompts, {self.responses_cut:,} of "
                f"{self.responses:,} responses, which lost their end of turn"
            )
        dropped = ", ".join(f"{reason} {count}" for reason, count in self.pairs_dropped.items())
        lines += [f"pairs dropped: {dropped}"] if dropped else []
        if self.drawn_ties:
            lines.append(
                f"{self.drawn_ties:,} pairs were drawn from equal scores, so their order says "
                "nothing; data.ties=drop leaves them out"
            )
        return lines + self.notes

    def print(self) -> None:
        """The summary on the terminal."""
        from rich.console import Console

        console = Console(highlight=False, soft_wrap=True)
        for line in self.lines():
            console.print("data  ", style="bold", end="")
            console.print(line, markup=False)
