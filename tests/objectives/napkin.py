"""One pair in float64, for tests that a reader redoes by hand."""

from __future__ import annotations

import torch

from penchant.types import PairLogps


def pair(chosen: float, rejected: float, *, chosen_length: int | None = None) -> PairLogps:
    """A pair with these summed log-probabilities [nats]."""
    lengths_P = None if chosen_length is None else torch.tensor([chosen_length])
    return PairLogps.from_totals(
        torch.tensor([chosen], dtype=torch.float64),
        torch.tensor([rejected], dtype=torch.float64),
        chosen_lengths_P=lengths_P,
        rejected_lengths_P=lengths_P,
    )


def one(value: float) -> torch.Tensor:
    """[1 pair], float64."""
    return torch.tensor([value], dtype=torch.float64)
