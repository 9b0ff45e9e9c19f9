"""What every token weighting must keep to; the files are found."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any, get_type_hints

import pytest
import torch

from penchant import objectives, weights
from penchant.types import PairLogps
from tests.objectives.samples import pairs, valid_values
from tests.weights.tokenizers import word_tokenizer

EACH = pytest.mark.parametrize("name", weights.names())

TOKENIZER = word_tokenizer("a tree stood by the river and it was old but green")
CHOSEN = "a tree stood by the river"
REJECTED = "by the a was stood and it"


def _weighted(weighting: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole way: words to ids, ids to marks, log-probabilities to weighted totals."""
    ids = [TOKENIZER(text)["input_ids"] for text in (CHOSEN, REJECTED)]
    marks = weighting.mark(*ids, weighting.ignored_ids(TOKENIZER))
    generator = torch.Generator().manual_seed(0)

    def model() -> PairLogps:
        return PairLogps.from_tokens(
            chosen=[-torch.rand(len(ids[0]), generator=generator).double()],
            rejected=[-torch.rand(len(ids[1]), generator=generator).double()],
            chosen_marks=[torch.tensor(marks.chosen)],
            rejected_marks=[torch.tensor(marks.rejected)],
        )

    policy, reference = weighting(model(), model())
    return policy.margin_P, reference.margin_P


def _variants(name: str) -> dict[str, list[Any]]:
    known: dict[str, list[Any]] = {"stop_words": ["english", "none"]}
    hints = get_type_hints(weights.find(name), include_extras=True)
    return {
        f.name: known.get(f.name) or valid_values(hints[f.name]) for f in fields(weights.find(name))
    }


@EACH
def test_no_dead_knob(name: str) -> None:
    for field, values in _variants(name).items():
        results = [torch.cat(_weighted(weights.load(name, **{field: v}))) for v in values]
        assert not torch.allclose(*results), f"{field} changes nothing"


@EACH
def test_declares_its_published_name_and_documents_its_fields(name: str) -> None:
    assert weights.find(name).published_as.endswith(f"-{name}")
    assert all(doc.meaning for doc in weights.describe(name))
    module = inspect.getmodule(weights.find(name))
    assert module is not None
    sections = ("Formula", "Symbols", "Raises", "Paper", "Differs from the paper")
    assert [line for line in module.__doc__.splitlines() if line in sections] == list(sections)


@EACH
def test_composes_with_every_objective_of_pairs(name: str) -> None:
    for objective in objectives.names():
        if (
            "-" + name in objective
            or objectives.load(objective, **_least(objective)).input != "pairs"
        ):
            continue
        loaded = objectives.load(f"{objective}-{name}", **_least(objective))
        assert loaded.name == f"{objective}-{name}"
        assert loaded.token_weights == weights.load(name)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_the_dtype(name: str, dtype: torch.dtype) -> None:
    policy, reference = weights.load(name)(pairs(0, dtype=dtype), pairs(1, dtype=dtype))
    assert policy.chosen_P.dtype == reference.rejected_P.dtype == dtype


def _least(objective: str) -> dict[str, Any]:
    return {doc.name: 1.0 for doc in objectives.describe(objective) if doc.required}
