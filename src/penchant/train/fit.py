"""Fits a model to trees with an objective: loads, computes the reference, loops, saves.

What `penchant train` and `penchant sft` share once their data are trees.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from penchant import engine as engines
from penchant.engine.processes import Processes
from penchant.models import load
from penchant.models.config import ModelConfig, ModelSource
from penchant.train import (
    checkpoint,
    durable,
    final_pairs,
    fingerprints,
    interrupt,
    launch,
    memory_use,
    reference,
    reward_model,
    run_folder,
    token_kl,
)
from penchant.train.config import TrainingConfig
from penchant.train.costs import ModelSize, Setting, token_budget
from penchant.train.health import watch
from penchant.train.learner import Learner, Snapshot
from penchant.train.loop import Loop, PlannedStep, plan_run
from penchant.train.metrics import MetricsFile
from penchant.train.optim import build_optimizer, build_schedule, check_optimizer
from penchant.train.policy import Placement, about, build_model, compile_layers, hub_keywords
from penchant.train.reward_step import RewardStep
from penchant.train.reward_tasks import Tasks
from penchant.train.step import Step
from penchant.types import TokenTree


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that one fit needs; nothing of it is read twice from disk."""

    model: ModelConfig
    reference: ModelSource | None
    objective: Any
    tokenizer: PreTrainedTokenizerBase
    train_trees: Sequence[TokenTree]
    eval_trees: Sequence[TokenTree]
    training: TrainingConfig
    """With learning_rate resolved."""
    folder: Path
    recipe_text: str
    data_report: dict[str, Any]
    tasks: Tasks | None = None
    """Of a reward model; None: a policy is trained."""

    def planned(self) -> list[PlannedStep]:
        """Every update, in order."""
        if self.tasks is None:
            return plan_run(self.train_trees, self.training)
        size, seed = self.training.batch_size, self.training.seed
        epochs = self.tasks.epoch_planner(self.train_trees, size, seed)
        return plan_run(self.train_trees, self.training, epochs)


def fit(job: Job) -> dict[str, Any]:
    """Runs a job and returns what `summary.json` holds.

    Raises RecipeError before anything is written, NonFiniteLossError while training, SaveError
    where something cannot be written, Stopped after a signal.
    """
    run_folder.check_free(job.folder, job.recipe_text, resume=job.training.resume)
    done = run_folder.finished(job.folder)
    if done is not None:
        print(f"{job.folder} holds this run, finished; nothing to do")
        return done
    with interrupt.watch() as stop:
        return _fit(job, stop)


def _fit(job: Job, stop: interrupt.Interrupt) -> dict[str, Any]:
    check_optimizer(job.training.optimizer)
    accelerator, processes = launch.start(job.training, job.folder)
    memory_use.prepare(accelerator.device)
    memory_use.restart_peak(accelerator.device)
    free = memory_use.free_bytes(accelerator.device)
    dtype = load.compute_dtype(job.model.path, job.model.dtype, **hub_keywords(job.model))
    torch.manual_seed(job.training.seed)
    read_from = reference.origin(job)
    place = Placement(accelerator.device, dtype, processes)
    prepared = _prepare(job, place)
    needed = "reference" in job.objective.needs
    named, store = reference.load(job, read_from, place)
    prepared, kl_to = token_kl.beside(job, prepared, named, place)
    if kl_to is not None and processes.is_main:
        print(token_kl.line(job, prepared, kl_to))
    budget = _token_budget(job, prepared, dtype, free, processes)
    found = _start_folder(job, dtype, processes)
    started = time.monotonic()
    if needed and store is None:
        store = reference.fill(job, read_from, named or prepared, budget, processes)
    reference_seconds = time.monotonic() - started
    del named
    gc.collect()
    step: final_pairs.AnyStep
    if job.tasks is None:
        metrics = job.training.extra_metrics
        step = Step(prepared, job.objective, store, budget, processes, metrics, kl_to)
    else:
        step = RewardStep(prepared, job.objective, job.tasks, budget, processes)
    loop = _loop(job, accelerator, step, found)
    loop.stop = stop
    with stop.held():
        loop.run()
        seconds = {"all": time.monotonic() - started, "reference": reference_seconds}
        summary = _finish(job, loop, dtype, seconds)
    # Last: it also ends the communication of several processes.
    accelerator.end_training()
    return summary


def _prepare(job: Job, place: Placement) -> engines.Engine:
    if job.tasks is not None:
        model = reward_model.build(job, place.dtype, sharded=place.processes.sharded)
    else:
        model = build_model(job.model, place.dtype, base_dropout=job.training.base_dropout)
    prepared = place.prepare(model)
    compile_layers(prepared, job.training.compile, len(job.planned()))
    return prepared


def _start_folder(job: Job, dtype: torch.dtype, processes: Processes) -> Path | None:
    """The checkpoint to go on from, and the first files of the run folder; by the main process."""
    found = None
    if processes.is_main:
        found = checkpoint.find_checkpoint(
            job.folder, job.training.resume, keep_best=job.training.keep_best
        )
        run_folder.start(job.folder, job.recipe_text, job.data_report)
        fingerprints.start(job.folder, job.recipe_text, (job.train_trees, job.eval_trees), dtype)
    return processes.gather(found)[0]


def _token_budget(
    job: Job, prepared: engines.Engine, dtype: torch.dtype, free: int, processes: Processes
) -> int:
    """The recipe's, or what memory allows; the same in every process."""
    if job.training.token_budget != "auto":
        return int(job.training.token_budget)
    size = ModelSize.of_job(load.load_config(job.model.path, **hub_keywords(job.model)), job)
    setting = Setting.of(
        job.model,
        job.training,
        size,
        dtype,
        padded=prepared.padded,
        shards=processes.size if processes.sharded else 1,
    )
    device = next(prepared.model.parameters()).device
    return min(processes.gather(token_budget(job.training, setting, free, device)))


def _loop(
    job: Job, accelerator: Accelerator, step: final_pairs.AnyStep, found: Path | None
) -> Loop:
    training, model = job.training, step.engine.model
    assert training.learning_rate is not None, "the recipe is resolved before a job is made"
    planned = job.planned()
    optimizer = build_optimizer(
        model,
        training.optimizer,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
    )
    scheduler = build_schedule(
        optimizer,
        training.lr_scheduler_type,
        num_steps=len(planned),
        warmup_ratio=training.warmup_ratio,
        warmup_steps=training.warmup_steps,
    )
    state = step.weigher if isinstance(step, RewardStep) else None
    learner = Learner(model, job.tokenizer, optimizer, scheduler, step.processes, state)
    progress = checkpoint.Progress()
    if found is not None:
        progress = learner.resume(found)
        if step.processes.is_main:
            print(f"resumed from {found.name} at step {progress.step} of {len(planned)}")
    metrics = _metrics(job, step.processes, progress if found else None)
    return Loop(
        step=step,
        learner=learner,
        train_trees=job.train_trees,
        eval_trees=job.eval_trees,
        planned=planned,
        config=training,
        folder=job.folder,
        metrics=metrics,
        report=_tracking(accelerator, job),
        progress=progress,
        health=watch(training, len(planned), job.eval_trees, metrics.rows()),
    )


def _metrics(job: Job, processes: Processes, resumed: checkpoint.Progress | None) -> MetricsFile:
    """The main process puts the file in order before the others read it."""
    path = job.folder / run_folder.METRICS
    metrics = None
    if processes.is_main:
        metrics = MetricsFile(
            path,
            resume_after=resumed.step if resumed else None,
            settled=resumed.settled if resumed else True,
        )
    processes.barrier()
    return metrics or MetricsFile(path, read_only=True)


def _tracking(accelerator: Accelerator, job: Job) -> Callable[[dict[str, float], int], None]:
    if job.training.report_to:
        accelerator.init_trackers("penchant")
    return lambda row, step: accelerator.log(row, step=step)


def _finish(
    job: Job, loop: Loop, dtype: torch.dtype, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Final weights at the root of the run folder, the summary and the model card."""
    model, processes = loop.step.engine.model, loop.step.processes
    peak = memory_use.peak_bytes(next(model.parameters()).device)
    if job.training.keep_best and loop.progress.best_step is not None:
        loop.learner.load_weights(job.folder / f"checkpoint-{loop.progress.best_step}")
    final_pairs.write(job.folder, loop.step, job.train_trees, job.eval_trees, job.training.seed)
    snapshot = loop.learner.snapshot()
    rows = run_folder.last_rows(job.folder)
    store = loop.step.reference
    summary = {
        **(loop.step.about() if isinstance(loop.step, RewardStep) else {}),
        "model": job.model.path,
        "objective": job.objective.name,
        "adapter": hasattr(model, "peft_config"),
        "num_steps": len(loop.planned),
        "num_tokens": loop.progress.num_tokens,
        "rows_in": job.data_report["rows_in"],
        "rows_used": job.data_report["rows_used"],
        "rows_set_aside": job.data_report["rows_in"] - job.data_report["rows_used"],
        "reference_rows_computed": store.rows_computed if store else 0,
        "reference_rows_reused": store.rows_reused if store else 0,
        "engine": about(loop.step.engine),
        "best_step": loop.progress.best_step,
        "seconds": round(seconds["all"], 2),
        "resources": {
            "reference_seconds": round(seconds["reference"], 2),
            "seconds_per_step": loop.seconds_per_step(),
            "peak_memory_bytes": max(processes.gather(peak)),
            "token_budget": loop.step.token_budget,
        },
        "health": loop.health.to_list() if loop.health else [],
        "train": rows.get("train", {}),
        "eval": rows.get("eval", {}),
    }
    if processes.is_main:
        _write_final(job, loop.learner, snapshot, summary, dtype)
    processes.barrier()
    return summary


def _write_final(
    job: Job, learner: Learner, snapshot: Snapshot, summary: dict[str, Any], dtype: torch.dtype
) -> None:
    with durable.filling(job.folder / "model") as temporary:
        learner.save_weights(snapshot, temporary, dtype)
        (temporary / "README.md").write_text(run_folder.model_card(summary, job.recipe_text))
    durable.publish_files(temporary, job.folder)
    fingerprints.finish(job.folder)
    # Last: a run with a summary is done, one without it goes on from its last checkpoint.
    run_folder.write_json(job.folder / run_folder.SUMMARY, summary)
