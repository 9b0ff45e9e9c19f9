"""Scores every response of a file by a reward model, or by a policy's log-probabilities.

One row out for each row in, in the same order; interrupted, the same command goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.errors import RecipeError, Stopped
from penchant.recipe.selection import ScoreRecipe, ScoringModel

if TYPE_CHECKING:
    from penchant.commands._score_models import Against
    from penchant.data.carried import CarriedRows
    from penchant.engine.processes import Processes
    from penchant.generate.journal import Journal


def run(recipe: ScoreRecipe, dry_run: bool = False) -> dict[str, Any]:
    """Writes the scored rows; returns what their summary holds.

    Raises RecipeError, ModelError, DataError for what cannot be scored, SaveError on a full disk.
    """
    from penchant.commands import _score_models as models
    from penchant.commands._score_run import check_columns
    from penchant.data.carried import CarriedRows
    from penchant.generate.row_file import check
    from penchant.models.load import load_config
    from penchant.train.output_dir import check_possible

    output = Path(recipe.output)
    check(output)
    check_possible(output.parent)
    for model in recipe.scorers:
        load_config(model.path, **_hub(model))
    models.check_kinds(recipe)
    beside = [models.against(recipe, model) for model in recipe.scorers]
    sources = [source.model_dump() for source in recipe.data.train]
    rows = CarriedRows.of(sources, format=recipe.data.format, seed=recipe.seed)
    num_rows, digest = rows.count_and_digest()
    left_out = {"rows_left_out": rows.left_out, "empty_responses_left_out": rows.num_empty}
    check_columns(rows, recipe)
    if dry_run:
        from penchant.commands._score_plan import plan

        return left_out | plan(recipe, rows, beside, _device(recipe))
    identity = _identity(recipe, digest, beside)
    device, processes = _join(recipe)
    job = _Job(recipe, rows, num_rows, left_out, identity, device, processes, beside)
    before = _summary_of_before(job)
    summary = _run(job) if before is None else before
    if processes.is_main:
        _tell(recipe, summary, was_there=before is not None)
    return summary


@dataclass(frozen=True)
class _Job:
    """What is scored, by whom and where."""

    recipe: ScoreRecipe
    rows: CarriedRows
    num_rows: int
    left_out: dict[str, int]
    """Rows and responses that are in no output."""
    identity: dict[str, Any]
    device: str
    processes: Processes
    beside: list[Against | None]

    @property
    def total(self) -> int:
        """Rows of the journal."""
        return self.num_rows * len(self.recipe.scorers)


def _summary_of_before(job: _Job) -> dict[str, Any] | None:
    """Of an output that is there already; None where there is work to do."""
    from penchant.generate.journal import finished

    processes = job.processes

    def whole() -> dict[str, Any] | None:
        return finished(Path(job.recipe.output), job.identity) if processes.is_main else None

    before = processes.gather(processes.agreed(whole))[0]
    return None if before is None else dict(before)


def _run(job: _Job) -> dict[str, Any]:
    """The summary of the output that is made."""
    from penchant.train.interrupt import watch

    processes, output = job.processes, Path(job.recipe.output)
    journal = _open(output, job.identity, processes)
    with journal, watch() as interrupt:
        with _stopping(journal, job.total):
            _score(job, journal)
            interrupt.check()
        journal.close(keep_lock=True)
        processes.barrier()
        full: dict[str, Any] = {}
        if processes.is_main:
            with interrupt.held():
                full = _publish(job, journal)
        return dict(processes.gather(full)[0])


def _score(job: _Job, journal: Journal) -> None:
    """This process's rows, model after model."""
    from penchant.commands._score_models import load_scorer
    from penchant.commands._score_run import Work
    from penchant.train.progress import ProgressLine

    recipe, size = job.recipe, job.processes.size
    work = Work(recipe, job.rows, job.num_rows, journal, job.processes)
    for place, model in enumerate(recipe.scorers):
        load = partial(load_scorer, recipe, model, job.device, job.beside[place])
        pending = work.pending(place)
        with ProgressLine(f"scores by {model.name}", -(-pending // size), "row") as line:
            work.run(place, load, line.advance)


def _publish(job: _Job, journal: Journal) -> dict[str, Any]:
    from penchant.commands._score_run import Finish

    journal.gather(job.total)
    finish = Finish(job.recipe, job.rows, job.num_rows, journal, job.identity["data"])
    scales = finish.scales()
    summary = finish.summary(scales) | job.left_out | _of_recipe(job.recipe, job.beside)
    return journal.publish(job.total, summary, finish.output(scales))


def _open(output: Path, identity: dict[str, Any], processes: Processes) -> Journal:
    """The journal in every process; where the main one cannot open it, all say so and end."""
    from penchant.generate.journal import Journal

    def opened(is_main: bool) -> Journal | None:
        own = processes.is_main is is_main
        return Journal.open(output, identity, is_main=is_main) if own else None

    first = processes.agreed(lambda: opened(True))
    journal = first or processes.agreed(lambda: opened(False))
    if first is not None:
        processes.agreed(lambda: None)
    assert journal is not None, "every process opens one"
    return journal


def _join(recipe: ScoreRecipe) -> tuple[str, Processes]:
    """Where this process computes, and the others, where a launcher started several."""
    from penchant.engine.processes import ALONE, join

    device = _device(recipe)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched == 1:
        return device, ALONE
    from accelerate import Accelerator

    processes = join()  # which Accelerate finds; it then gives each process its device
    accelerator = Accelerator(cpu=device == "cpu")
    if processes.size != launched:
        raise RecipeError(
            f"the launcher started {launched} processes, but they found {processes.size}; start "
            "them with: torchrun --nproc_per_node N -m penchant score ..."
        )
    return str(accelerator.device), processes


def _device(recipe: ScoreRecipe) -> str:
    from penchant.train.device import pick_device

    try:
        return pick_device(recipe.device)
    except RecipeError as error:
        raise RecipeError(str(error).replace("training.device", "device")) from None


@contextmanager
def _stopping(journal: Journal, total: int) -> Iterator[None]:
    """A signal ends the work where it is; what is in the journal stays."""
    try:
        yield
    except Stopped as stop:
        journal.close(keep_lock=True)
        raise Stopped(
            f"stopped: {len(journal.done)} of {total} rows are scored; run the same command to go "
            "on",
            stop.exit_code,
        ) from None


def _identity(recipe: ScoreRecipe, digest: str, beside: list[Against | None]) -> dict[str, Any]:
    """What the scores depend on, and nothing that only changes memory and speed."""
    from penchant.data.render import chat_template
    from penchant.train.fingerprints import of_models

    def files(path: str, revision: str | None) -> str:
        found = of_models([{"path": path, "revision": revision}], kept=True)
        content = sorted((Path(name).name, value) for name, value in found.items())
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    data = recipe.data.model_dump(exclude={"train", "format", "strict"})
    if recipe.data.chat_template is not None:
        data["chat_template"] = chat_template(recipe.data.chat_template)
    return {
        "command": "score",
        "data": digest,
        "models": [
            {"name": model.name, "weight": model.weight, "dtype": model.dtype,
             "files": files(model.path, model.revision)}
            for model in recipe.scorers
        ],
        "by": recipe.by,
        "reference": [
            None if one is None
            else {"files": files(one.reference.path, one.reference.revision), "beta": one.beta}
            for one in beside
        ],
        "standardise": recipe.standardise,
        "column": recipe.column,
        **{f"data.{name}": value for name, value in data.items()},
    }  # fmt: skip


def _of_recipe(recipe: ScoreRecipe, beside: list[Against | None]) -> dict[str, Any]:
    first = beside[0]
    return {
        "output": recipe.output,
        "column": recipe.column,
        "by": recipe.by,
        "standardise": recipe.standardise,
        "reference": None if first is None else first.reference.path,
        "beta": None if first is None else first.beta,
    }


def _tell(recipe: ScoreRecipe, summary: dict[str, Any], *, was_there: bool) -> None:
    rows = f"{summary['rows']:,} rows"
    done = f"{recipe.output} is complete already, {rows}"
    print(
        f"{done if was_there else f'wrote {rows} to {recipe.output}'}: {summary['responses']:,} "
        f"responses of {summary['rows_scored']:,} rows scored by {recipe.by}"
    )
    for reason, count in summary["set_aside"].items():
        print(f"{count:,} rows set aside: {reason} (in their places, with the reason)")
    for name, what in (
        ("rows_left_out", "rows left out: not drawn by fraction or rows"),
        ("empty_responses_left_out", "responses left out: no text, in a format without a place"),
        ("responses_without_score", "responses have no finite score"),
        ("prompts_cut", "responses were scored behind a cut prompt"),
        ("responses_cut", "responses were cut"),
    ):
        if summary.get(name):  # an earlier version's summary may lack one
            print(f"{summary[name]:,} {what}")


def _hub(model: ScoringModel) -> dict[str, Any]:
    return {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
