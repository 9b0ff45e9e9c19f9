"""One resumable run over prompts: what is there is kept, the rest is shared out and answered."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from penchant.commands._generate_backends import Prepared, share
from penchant.data.files import read_file
from penchant.engine.processes import Processes
from penchant.errors import DataError, PenchantError, Stopped, WorkerError
from penchant.generate.answers import (
    Answer,
    Answered,
    Tally,
    Task,
    Watch,
    known_answers,
    refreshed,
    to_row,
)
from penchant.generate.journal import Journal, finished
from penchant.generate.row_file import summary_of, write_rows, write_summary
from penchant.recipe.generate import GenerateRecipe
from penchant.train.interrupt import watch
from penchant.train.progress import ProgressLine

if TYPE_CHECKING:
    from penchant.generate.questions import Question


@final
@dataclass
class Run:
    """Prompts on their way into one output file."""

    recipe: GenerateRecipe
    prepared: Prepared
    processes: Processes
    about: dict[str, Any]
    """Model, back end, seed and settings, as every row has them."""
    identity: dict[str, Any]
    extra: dict[str, Any]
    """What the summary holds besides the counts."""
    tally: Tally = field(default_factory=Tally)
    failed: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    tokens: int = 0
    """New tokens of this process in this run."""
    retries: Counter[str] = field(default_factory=Counter)

    @property
    def output(self) -> Path:
        """The file that is written."""
        return Path(self.recipe.output)

    def go(self) -> dict[str, Any]:
        """Answers what is not answered yet; returns the summary.

        Raises Stopped on a signal, EndpointError where a server is of no use, SaveError.
        """
        start = time.monotonic()
        before = self.processes.gather(self.processes.agreed(self._finished))[0]
        if before is not None and not before["failed"]:
            found = self.processes.agreed(lambda: self._refresh(before))
            return self.processes.gather(found)[0] | {"new_tokens": 0, "seconds": 0.0}
        known = self._known(before)
        journal = self._open(again=before is not None)
        with journal:
            self._answer(journal, known)
            journal.close(keep_lock=True)
            return self._publish(journal, time.monotonic() - start)

    def _finished(self) -> dict[str, Any] | None:
        return finished(self.output, self.identity) if self.processes.is_main else None

    def _refresh(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Brings the columns of a whole output up to date with the input, where these differ.

        The main process's work. Returns the summary, with how many rows changed.
        """
        if not self.processes.is_main:
            return {}
        changed: list[str] = []
        for _ in self._fresh(self._written(), changed):
            pass
        if changed:
            write_rows(self.output, self._fresh(self._written(), []))
        extra = json.loads(json.dumps(self.extra))
        if any(before.get(name) != value for name, value in extra.items()):
            write_summary(self.output, {**before, **extra})
        return {**before, **extra, **_told(changed)}

    def _written(self) -> Iterator[Any]:
        return (row for _, row in read_file(self.output))

    def _fresh(self, rows: Iterable[Any], changed: list[str]) -> Iterator[dict[str, Any]]:
        """Answered rows with the input's columns as they are now; notes the ids of those changed.

        Raises DataError where a row does not answer its prompt.
        """
        for place, (question, row) in enumerate(zip_longest(self.prepared.questions, rows), 1):
            about = row.get("generation") if isinstance(row, Mapping) else None
            key = about.get("key") if isinstance(about, Mapping) else None
            if question is None or key != question.key or "responses" not in row:
                raise DataError(
                    f"{self.output} is not as this command left it (row {place}); remove it to "
                    "have all prompts answered again, or give another output"
                )
            fresh = refreshed(row, question)
            if json.dumps(fresh) != json.dumps(row):
                changed.append(question.row_id)
            yield fresh

    def _known(self, before: Mapping[str, Any] | None) -> dict[int, dict[int, Answer]]:
        """By prompt: samples of rows that failed in an earlier run."""
        if before is None and not self._is_ours():
            return {}
        return {
            index: known_answers(row)
            for index, (_, row) in enumerate(read_file(self.output))
            if isinstance(row, Mapping) and "error" in row
        }

    def _is_ours(self) -> bool:
        """Whether an earlier run of this recipe published the output, and some rows had failed."""
        try:
            summary = json.loads(summary_of(self.output).read_text(encoding="utf-8"))
            return self.output.exists() and summary["identity"] == self.identity
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _open(self, *, again: bool) -> Journal:
        """The journal, with the rows of an output that is to be done again in part."""
        first = self.processes.agreed(lambda: self._open_first(again))
        journal = first or Journal.open(self.output, self.identity, is_main=False)
        self.processes.barrier()  # what is done is the same for all
        return journal

    def _open_first(self, again: bool) -> Journal | None:
        """The main process's, before the others open theirs."""
        if not self.processes.is_main:
            return None
        journal = Journal.open(self.output, self.identity, again=again)
        if again or self._is_ours():
            for index, (_, row) in enumerate(read_file(self.output)):
                if isinstance(row, Mapping) and "error" not in row and index not in journal:
                    journal.append(index, row)
            journal.flush()
        return journal

    def _answer(self, journal: Journal, known: Mapping[int, Mapping[int, Answer]]) -> None:
        own = share(self.prepared, self.processes.rank, self.processes.size)
        if self.processes.is_main:
            for _, row in journal.rows():
                self.tally.add(row)
        left = [question for question in own if question.index not in journal]
        tasks = [self._task(question, known.get(question.index, {})) for question in left]
        with watch() as interrupt:
            try:
                if not tasks:
                    return
                backend = self.prepared.load(self.processes.size)
                interrupt.check()
                with interrupt.held(), ProgressLine(self._label(), len(own), "prompt") as line:
                    line.skip(len(own) - len(left))
                    backend.answer(tasks, self._watch(journal, line, interrupt.check))
                self.retries.update(backend.failures)
            except Stopped as stop:
                answered = sum(question.index in journal for question in own)
                raise Stopped(
                    f"stopped: {answered} of {len(own)} prompts are answered; run the same command "
                    "to go on",
                    stop.exit_code,
                ) from None

    def _label(self) -> str:
        size = self.processes.size
        return "answers" if size == 1 else f"answers (process 1 of {size})"

    def _task(self, question: Question, known: Mapping[int, Answer]) -> Task:
        lacking = tuple(number for number in range(self.recipe.n) if number not in known)
        return Task(question, lacking, known)

    def _watch(self, journal: Journal, line: ProgressLine, check: Any) -> Watch:
        def keep(answered: Answered) -> None:
            row = to_row(answered, self.about)
            if answered.error is None:
                journal.append(answered.question.index, row)
                self.tally.add(row)
            else:
                self.failed.append((answered.question.index, row))
            line.advance(1)

        def count(num_tokens: int) -> None:
            self.tokens += num_tokens
            line.advance(0, tokens=num_tokens)

        return Watch(keep, count, check, len(journal.done))

    def _publish(self, journal: Journal, seconds: float) -> dict[str, Any]:
        """Brings the processes' rows together; all return the summary."""
        if not self.processes.is_main:
            journal.close()
        try:
            shares = self.processes.gather((self.tally, self.failed, self.tokens, self.retries))
            full = self.processes.agreed(lambda: self._whole(journal, shares, seconds))
            return self.processes.gather(full)[0]
        except PenchantError:
            raise
        except RuntimeError:  # a connection that has ended
            raise WorkerError(
                "another process of this run ended before its share was done; what is answered is "
                "kept: run the same command to go on"
            ) from None

    def _whole(self, journal: Journal, shares: list[Any], seconds: float) -> dict[str, Any]:
        """Writes the output; the main process's work."""
        if not self.processes.is_main:
            return {}
        total, retries = Tally(), Counter[str]()
        for tally, failed, _, counted in shares:
            total.merge(tally)
            retries.update(counted)
            for index, row in failed:
                journal.append(index, row)
                total.add(row)
        summary = {**total.to_dict(), **self.extra}
        changed: list[str] = []
        rows = self._fresh((row for _, row in journal.rows()), changed)
        full = journal.publish(len(self.prepared.questions), summary, rows)
        full |= _told(changed) | {
            "new_tokens": sum(tokens for _, _, tokens, _ in shares),
            "seconds": seconds,
            "retries": dict(sorted(retries.items())),
        }
        errors = [row["error"] for _, failed, *_ in shares for _, row in failed]
        return full | ({"first_error": errors[0]} if errors else {})


def _told(changed: list[str]) -> dict[str, Any]:
    """How many rows got other columns than an earlier run gave them, and the first of them."""
    first = {"first_refreshed": changed[0]} if changed else {}
    return {"rows_refreshed": len(changed)} | first
