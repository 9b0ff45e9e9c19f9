"""Draws samples from a model for every prompt of a file; resumable, each prompt answered once.

The model runs here (transformers, or vLLM) or behind any endpoint with OpenAI's protocol. Several
processes (torchrun --nproc_per_node N -m penchant generate ...) share the prompts. Prompts that an
endpoint gives up on stand in the output with an `error`; the same command tries them again.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from penchant.errors import DataError, EndpointError
from penchant.generate.row_file import check
from penchant.recipe.generate import GenerateRecipe
from penchant.train.output_dir import check_possible


def run(recipe: GenerateRecipe, dry_run: bool = False) -> dict[str, Any]:
    """Writes the output and its summary beside it; returns the summary.

    Raises EndpointError, after all is written, where some prompts got no whole answer.
    """
    output = Path(recipe.output)
    check(output)
    check_possible(output.parent)

    from penchant.commands._generate_backends import prepare
    from penchant.commands._generate_run import Run
    from penchant.engine.processes import join
    from penchant.generate.questions import read_questions

    processes = join()
    found = read_questions(
        [source.model_dump() for source in recipe.data.train],
        format=recipe.data.format,
        seed=recipe.seed,
        prompt_as=recipe.prompt_as,
        system_prompt=recipe.system_prompt,
        repeated=recipe.repeated_prompts,
    )
    prepared = prepare(recipe, found)
    plan = _plan(recipe, found, prepared)
    if dry_run:
        most = {"new_tokens_at_most": len(prepared.questions) * recipe.n * recipe.max_tokens}
        return plan | most | {"output": str(output)}
    if processes.is_main:
        _print_plan(plan, found, prepared)
    about = {"model": recipe.model.path, "backend": recipe.backend, "seed": recipe.seed}
    digest = f"{len(prepared.questions)} {_digest(prepared.questions)}"
    identity = {"command": "generate", **about, **prepared.settings, "prompts": digest}
    about["settings"] = prepared.settings
    summary = Run(recipe, prepared, processes, about, identity, plan).go()
    _print_result(recipe, summary)
    if summary["failed"] and processes.is_main:
        raise EndpointError(_failure(recipe, summary))
    return summary


def _plan(recipe: GenerateRecipe, found: Any, prepared: Any) -> dict[str, Any]:
    reasons = Counter(one.reason for one in (*found.set_aside, *prepared.set_aside))
    if not prepared.questions:
        raise DataError(f"no prompt can be used; rows set aside: {_counted(reasons)}")
    if recipe.data.strict and reasons:
        raise DataError(
            f"data.strict: {reasons.total()} rows set aside ({_counted(reasons)}); mend them, or "
            "leave data.strict out"
        )
    return {
        "prompts": len(prepared.questions),
        "samples_per_prompt": recipe.n,
        "rows_repeated": found.repeated,
        "rows_set_aside": reasons.total(),
        "set_aside": dict(sorted(reasons.items())),
        "rows_left_out": found.left_out,
        "formats": dict(found.formats),
    }


def _failure(recipe: GenerateRecipe, summary: dict[str, Any]) -> str:
    """How many prompts failed, why, and what to do."""
    first = summary.get("first_error")
    such = f"; such as {first}" if first else ""
    reasons = summary["failed_reasons"].items()
    why = ", ".join(f"{number:,} times {reason}" for reason, number in reasons)
    return (
        f"{summary['failed']} of {summary['prompts']} prompts got no whole answer ({why}{such}); "
        f"they stand in {recipe.output} with an `error`: run the same command to try them again"
    )


def _digest(questions: Any) -> str:
    from penchant.generate.questions import Questions

    return Questions(tuple(questions)).digest


def _print_plan(plan: dict[str, Any], found: Any, prepared: Any) -> None:
    formats = ", ".join(f"{name} as {label}" for name, label in plan["formats"].items())
    print(f"{plan['prompts']:,} prompts, {plan['samples_per_prompt']} samples each ({formats})")
    if plan["rows_left_out"]:
        print(f"{plan['rows_left_out']:,} rows left out: not drawn by fraction or rows")
    if plan["rows_repeated"]:
        print(f"{plan['rows_repeated']:,} rows repeat an earlier row's prompt: answered once")
    if plan["rows_set_aside"]:
        print(f"{plan['rows_set_aside']:,} rows set aside: {_counted(plan['set_aside'])}")
        first = (*found.set_aside, *prepared.set_aside)[0]
        print(f"  such as {first.row_id}: {first.reason}: {first.detail}")
    if found.hidden:
        print(f"columns not carried along, the output has its own: {', '.join(found.hidden)}")
    for note in prepared.notes:
        print(f"note: {note}", file=sys.stderr)


def _print_result(recipe: GenerateRecipe, summary: dict[str, Any]) -> None:
    if summary["rows_refreshed"]:
        print(
            f"{summary['rows_refreshed']:,} rows got the columns that the input has now (such as "
            f"{summary['first_refreshed']}); their prompts, and so their answers, are as they were"
        )
    if "retries" not in summary:
        done = "nothing was generated" if summary["rows_refreshed"] else "nothing was done"
        print(f"{recipe.output} is complete already; {done}")
        return
    ends = _counted(summary["finish"])
    print(f"{summary['responses']:,} samples of {summary['prompts']:,} prompts; ended by: {ends}")
    if summary["new_tokens"] and summary["seconds"]:
        rate = summary["new_tokens"] / summary["seconds"]
        print(
            f"{summary['new_tokens']:,} new tokens in {summary['seconds']:.0f} s "
            f"({rate:,.0f} tokens/s, loading included)"
        )
    if summary["retries"]:
        print(f"failed attempts that were tried again: {_counted(summary['retries'])}")
    print(f"written: {recipe.output}")


def _counted(counts: Any) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in sorted(counts.items())) or "none"
