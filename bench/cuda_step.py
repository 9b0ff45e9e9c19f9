"""What each part of the CUDA path gives: kernels of the head, its groups, compiled layers.

    python bench/cuda_step.py [CASE ...] [--profile]

CASE as in `against_trl.py --device cuda --list`; default: 1B-ultrafeedback 8B-ultrafeedback. One
process per case takes the parts in turn over one model: seconds of a step (the fastest of three
after one to warm up), share of the matrix products' rate, peak memory. Writes
bench/results/cuda_step.json; --profile prints the kernels that take the most time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from step_cases import PENCHANT, all_cases
from step_job import Job, finish
from step_penchant import make
from step_watch import gemm_rate
from step_workload import draw_lengths, make_trees, useful_flops

from penchant.engine import compiled, logprob_head, tile_kernels, tile_sizes

RESULTS = Path(__file__).parent / "results" / "cuda_step.json"
TOKENS = 16_384
"""Of a micro-batch, where the line does not say otherwise."""
PEAK_SIZE = 8192


@contextmanager
def changed(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute is another one for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def without_kernels() -> AbstractContextManager[None]:
    """The head's arithmetic as torch has it."""
    return changed(tile_kernels, "is_available", lambda _: False)


def without_wide_sums() -> AbstractContextManager[None]:
    """The gradient of the head's weight rounded to half precision before it is added."""
    return changed(logprob_head, "_adds_wide", lambda *_: False)


def small_groups() -> AbstractContextManager[None]:
    """Groups of the size that suits a processor."""
    return changed(tile_sizes, "_CUDA_GROUP", tile_sizes.FULL_GROUP)


PARTS: list[tuple[str, int, Callable[[], AbstractContextManager[None]]]] = [
    ("as it is", 8192, nullcontext),
    ("as it is", TOKENS, nullcontext),
    ("as it is", 2 * TOKENS, nullcontext),
    ("no kernels", TOKENS, without_kernels),
    ("no wide sums", TOKENS, without_wide_sums),
    ("groups of 512", TOKENS, small_groups),
]


class Bench:
    """One model, one batch."""

    def __init__(self, name: str) -> None:
        case = all_cases()[name]
        trees = make_trees(case, draw_lengths(case))
        self.job = Job(
            name=PENCHANT,
            case=case,
            trees=trees,
            device="cuda",
            token_budget=TOKENS,
            compiles=False,
        )
        self.parts = make(self.job)
        self.peak = gemm_rate("cuda", torch.bfloat16, PEAK_SIZE)
        self.flops = useful_flops(case, trees, online=False)

    def update(self) -> float:
        """A whole step; its loss."""
        loss = self.parts.step.train(self.job.trees).means()["loss"]
        finish(self.parts.policy, self.parts.optimizer)
        torch.cuda.synchronize()
        return loss

    def measure(self, what: str, tokens: int) -> dict[str, Any]:
        """A row of the table."""
        self.parts.step.token_budget = tokens
        torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(4):
            started = time.perf_counter()
            self.update()
            seconds.append(time.perf_counter() - started)
        best = min(seconds[1:])
        row = {
            "what": what,
            "tokens": tokens,
            "seconds": best,
            "first_seconds": seconds[0],
            "share_of_gemm_peak": self.flops / best / self.peak,
            "peak_bytes": torch.cuda.max_memory_allocated(),
        }
        print(
            f"{what:16} {tokens:6,} tokens  {best:.3f} s  {row['share_of_gemm_peak']:.1%}  "
            f"{row['peak_bytes'] / 2**30:.1f} GiB  first {seconds[0]:.1f} s",
            flush=True,
        )
        return row

    def profile(self) -> None:
        """The kernels of one step that take the most time."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as found:
            self.update()
        events = sorted(found.key_averages(), key=lambda event: -event.self_device_time_total)
        for event in events[:25]:
            print(f"{event.self_device_time_total / 1e3:9.2f} ms {event.count:6} {event.key[:100]}")


def main(arguments: list[str]) -> int:
    """Measures case after case; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cases", nargs="*", default=["1B-ultrafeedback", "8B-ultrafeedback"])
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("this bench needs a CUDA device", file=sys.stderr)
        return 2
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.cases:
        bench = Bench(name)
        print(f"{name}: {bench.peak / 1e12:.0f} TFLOP/s in matrix products")
        rows = []
        for what, tokens, part in PARTS:
            with part():
                rows.append(bench.measure(what, tokens))
        compiled.compile_layers(bench.parts.step.engine)
        rows += [bench.measure("compiled layers", tokens) for tokens in (8192, TOKENS, 2 * TOKENS)]
        if options.profile:
            bench.profile()
        about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        results[name] = about | {"gemm_flops_per_second": bench.peak, "rows": rows}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        del bench
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
