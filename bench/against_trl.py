"""A training step of Penchant against TRL's: time, memory, share of what the hardware can do.

    python bench/against_trl.py [--cases NAME ... | all] [--runs 5] [--fresh]
    python bench/against_trl.py --list
    python bench/against_trl.py --device cuda --model-size 1B

Contestants of a case are processes of their own with as many threads as `--threads`. They are set
up one after the other, make one step to warm up, and then take turns, step by step, until each has
`--runs` usable runs; medians count. A run that had less than 0.9 of its threads' cores while other
programs used more than the rest is discarded and repeated, as often as `--retries` allows. Results
are written case by case, and the same command goes on where it was stopped. The first step's loss
and gradient norm are compared between sides; where they differ the exit code is 1.
TRL's processes keep freed memory as a run of Penchant does in its own, which makes them faster, on
some machines twice as fast; `--allocator system` runs TRL as it comes.

The default set (DEFAULT in step_cases.py) takes over an hour on two cores, most of it TRL's;
`--cases a-bf16 --runs 3` about four minutes. With less than 24 GiB of memory say `--together 2`.
Prints tables and writes bench/results/against_trl.json and .svg (against_trl_cuda for `--device
cuda`, against_trl_system_allocator for `--allocator system`).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import step_cases as catalogue
import step_table as table
import step_turns as turns
from step_cases import OURS, PENCHANT, TRL_BEST, TRL_BEST_ONLINE
from step_chart import chart
from step_results import BENCH, Results, conditions, present_code
from step_workload import draw_lengths, read_lengths

KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**31 - 1), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""glibc keeps freed memory, as a run of Penchant has it do by itself. As it comes, TRL's steps take
up to twice as long where fresh pages are dear, as in a virtual machine, and vary by the hour."""
ENOUGH = 0.9
"""Of the threads' cores: what a run must have had to be of use."""
MICRO_BATCHES = (1, 2, 4, 8, 16, 32)
"""Pairs that TRL's best settings are tried with on an accelerator."""
MOST_RUNS = 15
"""With as many retries, and five steps a run, what a process makes at most."""


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
        print("\nstopped; the same command, without --fresh, goes on with this case")
        return 130
    if not results.cases:
        print(f"{options.results.name} holds no results; leave --report out to measure")
        return 2
    print(table.full(results.cases, present_code()))
    options.results.with_suffix(".svg").write_text(chart(results.cases) + "\n")
    apart = table.disagreements(results.cases)
    if apart:
        print(f"\nthe sides compute different steps: {', '.join(apart)}", file=sys.stderr)
    return 1 if apart else 0


def run_case(name: str, options: argparse.Namespace, results: Results) -> None:
    """Sittings of all contestants, until each has its runs or no more tries."""
    asked = job(name, options)
    results.retry(name)
    if said := results.start(name, conditions(asked)):
        print(f"{name}: {said}")
    groups = groups_of(name, options)
    alone = all(len(group) == 1 for group in groups)
    for sitting in range(options.runs if alone else 1):
        for group in groups:
            wanted = sitting + 1 if alone else options.runs
            if not any(lacks(results.runs(name, who), wanted) for who in group):
                continue
            if asked["trl_micro_batch"] == "auto" and {TRL_BEST, TRL_BEST_ONLINE} & set(group):
                tune(name, asked, options, results)
            best = results.cases[name].get("tuned", {})
            starts = [partial(start, asked | best | {"contestant": who}, options) for who in group]
            found = turns.sit(
                starts,
                1 if alone else options.runs,
                1 + options.retries if alone else options.runs + options.retries,
                options.seconds,
                partial(is_usable, options=options),
                partial(tell, name),
            )
            if results.cases[name]["conditions"] != conditions(asked):
                print(f"{name}: the code changed meanwhile, so this sitting does not count")
                return
            results.add(name, found)


def tune(name: str, asked: dict[str, Any], options: argparse.Namespace, results: Results) -> None:
    """Chooses the fastest of TRL's micro-batches by a step of each, once per case."""
    if "tuned" in results.cases[name]:
        return
    num_pairs = len(asked["lengths"]) * catalogue.all_cases()[name].pairs_per_prompt
    seconds: dict[int, float] = {}
    for size in [size for size in MICRO_BATCHES if num_pairs % size == 0]:
        tried = asked | {"contestant": TRL_BEST, "trl_micro_batch": size}
        starts = [partial(start, tried, options)]
        found = turns.sit(starts, 1, 1, 0, lambda _: True, lambda *_: None)
        for run in found[TRL_BEST]["runs"]:  # none where memory ran out
            seconds[size] = run["seconds"]
            print(f"{name} {TRL_BEST}, {size} pairs a micro-batch: {run['seconds']:.3f} s")
    fastest = min(seconds, key=seconds.__getitem__, default=1)
    results.cases[name]["tuned"] = {"trl_micro_batch": fastest}
    results.cases[name]["tuned_seconds"] = seconds


def groups_of(name: str, options: argparse.Namespace) -> list[list[str]]:
    """Contestants whose processes live at once; Penchant takes turns with each of several groups.

    On an accelerator every contestant has it for itself.
    """
    case = catalogue.all_cases()[name]
    asked = list(options.contestants or case.contestants)
    most = options.together or (1 if options.device == "cuda" else case.together)
    if most == 1 or len(asked) <= most or PENCHANT not in asked:
        return [asked[first : first + most] for first in range(0, len(asked), most)]
    others = [who for who in asked if who != PENCHANT]
    return [[PENCHANT, *others[i : i + most - 1]] for i in range(0, len(others), most - 1)]


def start(asked: dict[str, Any], options: argparse.Namespace) -> turns.Contestant:
    """A contestant's process, set up and waiting for its turn."""
    threads = str(options.threads)
    environment = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
        **(KEPT if options.allocator == "kept" and asked["contestant"] not in OURS else {}),
    }
    return turns.Contestant(asked, environment)


def is_usable(run: dict[str, Any], options: argparse.Namespace) -> bool:
    """Whether a run had the processor that it wanted.

    Some leave cores idle by themselves: TRL's steps in memory that the system must first clear.
    """
    others = run["other_cores"]
    alone = others is not None and others <= options.threads - options.min_cores
    return bool(alone or run["cores"] >= options.min_cores)


def lacks(one: dict[str, Any], runs: int) -> bool:
    """Whether a contestant that can run has too few usable runs."""
    has_all = len(one["runs"]) >= runs and "about" in one
    return "left_out" not in one and "failed" not in one and not has_all


def tell(case: str, who: str, said: dict[str, Any]) -> None:
    """A run in a line, or why there is none."""
    for key in ("left_out", "failed"):
        if key in said:
            print(f"{case} {who}: {key.replace('_', ' ')}: {said[key]}", flush=True)
    if "seconds" in said:
        others = "" if said["other_cores"] is None else f", others {said['other_cores']:.2f}"
        print(
            f"{case} {who}: {said['seconds']:.3f} s, {said['cores']:.2f} cores{others}"
            f"{'' if said['usable'] else ', discarded'}",
            flush=True,
        )


def job(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What every process of a case is told, contestant aside."""
    case = catalogue.all_cases()[name]
    if options.prompts:
        case = replace(case, prompts=options.prompts)
    if options.lengths is None or case.fixed:
        lengths = draw_lengths(case)
    else:
        lengths = read_lengths(case, options.lengths, options.tokenizer)
    kind = {key: getattr(case, key) for key in ("dtype", "responses", "pairing", "lora", "cap")}
    return {
        "case": name,
        "kind": kind | {"model": asdict(catalogue.SIZES[case.size])},
        "lengths": [[prompt, responses] for prompt, responses in lengths],
        "lengths_of": "the distribution" if options.lengths is None else options.lengths.name,
        "device": options.device,
        "threads": options.threads,
        "seconds": options.seconds,
        "gemm_size": options.gemm_size,
        "token_budget": options.token_budget,
        "trl_micro_batch": options.trl_micro_batch,
        "allocator": options.allocator,
        "min_cores": options.min_cores,
    }


def print_cases(options: argparse.Namespace) -> None:
    """Names, batches and contestants."""
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
    if options.fresh and options.report:
        parser.error("--fresh begins again and --report measures nothing; give one of them")
    resolve(options)
    for name, least, most in (
        ("runs", 1, MOST_RUNS),
        ("retries", 0, MOST_RUNS),
        ("together", 1, 9),
    ):
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            parser.error(f"--{name} {value}: from {least} to {most}")
    return options


def resolve(options: argparse.Namespace) -> None:
    """What follows from other options where it was not given."""
    on_cuda = options.device == "cuda"
    if options.retries is None:
        options.retries = options.runs
    if options.min_cores is None:
        options.min_cores = 0.0 if on_cuda else ENOUGH * options.threads
    if options.trl_micro_batch is None:
        options.trl_micro_batch = "auto" if on_cuda else 1
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
    add(
        "--min-cores",
        type=float,
        help="least processor use beside others (0.9 of --threads)",
    )
    add("--threads", type=int, default=2, help="of each process (%(default)s)")
    add("--seconds", type=float, default=2.0, help="steps of a run repeat so long (%(default)s)")
    add("--prompts", type=int, help="another number of prompts than the case's")
    add("--lengths", type=Path, metavar="FILE", help="lengths of a data file's pairs")
    add("--tokenizer", type=Path, help="for --lengths (tokenizer_gpt2 beside the file)")
    add("--token-budget", type=int, help="of Penchant (what it takes by itself)")
    add(
        "--trl-micro-batch",
        type=lambda text: text if text == "auto" else int(text),
        help="pairs of TRL's best settings, or auto: whatever is fastest (1; cuda: auto)",
    )
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
    add("--together", type=int, help="processes that live at once (5 or less; cuda: 1)")
    add("--report", action="store_true", help="measures nothing; prints what is there")
    add("--list", action="store_true", help="shows the cases (* those that would run)")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
