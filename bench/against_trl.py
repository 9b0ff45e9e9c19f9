"""A training step of Penchant against TRL's: time, memory, share of what the hardware can do.

    python bench/against_trl.py [--cases NAME ... | all] [--runs 5] [--fresh]
    python bench/against_trl.py --list
    python bench/against_trl.py --device cuda --model-size 1B

Every measurement is a process of its own with as many threads as `--threads`; contestants take
turns; medians of `--runs` usable runs count. A run that had less than 0.9 of its threads' cores
is discarded and repeated, as often as `--retries` allows: other programs were running. Results are
written after every run, and the same command goes on where it was stopped. The first step's loss
and gradient norm are compared between sides; where losses differ the exit code is 1.
TRL's side keeps freed memory as Penchant's does, which makes it faster; `--allocator system` runs
it as it comes.

The default set (DEFAULT in step_cases.py) takes about two hours on two cores, most of it TRL's
defaults; `--cases a-bf16 --runs 3` about six minutes. Prints tables and writes
bench/results/against_trl.json and .svg (against_trl_cuda for `--device cuda`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import step_cases as catalogue
import step_table as table
from step_chart import chart
from step_results import BENCH, OURS, Results, conditions
from step_workload import draw_lengths, read_lengths

KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**31 - 1), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""glibc keeps freed memory, as a run of Penchant has it do. As it comes, TRL's steps take up to
twice as long where fresh pages are dear, as in a virtual machine, and vary by the hour."""
ENOUGH = 0.9
"""Of the threads' cores: what a run must have had to be of use."""


def main(arguments: list[str]) -> int:
    """Runs what is asked for; the exit code."""
    options = parse(arguments)
    if options.list:
        print_cases(options)
        return 0
    results = Results.load(options.results)
    for name in options.cases if options.fresh else []:
        results.cases.pop(name, None)
    try:
        for name in [] if options.report else options.cases:
            run_case(name, options, results)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here")
        return 130
    if not results.cases:
        print(f"{options.results.name} holds no results; leave --report out to measure")
        return 2
    print(table.full(results.cases))
    options.results.with_suffix(".svg").write_text(chart(results.cases) + "\n")
    apart = table.disagreements(results.cases)
    if apart:
        print(f"\nlosses differ between sides: {', '.join(apart)}", file=sys.stderr)
    return 1 if apart else 0


def run_case(name: str, options: argparse.Namespace, results: Results) -> None:
    """All contestants in turn, until each has its runs or no more tries."""
    asked = job(name, options)
    contestants = options.contestants or catalogue.all_cases()[name].contestants
    tries = dict.fromkeys(contestants, options.runs + options.retries)
    results.retry(name)
    while True:
        # Every round again: who edits the code meanwhile must not get a mixture of both.
        said = results.start(name, conditions(asked), keep_trl=options.keep_trl)
        if said:
            print(f"{name}: {said}")
            tries = dict.fromkeys(contestants, options.runs + options.retries)
        waiting = [who for who in contestants if lacks(results.runs(name, who), options.runs)]
        waiting = [who for who in waiting if tries[who]]
        if not waiting:
            return
        for who in waiting:
            tries[who] -= 1
            started = time.perf_counter()
            record = run_one(asked | {"contestant": who}, options)
            usable = results.add(name, who, record, options.min_cores)
            took = time.perf_counter() - started
            print(f"{name} {who}: {said_of(record, usable)} [{took:.0f} s]", flush=True)


def lacks(one: dict[str, Any], runs: int) -> bool:
    """Whether a contestant that can run has too few usable runs."""
    return "left_out" not in one and "failed" not in one and len(one["runs"]) < runs


def said_of(record: dict[str, Any], usable: bool) -> str:
    """A run in a line."""
    for key in ("left_out", "failed"):
        if key in record:
            return f"{key.replace('_', ' ')}: {record[key]}"
    text = f"{record['seconds']:.3f} s, {record['cores']:.2f} cores"
    return text if usable else f"{text}, discarded"


def job(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What every process of a case is told, contestant aside."""
    case = catalogue.all_cases()[name]
    if options.prompts:
        case = replace(case, prompts=options.prompts)
    if options.lengths is None or case.fixed:
        lengths = draw_lengths(case)
    else:
        lengths = read_lengths(case, options.lengths, options.tokenizer)
    return {
        "case": name,
        "lengths": [[prompt, responses] for prompt, responses in lengths],
        "lengths_of": "the distribution" if options.lengths is None else options.lengths.name,
        "device": options.device,
        "threads": options.threads,
        "seconds": options.seconds,
        "gemm_size": options.gemm_size,
        "token_budget": options.token_budget,
        "trl_micro_batch": options.trl_micro_batch,
        # What was measured before there was a choice stays valid.
        **({"allocator": "system"} if options.allocator == "system" else {}),
    }


def run_one(asked: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The record of one process; `failed` holds the last line of its error."""
    threads = str(options.threads)
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
        **(KEPT if options.allocator == "kept" or asked["contestant"] in OURS else {}),
    }
    done = subprocess.run(
        [sys.executable, str(BENCH / "step_measure.py"), json.dumps(asked)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"failed": lines[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def print_cases(options: argparse.Namespace) -> None:
    """Names, sizes and targets."""
    for name, case in catalogue.all_cases().items():
        chosen = "*" if name in options.cases else " "
        adapter = f" LoRA r={case.lora}" if case.lora else ""
        print(
            f"{chosen} {name.ljust(20)} {case.dtype}{adapter}, {case.prompts} prompts x "
            f"{case.responses} responses: {', '.join(case.contestants)}"
        )


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options; ends with exit code 2 and one line where they do not fit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    known = catalogue.all_cases()
    on_cuda = list(catalogue.cuda_cases(options.model_size))
    everything = [name for name in catalogue.CASES if not name.startswith("tiny")]
    if options.cases is None:
        options.cases = on_cuda if options.device == "cuda" else list(catalogue.DEFAULT)
    elif options.cases == ["all"]:
        options.cases = on_cuda if options.device == "cuda" else everything
    if unknown := [name for name in options.cases if name not in known]:
        parser.error(f"no case named {', '.join(unknown)}; --list shows those there are")
    if options.runs < 1:
        parser.error(f"--runs {options.runs}: at least 1 is needed")
    resolve(options)
    return options


def resolve(options: argparse.Namespace) -> None:
    """What follows from other options where it was not given."""
    on_cuda = options.device == "cuda"
    if options.retries is None:
        options.retries = options.runs
    if options.min_cores is None:
        options.min_cores = 0.0 if on_cuda else ENOUGH * options.threads
    if options.trl_micro_batch is None:
        options.trl_micro_batch = 2 if on_cuda else 1
    if options.gemm_size is None:
        options.gemm_size = 8192 if on_cuda else 4096
    if options.lengths is not None and options.tokenizer is None:
        options.tokenizer = options.lengths.parent / "tokenizer_gpt2"
    if options.results is None:
        ending = "_cuda" if on_cuda else ""
        ending += "_system_allocator" if options.allocator == "system" else ""
        options.results = BENCH / "results" / f"against_trl{ending}.json"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Every option with its meaning."""
    add = parser.add_argument
    add("--cases", nargs="+", metavar="NAME", help="or all; default: the rows of the targets")
    add("--contestants", nargs="+", choices=list(catalogue.CONTESTANTS))
    add("--runs", type=int, default=5, help="usable runs per contestant (%(default)s)")
    add("--retries", type=int, help="runs more, where some are discarded (as many as --runs)")
    add("--min-cores", type=float, help="least processor use of a run (0.9 of --threads)")
    add("--threads", type=int, default=2, help="of each process (%(default)s)")
    add("--seconds", type=float, default=2.0, help="timed steps repeat so long (%(default)s)")
    add("--prompts", type=int, help="another number of prompts than the case's")
    add("--lengths", type=Path, metavar="FILE", help="lengths of a data file's pairs")
    add("--tokenizer", type=Path, help="for --lengths (tokenizer_gpt2 beside the file)")
    add("--token-budget", type=int, help="of Penchant (what it takes by itself)")
    add("--trl-micro-batch", type=int, help="pairs, TRL best (1; cuda: 2, try what is fastest)")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--model-size", choices=("1B", "8B"), default="1B", help="with --device cuda")
    add(
        "--allocator",
        choices=("kept", "system"),
        default="kept",
        help="what TRL's side does with freed memory: keeps it, as Penchant's, or as it comes",
    )
    add("--gemm-size", type=int, help="of the square products (4096; cuda: 8192)")
    add("--results", type=Path, metavar="FILE", help="JSON; the chart lies beside it")
    add("--fresh", action="store_true", help="starts again instead of going on")
    add("--keep-trl", action="store_true", help="keeps TRL's runs if only Penchant changed")
    add("--report", action="store_true", help="measures nothing; prints what is there")
    add("--list", action="store_true", help="shows the cases (* those that would run)")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
