"""What the tests on a CUDA device share."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from penchant.types import TokenLogps, TokenTree
from tests.engine.test_packed import loss_of_trees

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def loss_on_cpu(trees: Sequence[TokenTree], logps: TokenLogps) -> Tensor:
    """The loss of tests/engine/test_packed.py, for log-probabilities of any device."""
    there = TokenLogps(logps.values_T.cpu(), logps.lengths_R.cpu())
    return loss_of_trees(list(trees), there)
