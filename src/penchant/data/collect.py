"""What was made of the rows, into the report and into the files of trees, in the order of rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

from penchant.data import content
from penchant.data.data_report import DataReport
from penchant.data.making import Made
from penchant.data.parallel import MadeBatch
from penchant.data.plan import Planned, set_aside
from penchant.data.rows import RowError
from penchant.data.store import TreeWriter, pack
from penchant.data.trees import prune
from penchant.types import Comparison


@final
@dataclass
class Collector:
    """Counts rows one after another."""

    report: DataReport
    special: Any
    """Pattern of special tokens; None where the tokenizer has none."""
    has_template: bool
    _has_strings: bool = False
    _num_unprinted: int = 0
    _first_unprinted: str = ""

    def collect(self, batches: Iterable[MadeBatch], writer: TreeWriter) -> None:
        """Writes the trees, without responses that no pair uses; every row is counted."""
        for batch in batches:
            trees = []
            is_pruned = False
            for one, made in zip(batch.planned, batch.made, strict=True):
                self.add(one, made)
                if made.tree is not None:
                    trees.append(prune(made.tree))
                    is_pruned |= trees[-1] is not made.tree
            as_made = None if is_pruned else batch.columns
            writer.append(pack(trees) if as_made is None else as_made)
        self._add_notes()

    def add(self, one: Planned, made: Made) -> None:
        """Puts a row's outcome into the report."""
        report = self.report
        self._find_special(one.row)
        self._has_strings |= isinstance(one.row.prompt, str)
        if made.not_printed:
            self._first_unprinted = self._first_unprinted or one.row.row_id
            self._num_unprinted += 1
        if made.response_lengths:
            # As they are before anything is cut, of rows that are set aside later too.
            report.gathered.measure(made.prompt_length, made.response_lengths, one.plan.pairs)
        if made.error is not None:
            report.add_set_aside(set_aside(one.row, RowError(*made.error)))
            return
        assert made.tree is not None, "a row becomes a tree or an error"
        report.prefix_retokenised += made.num_retokenised
        report.add_tree(one.row, made.tree, made.cuts, made.dropped)

    def _find_special(self, row: Comparison) -> None:
        """A special token among the words of a row: a template that was applied before, say."""
        found = None if self.special is None else content.special_in(row, self.special)
        if found is not None:
            self.report.special_in_text += 1
            self.report.gathered.see("special_in_text", row, found)

    def _add_notes(self) -> None:
        if self._num_unprinted:
            self.report.notes.append(
                f"{self._num_unprinted:,} rows call tools of which the chat template prints "
                f"nothing ({self._first_unprinted}, say); choose one that does with "
                "data.chat_template"
            )
        if self._has_strings and self.has_template:
            self.report.notes.append(
                "plain strings are used as they are, without the chat template; give messages "
                "(role, content) to have it applied"
            )
