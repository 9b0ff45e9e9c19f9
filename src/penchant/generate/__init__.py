"""Answers from a model: seeded, the same in any batch.

Imports torch; commands import this room inside their functions.
"""

from __future__ import annotations

from penchant.generate.choose import Sampling
from penchant.generate.prompts import prompt_ids
from penchant.generate.sample import Sample, sample, stop_token_ids

__all__ = ["Sample", "Sampling", "prompt_ids", "sample", "stop_token_ids"]
