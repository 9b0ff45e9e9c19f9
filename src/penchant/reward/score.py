"""Scores of responses by a trained reward model: the template, cuts and pooling of its training.

scorer = Scorer.load("runs/reward")
trees = scorer.trees(comparisons)        # one per usable row; tree.row_id says which
scores = scorer.score(trees)             # per tree one tensor, a value per response
scorer.report                            # what was cut, and which rows could not be scored
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, final

import torch
from torch import Tensor

from penchant import engine as engines
from penchant.data.making import Maker
from penchant.data.pack import plan_micro_batches
from penchant.data.pairing import PairPlan
from penchant.data.plan import Planned
from penchant.data.rows import RowError
from penchant.data.trees import TokenSettings
from penchant.engine.memory import is_out_of_memory
from penchant.errors import OutOfMemoryError
from penchant.models import load
from penchant.models.reward_head import is_decoder, read_reward_model
from penchant.reward.encoder import Encoder
from penchant.reward.fitting import NO_LIMIT, Part, Reading, Room, fit, halves, room_of
from penchant.types import Comparison, TokenTree

_ROWS = 1024
"""Comparisons that are tokenised together."""
_BUDGET = {"cpu": 4096}
_OTHER_BUDGET = 32_768
"""Tokens of a micro-batch where `token_budget` is auto; on a CPU more is no faster."""


class TreeScorer(Protocol):
    """Whatever scores responses: a reward model, or a policy (helper of `penchant score`)."""

    def trees(self, comparisons: Iterable[Comparison]) -> list[TokenTree]:
        """The usable rows as trees, in their order."""
        ...

    def score(self, trees: Sequence[TokenTree]) -> list[Tensor]:
        """Per tree a value per response, float64."""
        ...


@dataclass(frozen=True)
class Unscored:
    """A row that cannot be scored."""

    row_id: str
    reason: str
    """One of a few short names, those of the data report."""
    detail: str


@dataclass
class ScoringReport:
    """What became of the rows since the scorer was loaded; rows in = usable ones + set aside."""

    rows_in: int = 0
    rows_used: int = 0
    set_aside: list[Unscored] = field(default_factory=list)
    responses: int = 0
    """Scored so far; of these the next four."""
    prompts_cut: int = 0
    """Responses whose prompt was too long."""
    responses_cut: int = 0
    retokenised: int = 0
    """Tokenised apart from their prompt, because a token would span the border."""
    not_finite: int = 0
    """Scores that are NaN or infinite."""

    def to_dict(self) -> dict[str, Any]:
        """Counts, and the rows set aside by reason."""
        reasons: dict[str, int] = {}
        for row in self.set_aside:
            reasons[row.reason] = reasons.get(row.reason, 0) + 1
        counts = {name: value for name, value in vars(self).items() if name != "set_aside"}
        return counts | {"set_aside": reasons}


@final
@dataclass
class Scorer:
    """A reward model with its tokenizer, ready to score; build it with `load`."""

    model: Any
    tokenizer: Any
    room: Room
    token_budget: int
    chat_template: str | None = None
    engine: engines.Engine | None = None
    """Of a decoder; an encoder runs padded rows."""
    report: ScoringReport = field(default_factory=ScoringReport)

    @classmethod
    def load(
        cls,
        path: str,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
        dtype: str = "auto",
        device: str = "auto",
        token_budget: int | Literal["auto"] = "auto",
        reading: Reading | None = None,
    ) -> Scorer:
        """A checkpoint's folder, an adapter's folder or a hub id.

        Args:
            dtype: auto (as the checkpoint was saved), float32, bfloat16 or float64.
            device: auto, cpu, cuda, hpu; auto takes the accelerator that is there.
            token_budget: tokens of a micro-batch; changes memory and speed, not the scores.
            reading: where texts are not to be read as in training.
        Raises:
            ModelError: no reward model there, or its parts do not fit together.
        """
        reading = reading or Reading()
        hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        tokenizer = load.load_tokenizer(path, **hub)
        computed_in = load.compute_dtype(path, dtype, **hub)
        model = read_reward_model(path, dtype=computed_in, **hub).eval()
        load.check_fit(model.config, tokenizer, path)
        place = _device() if device == "auto" else device
        model.to(place)
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        decoder = is_decoder(inner) or hasattr(model, "peft_config")
        room = room_of(model.config, tokenizer, reading, decoder)
        load.check_length(model.config, room.max_length, path)
        return cls(
            model=model,
            tokenizer=tokenizer,
            room=room,
            token_budget=automatic_budget(place) if token_budget == "auto" else token_budget,
            chat_template=reading.chat_template,
            engine=engines.prepare(model) if decoder else None,
        )

    def trees(self, comparisons: Iterable[Comparison]) -> list[TokenTree]:
        """The usable rows as trees, in their order, uncut, with all of their responses.

        The others are in `report.set_aside`; a tree's `row_id` tells its row.
        Raises DataError for what no row is to blame for, such as a missing chat template.
        """
        make = self._rows if self.engine is not None else self._encoder_rows
        trees: list[TokenTree] = []
        batch: list[Comparison] = []
        for row in comparisons:
            batch.append(row)
            if len(batch) == _ROWS:
                trees += make(batch)
                batch = []
        return trees + make(batch)

    def score(self, trees: Sequence[TokenTree]) -> list[Tensor]:
        """A score per response, [responses] on the CPU in float64, tree by tree in their order.

        What is too long is cut, and counted in the report. A score does not depend on which other
        responses or trees are scored with it.
        """
        parts = [(index, part) for index, tree in enumerate(trees) for part in fit(tree, self.room)]
        batch = [part.tree for _, part in parts]
        groups = plan_micro_batches(
            batch, range(len(batch)), self.token_budget, padded=self._is_padded
        )
        found = [torch.empty(len(tree.response_ids), dtype=torch.float64) for tree in trees]
        for group in groups:
            values = self._run([batch[place] for place in group])
            for place, value_R in zip(group, values, strict=True):
                index, part = parts[place]
                found[index][list(part.places)] = value_R
        self._count([part for _, part in parts], found)
        return found

    @property
    def _is_padded(self) -> bool:
        return self.engine is None or self.engine.padded

    @torch.no_grad()
    def _run(self, trees: list[TokenTree]) -> list[Tensor]:
        """Scores of trees together, or of halves where memory does not suffice."""
        failed = False
        try:
            scores_R = self._forward(trees)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        if not failed:
            sizes = [len(tree.response_ids) for tree in trees]
            return list(scores_R.double().cpu().split(sizes))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(trees) == 1 and len(trees[0].response_ids) == 1:
            raise OutOfMemoryError(
                "out of memory with one response at a time; lower max_length, or score on a "
                "device with more memory"
            )
        if len(trees) == 1:
            return [torch.cat([part for one in halves(trees[0]) for part in self._run([one])])]
        middle = len(trees) // 2
        return self._run(trees[:middle]) + self._run(trees[middle:])

    def _forward(self, trees: list[TokenTree]) -> Tensor:
        if self.engine is not None:
            return self.engine.scores(trees)
        return Encoder(self.model, self.tokenizer).scores(trees)

    def _rows(self, rows: Sequence[Comparison]) -> list[TokenTree]:
        settings = TokenSettings(chat_template=self.chat_template, max_length=NO_LIMIT)
        planned = [Planned(only_texts(row), PairPlan((), None, ())) for row in rows]
        trees = []
        for row, made in zip(rows, Maker(self.tokenizer, settings).make(planned), strict=True):
            if made.tree is not None:
                trees.append(made.tree)
                self.report.retokenised += made.num_retokenised
                continue
            assert made.error is not None, "a row becomes a tree or an error"
            self.report.set_aside.append(Unscored(row.row_id, *made.error))
        self._count_rows(rows, trees)
        return trees

    def _encoder_rows(self, rows: Sequence[Comparison]) -> list[TokenTree]:
        encoder = Encoder(self.model, self.tokenizer, self.chat_template)
        trees = []
        for row in rows:
            try:
                trees.append(encoder.tree(only_texts(row)))
            except RowError as error:
                self.report.set_aside.append(Unscored(row.row_id, error.reason, error.detail))
        self._count_rows(rows, trees)
        return trees

    def _count_rows(self, rows: Sequence[Comparison], trees: Sequence[TokenTree]) -> None:
        self.report.rows_in += len(rows)
        self.report.rows_used += len(trees)

    def _count(self, parts: Sequence[Part], found: Sequence[Tensor]) -> None:
        report = self.report
        report.responses += sum(map(len, found))
        report.prompts_cut += sum(len(part.places) for part in parts if part.prompt_cut)
        report.responses_cut += sum(part.responses_cut for part in parts)
        report.not_finite += sum(int((~torch.isfinite(values)).sum()) for values in found)


def only_texts(row: Comparison) -> Comparison:
    """The row without what is known of its responses: every one of them is scored."""
    return replace(row, pairs=None, scores=None, labels=None, soft_labels=None)


def _device() -> str:
    from accelerate.utils import is_hpu_available

    if is_hpu_available():
        return "hpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def automatic_budget(device: str) -> int:
    """Tokens of a micro-batch where nobody says how many."""
    return _BUDGET.get(torch.device(device).type, _OTHER_BUDGET)
