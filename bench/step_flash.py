"""What packing alone gives, on a CUDA device: flash attention over rows laid end to end."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from step_job import BETA, LEARNING_RATE, LORA_ALPHA_PER_RANK, Job, LeftOutError, finish, models_of
from step_watch import Watch
from step_workload import move

from penchant.models.adapters import add_lora
from penchant.train.optim import build_optimizer
from penchant.train.pairs import index_pairs
from penchant.types import TokenTree

TOKEN_BUDGET = 16_384
"""Tokens per micro-batch of packed rows, where the job names none."""
VARLEN = "bench_varlen"
"""torch's own variable-length flash kernel as an attention of transformers."""
_rows: dict[str, Any] = {}
"""Where the rows of the batch begin, and the longest: `VARLEN` reads it."""


def train(job: Job, watch: Watch, attention: str | None = None) -> dict[str, Any]:
    """What packing alone gives: every response a row with its prompt, rows laid end to end.

    Flash attention keeps the rows apart (the flash-attn package through transformers, or the same
    kernel as torch has it where the package is missing), TRL's fused head scores responses only,
    the reference is known; prompts are run once per response.
    """
    from transformers.utils import is_flash_attn_2_available
    from trl.trainer.utils import add_fused_lm_head

    if attention is None:
        if job.device != "cuda":
            raise LeftOutError("flash attention over packed rows needs a CUDA device")
        attention = "flash_attention_2" if is_flash_attn_2_available() else register()
    policy, reference = models_of(job)
    for model in (policy, reference):
        model.set_attn_implementation(attention)
        add_fused_lm_head(model)
    if job.case.lora:
        alpha = LORA_ALPHA_PER_RANK * job.case.lora
        policy = add_lora(policy, r=job.case.lora, alpha=alpha, dropout=0.0)
    move(policy)
    budget = job.token_budget or TOKEN_BUDGET
    batches = _batches(job.trees, budget)
    with torch.no_grad(), policy.disable_adapter() if job.case.lora else nullcontext():
        frozen = policy if job.case.lora else reference
        known = [_row_logps(job, frozen, batch) for batch in batches]
    del reference, frozen
    optimizer = build_optimizer(policy, "adamw", learning_rate=LEARNING_RATE, weight_decay=0.0)
    num_pairs = job.case.num_pairs

    def update() -> tuple[float, float]:
        total = 0.0
        for batch, reference_R in zip(batches, known, strict=True):
            ratio_R = _row_logps(job, policy, batch) - reference_R
            index = index_pairs(batch)
            margin_P = ratio_R[list(index.chosen_P)] - ratio_R[list(index.rejected_P)]
            loss = -torch.nn.functional.logsigmoid(BETA * margin_P).sum() / num_pairs
            loss.backward()
            total += float(loss.detach())
        return total, finish(policy, optimizer)

    policy.train()
    while not watch.done:
        watch.begin()
        watch.end(*update())
    return watch.record() | {"attention": attention, "token_budget": budget}


def register() -> str:
    """Makes torch's kernel an attention of transformers; returns its name."""
    from inspect import signature

    from torch.nn.attention.varlen import varlen_attn
    from transformers import AttentionInterface

    known = signature(varlen_attn).parameters
    causal: dict[str, Any] = {"is_causal": True}  # until torch 2.10
    if "window_size" in known:
        causal = {"window_size": (-1, 0)}
    if "enable_gqa" in known:
        causal["enable_gqa"] = True

    def attend(
        module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any
    ) -> tuple[Any, None]:
        flat = (part[0].transpose(0, 1).to(torch.bfloat16) for part in (query, key, value))
        starts, longest = _rows["starts"], _rows["longest"]
        out = varlen_attn(*flat, starts, starts, longest, longest, **causal)
        return out.unsqueeze(0), None

    AttentionInterface.register(VARLEN, attend)
    return VARLEN


def _batches(trees: Sequence[TokenTree], budget: int) -> list[list[TokenTree]]:
    """Whole trees in groups of at most so many tokens, each prompt counted per response."""
    groups: list[list[TokenTree]] = []
    filled = 0
    for tree in trees:
        repeated = (len(tree.response_ids) - 1) * len(tree.prompt_ids)
        filled += tree.num_tokens + repeated
        if not groups or filled > budget:
            groups.append([])
            filled = tree.num_tokens + repeated
        groups[-1].append(tree)
    return groups


def _row_logps(job: Job, model: Any, trees: Sequence[TokenTree]) -> torch.Tensor:
    """Log-probability of each response of the trees, their rows packed into one sequence."""
    ids: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    owners: list[int] = []
    rows = [(tree.prompt_ids, response) for tree in trees for response in tree.response_ids]
    for number, (prompt, response) in enumerate(rows):
        length = len(prompt) + len(response)
        ids += [*prompt, *response]
        positions += range(length)
        labels += [-100] * len(prompt) + list(response)
        owners += [number] * length
    lengths = [len(prompt) + len(response) for prompt, response in rows]
    starts = torch.tensor([0, *lengths], device=job.device).cumsum(0, dtype=torch.int32)
    _rows.update(starts=starts, longest=max(lengths))
    tensors = [torch.tensor([values], device=job.device) for values in (ids, positions, labels)]
    is_bf16 = job.case.dtype == "bfloat16"
    with torch.autocast(job.device, torch.bfloat16) if is_bf16 else nullcontext():
        logps_T = model(
            input_ids=tensors[0], position_ids=tensors[1], labels=tensors[2], fused_lm_head=True
        ).log_probs[0]
    owner_T = torch.tensor(owners[1:], device=job.device)
    return logps_T.new_zeros(len(rows)).index_add(0, owner_T, logps_T)
