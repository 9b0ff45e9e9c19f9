"""One contestant in a process of its own: `python step_measure.py JOB`, started by step_turns.py.

Before every step it prints {"waiting": seconds of the step before} and reads a line: "go" or
"stop". Its last line is {"record": ...}.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import replace
from typing import Any

import torch
from step_cases import (
    PACKED_FLASH,
    PENCHANT,
    PENCHANT_COMPILED,
    PENCHANT_ONLINE,
    TRL_BEST,
    TRL_BEST_ONLINE,
    TRL_DEFAULT,
    all_cases,
)
from step_job import Job, LeftOutError
from step_watch import Watch, gemm_rate
from step_workload import make_trees, num_tokens, useful_flops

SIDES = {
    PENCHANT: "step_penchant",
    PENCHANT_ONLINE: "step_penchant",
    PENCHANT_COMPILED: "step_penchant",
    TRL_BEST: "step_trl",
    TRL_BEST_ONLINE: "step_trl",
    TRL_DEFAULT: "step_trl",
    PACKED_FLASH: "step_flash",
}
"""The module of each contestant: a process loads its own side's alone."""
ONLINE = (PENCHANT_ONLINE, TRL_BEST_ONLINE, TRL_DEFAULT)
"""Contestants whose step computes the reference too."""


def measure(asked: dict[str, Any]) -> dict[str, Any]:
    """The record of one contestant on one case; `left_out` says why where it cannot run."""
    name, device, lengths = asked["contestant"], asked["device"], asked["lengths"]
    case = replace(all_cases()[asked["case"]], prompts=len(lengths))
    trees = make_trees(case, lengths)
    watch = Watch(device, turn)
    job = Job(
        name=name,
        case=case,
        trees=trees,
        device=device,
        token_budget=asked["token_budget"],
        trl_micro_batch=asked["trl_micro_batch"],
        compiles=True if name == PENCHANT_COMPILED else "auto",
    )
    try:
        record = importlib.import_module(SIDES[name]).train(job, watch)
    except LeftOutError as error:
        return {"left_out": str(error)}
    dtype = getattr(torch, case.dtype)
    record["gemm_flops_per_second"] = gemm_rate(device, dtype, asked["gemm_size"])
    record["tokens"] = num_tokens(trees)
    record["useful_flops"] = useful_flops(case, trees, online=name in ONLINE)
    return record


def turn(step: dict[str, Any]) -> bool:
    """Says that it waits, and whether a step was asked for then."""
    print(json.dumps({"waiting": step}), flush=True)
    return sys.stdin.readline().strip() == "go"


def main() -> None:
    """Reads the job from the command line."""
    asked = json.loads(sys.argv[1])
    if asked["device"] == "cpu":
        torch.set_num_threads(asked["threads"])
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: asked["threads"]])
    print(json.dumps({"record": measure(asked)}), flush=True)


if __name__ == "__main__":
    main()
