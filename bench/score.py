"""Scores per second: Penchant against transformers' padded forward of the same rows.

    python bench/score.py [--size a] [--prompts 4] [--responses 8] [--prompt-tokens 512]
                          [--response-tokens 128] [--dtype float32] [--rounds 5] [--device cpu]

A reward model with random weights of the size named (see step_cases.py) scores `responses`
responses to each of `prompts` prompts. Both sides get the same token ids in one process and take
turns; the medians count. transformers runs `AutoModelForSequenceClassification`'s own class on rows
of prompt + response, padded to the longest of a batch, at the best of several batch sizes. The
scores are compared; a run that had fewer than --min-cores cores is marked as unusable. Prints the
ratio and writes bench/results/score.json (--results).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from step_cases import SIZES, Size
from step_workload import END, PADDING, SEED, word_tokenizer
from torch import Tensor

from penchant import __version__
from penchant.reward.fitting import Room
from penchant.reward.score import Scorer
from penchant.train.memory_use import keep_freed
from penchant.types import TokenTree

RESULTS = Path(__file__).parent / "results" / "score.json"
GOAL = 3.0
"""Times transformers' padded forward, at 8 responses, prompt 512, response 128."""
BATCHES = (4, 8, 16, 32)
"""Rows that transformers is tried with at a time; the fastest one counts."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; 0 where scores agree, 1 where not."""
    asked = parse(arguments)
    torch.set_num_threads(asked.threads)
    keep_freed(torch.device(asked.device))
    trees = make_trees(asked)
    model = make_model(SIZES[asked.size], asked).to(asked.device).eval()
    tokenizer = word_tokenizer(SIZES[asked.size].vocabulary)
    scorer = as_scorer(model, tokenizer, asked)
    rows = [torch.tensor([*tree.prompt_ids, *ids]) for tree in trees for ids in tree.response_ids]
    batch = fastest_batch(model, rows, asked)
    sides: dict[str, Callable[[], Tensor]] = {
        "penchant": lambda: torch.cat(scorer.score(trees)),
        "transformers": lambda: padded_scores(model, rows, batch, asked.device),
    }
    apart = float((sides["penchant"]() - sides["transformers"]()).abs().max())
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(asked.rounds):
        # Whoever goes first finds cold caches; they take turns at that too.
        for name in sorted(sides, reverse=bool(turn % 2)):
            runs[name].append(timed(sides[name], asked.device))
    found = summarise(asked, runs, apart) | {"transformers_rows_at_a_time": batch}
    found["layout"] = scorer.engine.layout if scorer.engine else "encoder"
    print_table(found)
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    asked.results.write_text(json.dumps(found, indent=1) + "\n")
    return int(apart > found["tolerance"])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="a")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--response-tokens", type=int, default=128)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--min-cores", type=float, default=1.8)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def make_trees(asked: argparse.Namespace) -> list[TokenTree]:
    """Prompts and responses of random tokens, an end-of-text token at the end of each."""
    generator = torch.Generator().manual_seed(SEED)
    vocabulary = SIZES[asked.size].vocabulary

    def words(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, vocabulary, (count,), generator=generator).tolist())

    trees = []
    for number in range(asked.prompts):
        ids = tuple((*words(asked.response_tokens - 1), END) for _ in range(asked.responses))
        trees.append(
            TokenTree(
                row_id=f"bench:{number + 1}",
                prompt_ids=words(asked.prompt_tokens),
                response_ids=ids,
                response_masks=tuple((True,) * len(one) for one in ids),
            )
        )
    return trees


def make_model(size: Size, asked: argparse.Namespace) -> Any:
    """A llama with a scalar head, random weights; sdpa attention."""
    config = transformers.LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=asked.prompt_tokens + asked.response_tokens,
        pad_token_id=PADDING,
        eos_token_id=END,
        bos_token_id=None,
        num_labels=1,
    )
    torch.manual_seed(SEED)
    dtype = getattr(torch, asked.dtype)
    return transformers.LlamaForSequenceClassification._from_config(config, dtype=dtype)


def as_scorer(model: Any, tokenizer: Any, asked: argparse.Namespace) -> Scorer:
    """What `Scorer.load` makes of a checkpoint, of a model in memory."""
    from penchant import engine
    from penchant.reward.score import automatic_budget

    room = Room(max_length=asked.prompt_tokens + asked.response_tokens)
    return Scorer(
        model=model,
        tokenizer=tokenizer,
        room=room,
        token_budget=automatic_budget(asked.device),
        engine=engine.prepare(model),
    )


@torch.no_grad()
def padded_scores(model: Any, rows: Sequence[Tensor], batch: int, device: str) -> Tensor:
    """transformers' own class on padded rows; it pools the last token that is no padding."""
    found = []
    for start in range(0, len(rows), batch):
        part = list(rows[start : start + batch])
        ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=PADDING)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in part], True)
        output = model(input_ids=ids.to(device), attention_mask=mask.to(device))
        found.append(output.logits[:, 0].double().cpu())
    return torch.cat(found)


def fastest_batch(model: Any, rows: Sequence[Tensor], asked: argparse.Namespace) -> int:
    """The batch size at which transformers is fastest here, so that it is compared at its best."""
    seconds = {}
    for batch in BATCHES:
        if batch // 2 >= len(rows):
            continue
        padded_scores(model, rows[:batch], batch, asked.device)
        seconds[batch] = min(
            timed(lambda b=batch: padded_scores(model, rows, b, asked.device), asked.device)[
                "seconds"
            ]
            for _ in range(2)
        )
    return min(seconds, key=lambda one: seconds[one])


def timed(work: Callable[[], Any], device: str) -> dict[str, float]:
    """Wall seconds, and the cores that were had."""
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    wall = time.perf_counter() - wall
    return {"seconds": wall, "cores": (time.process_time() - cpu) / wall}


def summarise(
    asked: argparse.Namespace, runs: dict[str, list[dict[str, float]]], apart: float
) -> dict[str, Any]:
    """Medians, and the ratio; the ratio of each turn too."""
    seconds = {name: [one["seconds"] for one in listed] for name, listed in runs.items()}
    medians = {name: statistics.median(listed) for name, listed in seconds.items()}
    cores = {name: statistics.median(r["cores"] for r in listed) for name, listed in runs.items()}
    pairs = zip(seconds["transformers"], seconds["penchant"], strict=True)
    on_cpu = asked.device == "cpu"
    return {
        "size": asked.size,
        "prompts": asked.prompts,
        "responses": asked.responses,
        "prompt_tokens": asked.prompt_tokens,
        "response_tokens": asked.response_tokens,
        "dtype": asked.dtype,
        "device": asked.device,
        "threads": asked.threads,
        "seconds": medians,
        "cores": cores,
        "usable": not on_cpu or min(cores.values()) >= min(asked.min_cores, asked.threads),
        "responses_per_second": {
            name: asked.prompts * asked.responses / one for name, one in medians.items()
        },
        "ratio": medians["transformers"] / medians["penchant"],
        "ratios": [slow / fast for slow, fast in pairs],
        "goal": GOAL,
        "largest_difference": apart,
        "tolerance": 1e-3 if asked.dtype == "float32" else 0.1,
        "versions": {
            "penchant": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "runs": runs,
    }


def print_table(found: dict[str, Any]) -> None:
    """For people."""
    print(
        f"size {found['size']}, {found['dtype']}, {found['prompts']} prompts of "
        f"{found['prompt_tokens']} tokens, {found['responses']} responses of "
        f"{found['response_tokens']} each; penchant {found['layout']}, transformers "
        f"{found['transformers_rows_at_a_time']} rows at a time"
    )
    for name in found["seconds"]:
        print(
            f"  {name:<13} {found['seconds'][name]:8.3f} s   "
            f"{found['responses_per_second'][name]:8.2f} responses/s   "
            f"{found['cores'][name]:.2f} cores"
        )
    spread = f"{min(found['ratios']):.2f} to {max(found['ratios']):.2f}"
    print(f"  ratio {found['ratio']:.2f} ({spread}), goal {found['goal']:g}")
    print(f"  largest difference of a score {found['largest_difference']:.1e}")
    if not found["usable"]:
        print("  unusable: other programs had the cores", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
