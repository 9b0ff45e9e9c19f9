"""Penchant's side of the benchmark."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from step_cases import PENCHANT_ONLINE
from step_job import BETA, LEARNING_RATE, LORA_ALPHA_PER_RANK, Job, finish, models_of
from step_watch import Watch
from step_workload import move

from penchant import engine, objectives
from penchant.engine.reference_store import ReferenceStore
from penchant.models.adapters import add_lora
from penchant.models.config import AdapterConfig, ModelConfig
from penchant.train.costs import ModelSize, Setting, auto_token_budget
from penchant.train.memory_use import free_bytes, keep_freed
from penchant.train.optim import build_optimizer
from penchant.train.policy import COMPILED_FROM, about, compile_layers
from penchant.train.step import Step


@dataclass
class Parts:
    """What a step consists of."""

    step: Step
    policy: Any
    optimizer: torch.optim.Optimizer
    reference: Callable[[], ReferenceStore]
    """Computes the reference of the batch."""
    engines: tuple[engine.Engine, ...]
    """Those that live."""


def make(job: Job) -> Parts:
    """The policy behind an engine, layout auto; on CUDA compiled as in a run of many updates.

    The reference of a step that computes it is a frozen second copy of the model here, so that the
    policy can differ from it; a real run computes it from the policy before its first update.
    """
    keep_freed(torch.device(job.device))
    case, online = job.case, job.name == PENCHANT_ONLINE
    autocast = torch.bfloat16 if case.dtype == "bfloat16" else None
    free = free_bytes(torch.device(job.device))
    policy, reference = models_of(job)
    if case.lora:
        alpha = LORA_ALPHA_PER_RANK * case.lora
        policy = add_lora(policy, r=case.lora, alpha=alpha, dropout=0.0)
    move(policy)
    prepared = engine.prepare(policy, dtype=autocast)
    compile_layers(prepared, job.compiles, COMPILED_FROM)
    known = prepared if case.lora else engine.prepare(reference, dtype=autocast)
    budget = job.token_budget or own_budget(job, prepared, free)

    def reference_of_batch() -> ReferenceStore:
        store = ReferenceStore()
        with policy.disable_adapter() if case.lora else nullcontext():
            store.fill(known, job.trees, budget)
        return store

    store = ReferenceStore() if online else reference_of_batch()
    if not online:
        del known, reference
    step = Step(prepared, objectives.load("dpo", beta=BETA), store, budget)
    optimizer = build_optimizer(policy, "adamw", learning_rate=LEARNING_RATE, weight_decay=0.0)
    policy.train()
    engines = (prepared, known) if online else (prepared,)
    return Parts(step, policy, optimizer, reference_of_batch, engines)


def train(job: Job, watch: Watch) -> dict[str, Any]:
    """`train/step.py` as the loop calls it."""
    parts = make(job)

    def update() -> tuple[float, float]:
        if job.name == PENCHANT_ONLINE:
            parts.step.reference = parts.reference()
        loss = parts.step.train(job.trees).means()["loss"]
        return loss, finish(parts.policy, parts.optimizer)

    while not watch.done:
        watch.begin()
        watch.end(*update())
    for one in parts.engines:
        one.release()
    return watch.record() | about(parts.step.engine) | {"token_budget": parts.step.token_budget}


def own_budget(job: Job, prepared: engine.Engine, free: int) -> int:
    """Tokens per micro-batch that a run of Penchant takes with `free` bytes before loading."""
    case = job.case
    adapter = None
    if case.lora:
        adapter = AdapterConfig(r=case.lora, alpha=LORA_ALPHA_PER_RANK * case.lora, dropout=0.0)
    config = prepared.model.config
    setting = Setting(
        size=ModelSize.of(config, ModelConfig(path="bench", adapter=adapter)),
        padded=prepared.padded,
        dtype=getattr(torch, case.dtype),
        checkpointing=False,
        optimizer="adamw",
    )
    return auto_token_budget(setting, free, torch.device(job.device))
