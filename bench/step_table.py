"""The benchmark's tables: every side's figures, and targets beside what was measured."""

from __future__ import annotations

from typing import Any

from step_cases import (
    CONTESTANTS,
    PENCHANT,
    PENCHANT_ONLINE,
    SIZES,
    TRL_BEST,
    TRL_BEST_ONLINE,
    TRL_DEFAULT,
    Case,
    all_cases,
)

ALLOWED_DIFFERENCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Of the first step's loss and gradient norm between sides, relative; beyond it they do not compute
the same."""
_COLUMNS = ("", "step [s]", "from-to", "tokens/s", "memory [MiB]", "of GEMM peak", "cores", "runs")
_TARGETS = ("case", "vs TRL best", "vs TRL default", "memory vs best", "of GEMM peak", "loss, grad")


def full(cases: dict[str, Any], present: dict[str, str]) -> str:
    """Everything that the results file holds, as text.

    Args:
        present: fingerprints of today's code; what was measured on other code is marked.
    """
    known = all_cases()
    parts = []
    for name, entry in cases.items():
        text = details(name, known[name], entry)
        if any(entry["conditions"].get(key) != value for key, value in present.items()):
            text += "\n  measured on other code than this"
        parts.append(text)
    return "\n\n".join([*parts, targets(cases)])


def details(name: str, case: Case, entry: dict[str, Any]) -> str:
    """One case: a line for what it is, a line for each side."""
    summary = entry["summary"]
    lengths = entry["conditions"]["asked"]["lengths"]
    tokens = sum(prompt + sum(responses) for prompt, responses in lengths)
    size = SIZES[case.size]
    adapter = f", LoRA r={case.lora}" if case.lora else ""
    pairs = len(lengths) * case.pairs_per_prompt
    lines = [
        f"{name}: body {size.body / 1e6:.0f}M, vocabulary {size.vocabulary:,}, {case.dtype}"
        f"{adapter}; {len(lengths)} prompts x {case.responses} responses, {pairs} pairs, "
        f"{tokens:,} tokens"
    ]
    if summary:
        lines.append(f"  GEMM peak {summary['gemm_flops_per_second'] / 1e9:,.0f} GF/s")
    rows = [list(_COLUMNS)]
    for who, one in entry["contestants"].items():
        if who in summary.get("contestants", {}):
            rows.append(_figures(who, summary["contestants"][who]))
        else:
            reason = one.get("left_out") or one.get("failed") or "no usable run"
            rows.append([who, reason[:80]])
    notes = [f"  {who}: {CONTESTANTS[who]}" for who in entry["contestants"]]
    if "tuned" in entry:
        notes.append(f"  {TRL_BEST}: {entry['tuned']['trl_micro_batch']} pairs was the fastest")
    return "\n".join([*lines, aligned(rows), *notes, *_first_epoch(summary)])


def _figures(who: str, one: dict[str, Any]) -> list[str]:
    memory = one["memory_bytes"]
    return [
        who,
        f"{one['seconds']:.2f}",
        f"{one['fastest']:.2f}-{one['slowest']:.2f}",
        f"{one['tokens_per_second']:,.0f}",
        "-" if memory is None else f"{memory / 2**20:,.0f}",
        f"{one['share_of_gemm_peak']:.0%}",
        f"{one['cores']:.2f}",
        f"{one['usable_runs']} ({one['discarded_runs']} discarded)",
    ]


def _first_epoch(summary: dict[str, Any]) -> list[str]:
    """Sides that compute the reference in the step, among themselves."""
    faster = summary.get("times_faster", {}).get(PENCHANT_ONLINE, {})
    parts = [f"{faster[who]:.1f}x {who}" for who in (TRL_BEST_ONLINE, TRL_DEFAULT) if who in faster]
    return [
        f"  first epoch, reference in the step: {PENCHANT_ONLINE} is {', '.join(parts)}"
    ] * bool(parts)


def targets(cases: dict[str, Any]) -> str:
    """Measured (floor / goal) of every case that Penchant has finished."""
    rows = [list(_TARGETS)]
    known = all_cases()
    for name, entry in cases.items():
        summary = entry["summary"]
        if PENCHANT not in summary.get("contestants", {}):
            continue
        target = known[name].target
        faster = summary["times_faster"].get(PENCHANT, {})
        less = summary["times_less_memory"].get(PENCHANT, {})
        share = summary["contestants"][PENCHANT]["share_of_gemm_peak"]
        rows.append(
            [
                name,
                _against(faster.get(TRL_BEST), target.best, "{:.1f}x"),
                _against(faster.get(TRL_DEFAULT), target.default, "{:.1f}x"),
                _against(less.get(TRL_BEST), target.memory, "1/{:.1f}"),
                _against(share, target.share, "{:.0%}"),
                _difference(name, summary),
            ]
        )
    heading = "reference known; measured (floor / goal of spec/engine.md)"
    return "\n".join([heading, aligned(rows)])


def _against(value: float | None, target: tuple[float | None, float | None], style: str) -> str:
    if value is None:
        return "not measured"
    floor, goal = target
    if floor is None and goal is None:
        return style.format(value)
    shown = " / ".join("-" if one is None else style.format(one) for one in target)
    verdict = ""
    if floor is not None and value < floor:
        verdict = " BELOW FLOOR"
    elif goal is not None and value >= goal:
        verdict = " goal"
    return f"{style.format(value)} ({shown}){verdict}"


def disagreements(cases: dict[str, Any]) -> list[str]:
    """Cases whose sides do not compute the same step."""
    return [
        name
        for name, entry in cases.items()
        if not all(_agrees(name, one) for one in entry["summary"].get("difference", {}).values())
    ]


def _agrees(name: str, apart: dict[str, float]) -> bool:
    # Not their maximum: a NaN would get lost in it.
    return all(one <= ALLOWED_DIFFERENCE[all_cases()[name].dtype] for one in apart.values())


def _difference(name: str, summary: dict[str, Any]) -> str:
    """Relative, of the first step, the furthest of the other sides."""
    found = summary["difference"].values()
    if not found:
        return "not measured"
    loss, norm = (max(one[key] for one in found) for key in ("loss", "grad_norm"))
    agree = all(_agrees(name, one) for one in found)
    return f"{loss:.1e}, {norm:.1e}" + ("" if agree else " DIFFERS")


def aligned(rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell; the last cell of a row may run on."""
    count = max(map(len, rows))
    full_rows = [row for row in rows if len(row) == count]
    widths = [max(len(row[i]) for row in full_rows) for i in range(count)]
    widths[0] = max(len(row[0]) for row in rows)
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in rows
    )
