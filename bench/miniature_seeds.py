"""The miniature over several seeds: the demo with its control, and pairs of a visible rule.

    python bench/miniature_seeds.py FOLDER [SEED ...]

FOLDER takes the demo's runs (about six minutes of one core per seed); finished parts are kept.
Prints a table and writes bench/results/miniature_seeds.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import penchant

RESULTS = Path(__file__).parent / "results" / "miniature_seeds.json"


def main(folder: Path, seeds: list[int]) -> None:
    """One seed after the other, so that an interrupted bench has whole ones."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for seed in seeds:
        if str(seed) in results:
            continue
        place = folder / f"seed-{seed}-demo"
        overrides = {"output_dir": str(place), "seeds": [seed], "flipped_control": True}
        penchant.run("demo", None, overrides)
        demo = json.loads((place / "results.json").read_text())
        found = demo["seeds"][str(seed)]
        own = place / f"seed-{seed}"
        found["visible rule"] = rule(own, "rule_pairs", seed)
        found["visible rule, flipped"] = rule(own, "rule_flipped_pairs", seed)
        results[str(seed)] = found
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    for seed, policies in results.items():
        for name, figures in policies.items():
            print(seed, name.ljust(22), line(figures))


def rule(place: Path, pairs: str, seed: int) -> dict[str, Any]:
    """Held-out accuracy on pairs that follow the rule, after dpo on `pairs`."""
    overrides = {
        "model": str(place / "sft"),
        "data.train": str(place / "miniature" / f"{pairs}.jsonl"),
        "data.eval": str(place / "miniature" / "rule_eval_pairs.jsonl"),
        "data.max_length": 128,
        "objective": {"name": "dpo", "beta": 0.3},
        "training.learning_rate": 2e-4,
        "training.batch_size": 32,
        "training.max_steps": 48,
        "training.seed": seed,
        "output_dir": str(place / pairs),
    }
    summary = penchant.run("train", None, overrides)
    return {"held_out_accuracy": summary["eval"]["eval_rewards/accuracies"]}


def line(figures: dict[str, Any]) -> str:
    """A policy's figures in one line."""
    parts = []
    if "gold_reward" in figures:
        parts.append(f"gold {figures['gold_reward']['mean']:.3f}")
    if "win_rate" in figures:
        low, high = figures["win_rate"]["interval"]
        parts.append(f"win {figures['win_rate']['rate']:.3f} [{low:.3f}, {high:.3f}]")
    if "kl_from_start" in figures:
        parts.append(f"KL {figures['kl_from_start']['mean']:.2f}")
    if "held_out_accuracy" in figures:
        parts.append(f"accuracy {figures['held_out_accuracy']:.3f}")
    return "  ".join(parts)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:]] or [0, 1, 2, 3, 4])
