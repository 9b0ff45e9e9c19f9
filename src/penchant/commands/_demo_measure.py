"""What a policy of the demo answers, what that is worth, and how far it has moved.

KL is estimated from the policy's own answers: the mean over prompts of
sum over tokens of log policy - log reference, one sampled answer per prompt. Unbiased for answers
that end; for an answer cut at the length limit it covers the tokens up to the cut.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from penchant import engine
from penchant.commands._demo_plan import MAX_NEW_TOKENS, START, Place
from penchant.generate import Sample, Sampling, prompt_ids, sample
from penchant.miniature.rewards import gold_reward
from penchant.models.load import load_causal_lm, load_tokenizer
from penchant.train.progress import ProgressLine
from penchant.types import TokenTree

_BATCH = 64


@dataclass(frozen=True)
class Measured:
    """One value per held-out prompt, in the order of the prompts."""

    text_N: Sequence[str]
    reward_N: Sequence[float]
    kl_N: Sequence[float]
    """log policy - log reference of the answer [nats]."""
    length_N: Sequence[int]
    """Tokens of the answer, its end included."""
    cut_N: Sequence[bool]


def measure(place: Place, name: str, prompts: Sequence[Mapping[str, Any]]) -> Measured:
    """Samples an answer to every prompt and scores it; written beside the run and read back."""
    path = place.answers(name)
    if path.is_file():
        return Measured(**json.loads(path.read_text(encoding="utf-8")))
    folder = str(place.run(name))
    policy, tokenizer = load_causal_lm(folder), load_tokenizer(folder)
    questions = [prompt_ids(_text(row["prompt"]), tokenizer) for row in prompts]
    sampling = Sampling(temperature=1.0, max_new_tokens=MAX_NEW_TOKENS, seed=place.seed)
    with ProgressLine(f"answers of {name}", len(prompts), "prompt") as line:
        answers = sample(policy, tokenizer, questions, sampling, progress=line.advance)
    kl_N = [0.0] * len(prompts)
    if name != START:
        start = load_causal_lm(str(place.run(START)), trainable=False)
        kl_N = _log_ratio(policy, start, questions, answers)
    measured = Measured(
        text_N=[answer.text for answer in answers],
        reward_N=[gold_reward(row, a.text) for row, a in zip(prompts, answers, strict=True)],
        kl_N=kl_N,
        length_N=[len(answer.ids) for answer in answers],
        cut_N=[answer.is_cut for answer in answers],
    )
    write_whole(path, json.dumps(vars(measured), ensure_ascii=False, indent=1))
    return measured


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file; a sampled text may hold line ends that JSON leaves as they are."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def write_whole(path: Path, text: str) -> None:
    """Writes under a temporary name and renames, so that a file that is there is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _log_ratio(
    policy: Any, start: Any, questions: Sequence[Sequence[int]], answers: Sequence[Sample]
) -> list[float]:
    """log policy - log start of each answer, summed over its tokens [nats]."""
    trees = [
        TokenTree(
            row_id=f"prompts:{number}",
            prompt_ids=tuple(question),
            response_ids=(answer.ids,),
            response_masks=((True,) * len(answer.ids),),
        )
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True), start=1)
    ]
    engines = [engine.prepare(model.eval()) for model in (policy, start)]
    ratios: list[float] = []
    with torch.no_grad():
        for first in range(0, len(trees), _BATCH):
            batch = trees[first : first + _BATCH]
            ours, theirs = (one.logps(batch).per_response() for one in engines)
            ratios += [float((a - b).sum()) for a, b in zip(ours, theirs, strict=True)]
    return ratios


def _text(prompt: Any) -> Any:
    """A prompt as it stands in JSON, as text or messages."""
    return prompt if isinstance(prompt, str) else tuple(prompt)
