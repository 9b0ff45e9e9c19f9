"""Shows the whole way in miniature: SFT, every objective from that start, one table, one page.

Finished parts are kept: the same command again, or with more seeds or objectives, goes on where
it stopped.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.errors import RecipeError
from penchant.recipe import DemoRecipe
from penchant.train.output_dir import check_possible

if TYPE_CHECKING:
    from rich.console import Console

    from penchant.commands._demo_measure import Measured
    from penchant.commands._demo_plan import Place

_STAMP = "demo.json"
_WARNING = "quick=true: a few steps only, to see that everything runs. The figures mean nothing."


def run(recipe: DemoRecipe, dry_run: bool = False) -> dict[str, Any]:
    """Writes runs, answers, `results.json` and `index.html` to `output_dir`; returns the results.

    Raises RecipeError where the folder holds something else, or a demo with other settings.
    """
    from penchant.commands import _demo_plan as plan

    folder = Path(recipe.output_dir)
    stamp = {"num_prompts": recipe.num_prompts, "quick": recipe.quick}
    _check_folder(folder, stamp)
    names, places = plan.policies(recipe), plan.places(recipe)
    further = plan.CHAIN if recipe.full else ()
    steps = [(place, name) for place in places for name in ("miniature", *names, *further)]
    if dry_run:
        words = [f"{place.folder.name}: {name}" for place, name in steps]
        return {"output_dir": recipe.output_dir, "steps": words, **stamp}

    from rich.console import Console

    from penchant.commands._demo_measure import write_whole

    write_whole(folder / _STAMP, json.dumps(stamp, indent=2) + "\n")
    console, clock = Console(stderr=True), _Clock(steps)
    for place, name in steps:
        console.print(clock.line(place, name), highlight=False)
        _make(recipe, place, name)
        clock.advance(name)
    return _finish(recipe, clock.seconds(), places, names)


def _check_folder(folder: Path, stamp: Mapping[str, Any]) -> None:
    """Refuses a folder that is not ours, or ours with other settings."""
    written = folder / _STAMP
    if written.is_file():
        before = json.loads(written.read_text(encoding="utf-8"))
        keys = ", ".join(key for key in stamp if before.get(key) != stamp[key])
        if keys:
            raise RecipeError(
                f"output_dir={str(folder)!r} holds a demo with other settings (it differs in "
                f"{keys}); name a new folder"
            )
    check_possible(folder)
    if not written.is_file() and folder.is_dir() and any(folder.iterdir()):
        raise RecipeError(
            f"output_dir={str(folder)!r} is not empty and holds no demo; name a new folder"
        )


class _Clock:
    """Which step it is and how long the rest may take."""

    # Seconds on two CPU cores; only their proportions matter.
    _USUAL = {"miniature": 4.0, "sft": 70.0, "candidates": 200.0, "best-of-n-sft": 20.0}
    _USUAL_TRAINING = 40.0

    def __init__(self, steps: list[tuple[Place, str]]) -> None:
        self._total, self._number = len(steps), 0
        self._left = sum(self._usual(name) for _, name in steps)
        self._done = self._spent = 0.0
        self._start = self._step_start = time.monotonic()

    def _usual(self, name: str) -> float:
        return self._USUAL.get(name, self._USUAL_TRAINING)

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    def line(self, place: Place, name: str) -> str:
        """What is said before a step."""
        self._number += 1
        self._step_start = time.monotonic()
        pace = self._spent / self._done if self._done else 1.0
        minutes, seconds = divmod(round(self._left * pace), 60)
        what = "the miniature world" if name == "miniature" else name
        return (
            f"[bold]\\[{self._number}/{self._total}][/bold] seed {place.seed}: {what}  "
            f"(about {minutes}:{seconds:02d} left)"
        )

    def advance(self, name: str) -> None:
        """A step is done; one that was there already says nothing of the pace."""
        self._left -= self._usual(name)
        took = time.monotonic() - self._step_start
        if took > 1:
            self._done += self._usual(name)
            self._spent += took


def _make(recipe: DemoRecipe, place: Place, name: str) -> None:
    """One step, unless its result is there already."""
    from penchant.commands import _demo_plan as plan
    from penchant.commands import run as run_command
    from penchant.commands._demo_measure import measure

    if name == "miniature":
        _make_world(recipe, place)
        return
    if name in plan.CHAIN:
        from penchant.commands import _demo_chain as chain

        chain.make(recipe, place, name)
        if name == plan.TUNED:
            measure(place, name, _prompts(recipe, place))
        return
    if not (place.run(name) / "summary.json").is_file():
        if name == plan.START:
            run_command("sft", place.world / "sft.yaml", plan.sft_settings(recipe, place))
        else:
            settings = plan.train_settings(recipe, place, name)
            run_command("train", place.world / "train.yaml", settings)
    measure(place, name, _prompts(recipe, place))


def _make_world(recipe: DemoRecipe, place: Place) -> None:
    """The miniature's files."""
    from penchant.commands import _demo_plan as plan
    from penchant.commands import run as run_command
    from penchant.commands._demo_measure import write_whole

    finished = place.folder / "miniature.finished"
    if not finished.is_file():
        # What an interrupted run left there is ours to replace: the stamp says so.
        shutil.rmtree(place.world, ignore_errors=True)
        run_command("miniature", overrides=plan.miniature_settings(recipe, place))
        write_whole(finished, "")


def _finish(
    recipe: DemoRecipe, seconds: float, places: list[Place], names: list[str]
) -> dict[str, Any]:
    """Table, results and page from what lies on disk."""
    from rich.console import Console

    from penchant.commands._demo_measure import measure, write_whole
    from penchant.commands._demo_report import figures, print_table, report
    from penchant.pages import demo_page

    folder, console = Path(recipe.output_dir), Console()
    answers: dict[int, dict[str, Measured]] = {}
    for place in places:
        prompts = _prompts(recipe, place)
        answers[place.seed] = {name: measure(place, name, prompts) for name in names}
    by_seed = {place.seed: figures(place, answers[place.seed]) for place in places}
    for seed, found in by_seed.items():
        print_table(found, len(prompts), f"Penchant demo, seed {seed}", console)
    first = places[0]
    content = report(
        first, _prompts(recipe, first), answers[first.seed], by_seed, _facts(recipe, first)
    )
    write_whole(folder / "index.html", demo_page(content, _WARNING if recipe.quick else ""))
    results = {
        "seconds": round(seconds, 1),
        "num_prompts": len(prompts),
        "quick": recipe.quick,
        "seeds": {str(seed): found for seed, found in by_seed.items()},
        "page": str(folder / "index.html"),
    }
    if recipe.full:
        results["full"] = _finish_chain(recipe, places, answers, console)
    text = json.dumps(results, indent=2) + "\n"
    write_whole(folder / "results.json", text)
    pages = ["index.html", "full.html"] if recipe.full else ["index.html"]
    said = f"page: {', '.join(str(folder / page) for page in pages)}"
    said += f"\nfigures: {folder / 'results.json'}"
    console.print(said, soft_wrap=True, highlight=False)
    as_read_back: dict[str, Any] = json.loads(text)
    return as_read_back


def _finish_chain(
    recipe: DemoRecipe,
    places: list[Place],
    answers: Mapping[int, Mapping[str, Measured]],
    console: Console,
) -> dict[str, Any]:
    """Tables and page of the second half; its figures by seed."""
    from penchant.commands import _demo_chain_report as report
    from penchant.commands import _demo_plan as plan
    from penchant.commands._demo_measure import measure, write_whole
    from penchant.pages.chain import chain_page

    by_seed = {}
    for place in places:
        start = answers[place.seed][plan.START]
        tuned = measure(place, plan.TUNED, _prompts(recipe, place))
        found = report.chain_figures(place, {plan.START: start, plan.TUNED: tuned})
        report.print_chain(found, f"Penchant demo, seed {place.seed}", console)
        by_seed[place.seed] = found
    content = report.chain_report(recipe, places[0], by_seed)
    page = chain_page(content, _WARNING if recipe.quick else "")
    write_whole(Path(recipe.output_dir) / "full.html", page)
    return {str(seed): found for seed, found in by_seed.items()}


def _facts(recipe: DemoRecipe, place: Place) -> list[tuple[str, str]]:
    """How it was made, in words for the page."""
    from penchant import compare
    from penchant.commands import _demo_plan as plan

    start = compare.read_run(place.run(plan.START)).summary
    first = compare.read_run(place.run(recipe.objectives[0])).summary
    settings = [json.dumps(plan.OBJECTIVES.get(name, {"name": name})) for name in recipe.objectives]
    return [
        ("Command", f"penchant demo seeds={list(recipe.seeds)} num_prompts={recipe.num_prompts}"),
        ("World", f"penchant.miniature, seed {place.seed}; prompts are held out by their text"),
        ("SFT", f"{start['num_steps']} updates on {start['rows_used']} answers of mixed quality"),
        (
            "Preference training",
            f"{first['num_steps']} updates on {first['rows_used']} noisy pairs, the same for every "
            "objective; the reference is SFT",
        ),
        ("Objectives", "; ".join(settings)),
        (
            "Sampling",
            f"temperature 1, at most {plan.MAX_NEW_TOKENS} tokens, one answer per prompt, the same "
            "random numbers for every policy",
        ),
        (
            "KL",
            "estimated from those answers: mean over prompts of the sum over tokens of "
            "log policy \u2212 log SFT",
        ),
        (
            "Intervals",
            "95\u00a0%, over the prompts: bootstrap (BCa) for means, Wilson for win rates. They do "
            "not cover other training seeds; run several with seeds=[0,1,2,3,4]",
        ),
    ]


def _prompts(recipe: DemoRecipe, place: Place) -> list[dict[str, Any]]:
    from penchant.commands._demo_measure import read_rows

    return read_rows(place.world / "prompts.jsonl")[: recipe.num_prompts]
