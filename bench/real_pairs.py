"""Every objective on real pairs: a small random model, 160 rows at 256 tokens, and two whole files.

The whole files take a model of a quarter of the width, for the time of it.

    python bench/real_pairs.py DATA_FOLDER [NAME ...]

DATA_FOLDER holds tokenizer_gpt2, ultrafeedback_binarized_sample.jsonl.gz and
hh_harmless_test.jsonl.gz. Prints a table and writes bench/results/real_pairs.json; runs that are
there already are not repeated. NAME limits it to those runs.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import penchant

RESULTS = Path(__file__).parent / "results" / "real_pairs.json"
SHORT: dict[str, Any] = {
    "data.train": {"path": "ultrafeedback_binarized_sample.jsonl.gz", "rows": 160},
    "data.eval_fraction": 0.2,
}
RUNS: dict[str, dict[str, Any]] = {
    "sft": {**SHORT},
    "dpo": {**SHORT, "objective": {"name": "dpo", "beta": 0.1}},
    "mmpo": {**SHORT, "objective": {"name": "mmpo", "beta": 0.01, "bt_beta": 1.1}},
    "dpo-gamma": {**SHORT, "objective": {"name": "dpo-gamma"}},
    "slic-dpo": {**SHORT, "objective": {"name": "slic-dpo"}},
    "dpo-bmc": {**SHORT, "objective": {"name": "dpo-bmc", "beta": 0.05, "delta": 3.0}},
    "dpo lora": {**SHORT, "objective": "dpo", "model.adapter": {"r": 16, "alpha": 32}},
    "dpo bf16": {**SHORT, "objective": "dpo", "model.dtype": "bfloat16"},
    "dpo ultrafeedback": {
        "model": "narrow",
        "data.train": "ultrafeedback_binarized_sample.jsonl.gz",
        "data.eval_fraction": 0.1,
        "objective": "dpo",
    },
    "dpo hh": {
        "model": "narrow",
        "data.train": "hh_harmless_test.jsonl.gz",
        "data.eval_fraction": 0.1,
        "objective": "dpo",
    },
}


def main(folder: Path, wanted: list[str]) -> None:
    """Runs what is wanted and not there yet, one after the other."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as work:
        model = Path(work) / "model"
        tokenizer = str(folder / "tokenizer_gpt2")
        penchant.run("init", None, {"output_dir": str(model), "tokenizer": tokenizer})
        narrow = {"hidden_size": 64, "num_layers": 2}
        penchant.run(
            "init", None, {"output_dir": f"{model}-narrow", "tokenizer": tokenizer, **narrow}
        )
        for name, keys in RUNS.items():
            if name in results or (wanted and name not in wanted):
                continue
            results[name] = run(name, keys, folder, model, Path(work))
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    for name, figures in results.items():
        print(name.ljust(20), "  ".join(f"{k} {v}" for k, v in figures.items()))


def run(name: str, keys: dict[str, Any], folder: Path, model: Path, work: Path) -> dict[str, Any]:
    """One run's figures."""
    source = keys["data.train"]
    path = source["path"] if isinstance(source, dict) else source
    placed = {"path": str(folder / path), **({"rows": 160} if isinstance(source, dict) else {})}
    output = work / name.replace(" ", "-")
    overrides = {
        "model": str(model),
        "data.max_length": 256,
        "training.batch_size": 16,
        "training.learning_rate": 1e-4,
        "training.save_steps": 10_000,
        "output_dir": str(output),
    }
    overrides |= keys | {"data.train": placed}
    if keys.get("model") == "narrow":
        overrides["model"] = f"{model}-narrow"
    summary = penchant.run("sft" if name == "sft" else "train", None, overrides)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    evals = [row for row in rows if "eval_loss" in row]
    first = next(row for row in rows if "loss" in row)
    figures = {
        "rows_in": summary["rows_in"],
        "rows_used": summary["rows_used"],
        "steps": summary["num_steps"],
        "first_loss": round(first["loss"], 8),
        "eval_loss_before": round(evals[0]["eval_loss"], 5),
        "eval_loss_after": round(evals[-1]["eval_loss"], 5),
        "seconds": summary["seconds"],
    }
    if name.startswith("dpo") and "bmc" not in name and "gamma" not in name:
        figures["first_loss_minus_log2"] = float(f"{first['loss'] - math.log(2):.2e}")
    if "eval_rewards/accuracies" in evals[-1]:
        figures["eval_accuracy"] = round(evals[-1]["eval_rewards/accuracies"], 4)
    return figures


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
