"""Fits a model to trees with an objective: loads, computes the reference, loops, saves.

What `penchant train` and `penchant sft` share once their data are trees.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from penchant import engine as engines
from penchant.engine.reference_store import ReferenceStore
from penchant.errors import RecipeError
from penchant.models import load
from penchant.models.adapters import add_lora
from penchant.models.config import ModelConfig, ModelSource
from penchant.models.save import save_model
from penchant.train import checkpoint, durable, interrupt, plan, run_folder
from penchant.train.config import TrainingConfig
from penchant.train.device import auto_token_budget, pick_device
from penchant.train.health import watch
from penchant.train.loop import Loop, plan_run
from penchant.train.metrics import MetricsFile
from penchant.train.optim import build_optimizer, build_schedule, check_optimizer
from penchant.train.progress import ProgressLine
from penchant.train.step import Step
from penchant.train.tracking import check_trackers
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
    found = checkpoint.find_checkpoint(
        job.folder, job.training.resume, keep_best=job.training.keep_best
    )
    check_optimizer(job.training.optimizer)
    accelerator = _accelerator(job)
    dtype = load.compute_dtype(job.model.path, job.model.dtype, **_hub(job.model))
    torch.manual_seed(job.training.seed)
    model = build_model(job.model, dtype, base_dropout=job.training.base_dropout)
    model.to(accelerator.device)
    budget = token_budget(job, accelerator.device)
    needed = "reference" in job.objective.needs
    named = named_reference(job.reference, accelerator.device) if needed else None
    run_folder.start(job.folder, job.recipe_text, job.data_report)
    started = time.monotonic()
    store = fill_reference(job, model, named, budget, dtype) if needed else None
    del named
    gc.collect()
    prepared = engines.prepare(accelerator.prepare(model), dtype=dtype)
    step = Step(prepared, job.objective, store, budget)
    loop = _loop(job, accelerator, step, found)
    loop.stop = stop
    with stop.held():
        loop.run()
        accelerator.end_training()
        return _finish(job, loop, dtype, seconds=time.monotonic() - started)


def predict(job: Job) -> dict[str, Any]:
    """What the job will take; nothing is loaded but the model's config."""
    run_folder.check_free(job.folder, job.recipe_text, resume=job.training.resume)
    check_optimizer(job.training.optimizer)
    check_trackers(job.training.report_to)
    device = torch.device(pick_device(job.training.device))
    dtype = load.compute_dtype(job.model.path, job.model.dtype, **_hub(job.model))
    size = plan.ModelSize.of(load.load_config(job.model.path, **_hub(job.model)))
    budget = token_budget(job, device)
    planned = plan_run(job.train_trees, job.training)
    per_epoch, largest = plan.padded_tokens(job.train_trees, budget)
    eval_tokens, _ = plan.padded_tokens(job.eval_trees, budget)
    epochs = planned[-1].epoch
    needs_reference = "reference" in job.objective.needs
    forward = 2 * eval_tokens + (per_epoch + eval_tokens if needs_reference else 0)
    seconds = plan.estimate_seconds(
        size, trained=round(per_epoch * epochs), forward_only=forward, device=device, dtype=dtype
    )
    trainable = 0 if job.model.adapter else size.parameters
    return {
        "rows_used": job.data_report["rows_used"],
        "rows_set_aside": job.data_report["rows_in"] - job.data_report["rows_used"],
        "num_steps": len(planned),
        "num_tokens": sum(job.train_trees[i].num_tokens for one in planned for i in one.trees),
        "token_budget": budget,
        "parameters": size.parameters,
        "estimated_peak_bytes": plan.estimate_memory(size, largest, trainable=trainable),
        "estimated_seconds": float(f"{seconds:.2g}"),
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
    }


def build_model(config: ModelConfig, dtype: torch.dtype, *, base_dropout: bool) -> Any:
    """The policy as it is trained: float32 masters, or a frozen base in `dtype` with an adapter.

    Raises RecipeError for combinations that cannot be trained.
    """
    continues = load.is_adapter(config.path)
    if config.adapter is not None and continues:
        raise RecipeError(
            f"model.path={config.path!r} is an adapter, which goes on training; "
            "leave model.adapter out, or merge it first (penchant merge)"
        )
    frozen_base = continues or config.adapter is not None
    if config.quantization is not None and not frozen_base:
        raise RecipeError("model.quantization needs model.adapter: quantised weights do not train")
    model = load.load_causal_lm(
        config.path,
        dtype=dtype if frozen_base or dtype == torch.float64 else torch.float32,
        quantization=config.quantization,
        dropout=base_dropout,
        **_hub(config),
    )
    if config.adapter is not None:
        adapter = config.adapter
        targets = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets)
        model = add_lora(
            model, r=adapter.r, alpha=adapter.alpha, dropout=adapter.dropout, targets=targets
        )
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def token_budget(job: Job, device: torch.device) -> int:
    """Tokens per micro-batch, padding included: the recipe's, or what memory allows."""
    if job.training.token_budget != "auto":
        return int(job.training.token_budget)
    config = load.load_config(job.model.path, **_hub(job.model)).get_text_config()
    return auto_token_budget(config.vocab_size, device)


def _accelerator(job: Job) -> Accelerator:
    device = pick_device(job.training.device)
    trackers = check_trackers(job.training.report_to)
    accelerator = Accelerator(
        cpu=device == "cpu", log_with=trackers or None, project_dir=str(job.folder)
    )
    if accelerator.num_processes != 1:
        raise RecipeError(
            f"started as {accelerator.num_processes} processes; this version trains in one: "
            "start it without a launcher"
        )
    return accelerator


def fill_reference(
    job: Job, model: Any, other: engines.Engine | None, budget: int, dtype: torch.dtype
) -> ReferenceStore:
    """The reference log-probabilities of all trees, from the named or the starting model."""
    trees = [*job.train_trees, *job.eval_trees]
    store = ReferenceStore()
    fresh_adapter = job.model.adapter is not None
    adapter_off = model.disable_adapter() if fresh_adapter else nullcontext()
    engine = engines.prepare(model, dtype=dtype) if other is None else other
    with ProgressLine("reference", len(trees), "row") as line, adapter_off:
        store.fill(engine, trees, budget, line.advance)
    return store


def named_reference(source: ModelSource | None, device: torch.device) -> engines.Engine | None:
    """The model that the recipe names as its reference; None where the starting model is it."""
    if source is None:
        return None
    dtype = load.compute_dtype(source.path, source.dtype, **_hub(source))
    model = load.load_causal_lm(
        source.path, dtype=dtype, quantization=source.quantization, trainable=False, **_hub(source)
    )
    return engines.prepare(model.to(device), dtype=dtype)


def _loop(job: Job, accelerator: Accelerator, step: Step, found: Path | None) -> Loop:
    training, model = job.training, step.engine.model
    assert training.learning_rate is not None, "the recipe is resolved before a job is made"
    planned = plan_run(job.train_trees, training)
    optimizer = accelerator.prepare(
        build_optimizer(
            model,
            training.optimizer,
            learning_rate=training.learning_rate,
            weight_decay=training.weight_decay,
        )
    )
    scheduler = build_schedule(
        optimizer,
        training.lr_scheduler_type,
        num_steps=len(planned),
        warmup_ratio=training.warmup_ratio,
        warmup_steps=training.warmup_steps,
    )
    progress = checkpoint.Progress()
    if found is not None:
        checkpoint.load_weights(model, found)
        progress = checkpoint.load_state(found, optimizer=optimizer, scheduler=scheduler)
        print(f"resumed from {found.name} at step {progress.step} of {len(planned)}")
    metrics = MetricsFile(
        job.folder / run_folder.METRICS,
        resume_after=progress.step if found else None,
        settled=progress.settled,
    )
    return Loop(
        step=step,
        optimizer=optimizer,
        scheduler=scheduler,
        train_trees=job.train_trees,
        eval_trees=job.eval_trees,
        planned=planned,
        config=training,
        folder=job.folder,
        save_weights=lambda path: save_model(model, job.tokenizer, path),
        metrics=metrics,
        report=_tracking(accelerator, job),
        progress=progress,
        health=watch(training, len(planned), job.eval_trees, metrics.rows()),
    )


def _tracking(accelerator: Accelerator, job: Job) -> Callable[[dict[str, float], int], None]:
    if job.training.report_to:
        accelerator.init_trackers("penchant")
    return lambda row, step: accelerator.log(row, step=step)


def _finish(job: Job, loop: Loop, dtype: torch.dtype, *, seconds: float) -> dict[str, Any]:
    """Final weights at the root of the run folder, the summary and the model card."""
    model = loop.step.engine.model
    if job.training.keep_best and loop.progress.best_step is not None:
        checkpoint.load_weights(model, job.folder / f"checkpoint-{loop.progress.best_step}")
    rows = run_folder.last_rows(job.folder)
    store = loop.step.reference
    summary = {
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
        "engine": {"layout": loop.step.engine.layout, "reason": loop.step.engine.reason},
        "best_step": loop.progress.best_step,
        "seconds": round(seconds, 2),
        "health": loop.health.to_list() if loop.health else [],
        "train": rows.get("train", {}),
        "eval": rows.get("eval", {}),
    }
    with durable.filling(job.folder / "model") as temporary:
        save_model(model, job.tokenizer, temporary, dtype=dtype)
        (temporary / "README.md").write_text(run_folder.model_card(summary, job.recipe_text))
    durable.publish_files(temporary, job.folder)
    # Last: a run with a summary is done, one without it goes on from its last checkpoint.
    run_folder.write_json(job.folder / run_folder.SUMMARY, summary)
    return summary


def _hub(config: ModelConfig | ModelSource) -> dict[str, Any]:
    return {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
