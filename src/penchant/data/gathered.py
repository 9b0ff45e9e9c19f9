"""What a data report collects row by row, in flat arrays, before it becomes figures."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from penchant.data import statistics
from penchant.data.fields import plain_text
from penchant.data.rows import excerpt
from penchant.types import Comparison, TokenTree

NUM_EXAMPLES = 3


@dataclass
class Gathered:
    """Lengths, gaps and examples; eight bytes a number, so that a million rows fit in memory."""

    bos_id: int | None = None
    special_ids: frozenset[int] = frozenset()
    prompt_N: array[int] = field(default_factory=lambda: array("q"))
    whole_N: array[int] = field(default_factory=lambda: array("q"))
    """Prompt and longest response of each row, before anything is cut."""
    chosen_P: array[int] = field(default_factory=lambda: array("q"))
    rejected_P: array[int] = field(default_factory=lambda: array("q"))
    response_N: array[int] = field(default_factory=lambda: array("q"))
    """Responses of rows without pairs."""
    used_chosen_P: array[int] = field(default_factory=lambda: array("q"))
    """Scored tokens of the pairs that are used, after cutting."""
    used_rejected_P: array[int] = field(default_factory=lambda: array("q"))
    gaps_P: array[float] = field(default_factory=lambda: array("d"))
    seen: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """At most three rows for each problem of rows that are used."""

    def measure(
        self, prompt: int, responses: Sequence[int], pairs: Sequence[tuple[int, int]]
    ) -> None:
        """Takes in the lengths of a row before anything is cut, whatever becomes of it."""
        self.prompt_N.append(prompt)
        self.whole_N.append(prompt + max(responses))
        for chosen, rejected in pairs:
            self.chosen_P.append(responses[chosen])
            self.rejected_P.append(responses[rejected])
        if not pairs:
            self.response_N.extend(responses)

    def use(
        self,
        scored: Sequence[int],
        pairs: Sequence[tuple[int, int]],
        scores: Sequence[float] | None,
    ) -> None:
        """Takes in the pairs of a row that is used."""
        for chosen, rejected in pairs:
            self.used_chosen_P.append(scored[chosen])
            self.used_rejected_P.append(scored[rejected])
            if scores is not None:
                self.gaps_P.append(scores[chosen] - scores[rejected])

    def see(self, problem: str, row: Comparison, detail: str = "") -> None:
        """Keeps the row as an example of a problem, if it is among the first."""
        shown = self.seen.setdefault(problem, [])
        if len(shown) < NUM_EXAMPLES:
            words = " | ".join(map(plain_text, (row.prompt, *row.responses)))
            shown.append({"row_id": row.row_id, "detail": detail, "excerpt": excerpt(words)})

    def has_double_bos(self, tree: TokenTree) -> bool:
        """BOS twice at the start, or again where the response begins."""
        bos = self.bos_id
        if bos is None:
            return False
        again = any(len(ids) > 1 and ids[0] == bos for ids in tree.response_ids)
        return again or tree.prompt_ids[:2] == (bos, bos)

    def has_double_end(self, ids: Sequence[int]) -> bool:
        """The same special token twice in a row at the end, but for a newline after it."""
        tail = ids[-4:]
        return any(a == b and a in self.special_ids for a, b in pairwise(tail))

    def lengths(self, max_length: int | None) -> dict[str, statistics.Lengths]:
        """Of each kind of text that was measured; chosen and rejected over the same edges."""
        kinds = {
            ("whole",): [self.whole_N],
            ("prompt",): [self.prompt_N],
            ("chosen", "rejected"): [self.chosen_P, self.rejected_P],
            ("response",): [self.response_N],
        }
        found: dict[str, statistics.Lengths] = {}
        for names, arrays in kinds.items():
            if not arrays[0]:
                continue
            values = [statistics.as_values(one) for one in arrays]
            edges, is_open = statistics.length_edges(
                *values, limit=(max_length or 0) if names == ("whole",) else 0
            )
            for name, value in zip(names, values, strict=True):
                found[name] = statistics.lengths(value, edges, is_open)
        return found

    def limits(self, max_length: int | None) -> list[statistics.Limit]:
        """What several values of max_length would cut, the given one among them."""
        if not self.whole_N:
            return []
        whole_N = statistics.as_values(self.whole_N)
        wanted = {statistics.limit_for(whole_N, share) for share in (0.0, 0.01, 0.05, 0.1)}
        wanted |= {max_length} if max_length else set()
        return [
            statistics.Limit(limit, statistics.cut_by_limit(whole_N, limit), len(whole_N))
            for limit in sorted(wanted)
        ]
