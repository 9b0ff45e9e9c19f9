"""The reference of a run: which model it is, and its log-probabilities, stored or computed."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from penchant import __version__
from penchant import engine as engines
from penchant.data.cache import cache_folder
from penchant.engine.processes import ALONE, Processes
from penchant.engine.reference import catalogue, digests
from penchant.engine.reference.entry import Entry
from penchant.engine.reference.origin import Origin, name_of, settings_of
from penchant.engine.reference.software import code_digest, code_files, device_kind
from penchant.engine.reference_store import ReferenceStore
from penchant.models import load as load_models
from penchant.models.config import ModelSource
from penchant.train import token_kl
from penchant.train.policy import Placement, hub_keywords, named_reference
from penchant.train.progress import ProgressLine

if TYPE_CHECKING:
    from penchant.train.fit import Job


def folder() -> Path:
    """Where all entries of the store lie."""
    return cache_folder() / "reference"


def digests_folder() -> Path:
    """Where digests of models' files are kept."""
    return cache_folder() / "digests"


def forget_gone() -> None:
    """Removes what is known of files and entries that are not there any more."""
    digests.forget_gone(digests_folder())
    for shortcut in digests_folder().glob("*.entry"):
        with contextlib.suppress(OSError):
            if noted(shortcut) is None:
                shortcut.unlink()


def origin(job: Job) -> Origin | None:
    """Where the reference's weights come from; to be called before they are read.

    None where nothing is to be stored. Raises RecipeError where the size limit is no size.
    """
    source = job.reference or job.model
    if catalogue.size_limit(os.environ) == 0:
        return None
    try:
        return Origin.of(source.path, source.revision)
    except OSError:  # reading the model will say what is wrong there
        return None


def load(
    job: Job, read_from: Origin | None, place: Placement
) -> tuple[engines.Engine | None, ReferenceStore | None]:
    """The model that the recipe names as its reference, or its rows where all are stored.

    Neither where the policy is its own reference. A model that need not run is not even loaded.
    """
    needed, beside = "reference" in job.objective.needs, token_kl.is_asked(job)
    if job.reference is None or not (needed or beside):
        return None, None
    store = _stored(job, job.reference, read_from, place) if read_from and not beside else None
    return named_reference(job.reference, place) if store is None else None, store


def fill(
    job: Job,
    read_from: Origin | None,
    engine: engines.Engine,
    budget: int,
    processes: Processes = ALONE,
) -> ReferenceStore:
    """The reference log-probabilities of all trees.

    Args:
        read_from: as `origin` gave it; None keeps them in memory.
        engine: of the named reference, or of the policy before its first update.
    """
    # A policy's own fresh adapter says nothing yet: without it, it is the model it was added to.
    fresh = job.reference is None and job.model.adapter is not None
    entry = _entry(job, read_from, engine, fresh, processes) if read_from else None
    store = ReferenceStore(entry)
    with (
        ProgressLine("reference", len(job.train_trees) + len(job.eval_trees), "row") as line,
        engine.model.disable_adapter() if fresh else nullcontext(),
    ):
        progress = _Progress(line)
        for trees in (job.train_trees, job.eval_trees):
            store.fill(engine, trees, budget, progress.computed, processes, progress.found)
    if entry is not None and processes.is_main:
        _tell(store)
        if read_from is not None and job.reference is not None:
            device = next(engine.model.parameters()).device
            shortcut = _shortcut(job.reference, read_from, device, processes)
            if shortcut is not None:
                note(shortcut, entry.folder.name, engine.model)
        catalogue.prune(folder(), catalogue.size_limit(os.environ), own=entry)
    return store


def _stored(
    job: Job, source: ModelSource, read_from: Origin, place: Placement
) -> ReferenceStore | None:
    """The rows of a model that was not loaded; None where not all are there."""
    processes, name = place.processes, None
    if processes.is_main:
        shortcut = _shortcut(source, read_from, place.device, processes)
        name = noted(shortcut) if shortcut is not None else None
    name = processes.gather(name)[0]
    if name is None:
        return None
    entry = None
    with contextlib.suppress(OSError):
        entry = Entry(folder(), name, {}, hold_it=processes.is_main)
    store = ReferenceStore(entry)
    if not all(store.take(trees, processes) for trees in (job.train_trees, job.eval_trees)):
        return None
    if processes.is_main:
        _tell(store)
    return store


def _shortcut(
    source: ModelSource, read_from: Origin, device: torch.device, processes: Processes
) -> Path | None:
    """Where the entry of a model's files is noted, so that it can be found without the model."""
    dtype = load_models.compute_dtype(source.path, source.dtype, **hub_keywords(source))
    loaded = {
        "dtype": str(dtype),
        "quantization": source.quantization,
        "device": device_kind(device),
        "sharded": processes.sharded,
        "code": source.trust_remote_code,
    }
    digest = read_from.shortcut(loaded, digests_folder())
    return None if digest is None else digests_folder() / f"{digest}.entry"


def note(shortcut: Path, entry: str, model: Any) -> None:
    """Writes down which entry a model's files lead to, and by which code; where it can be written.

    Args:
        entry: its name.
    """
    with contextlib.suppress(OSError):
        files = code_files(model)
        known = {"entry": entry, "code": code_digest(files), "files": [*map(str, files)]}
        temporary = shortcut.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(known))
        os.replace(temporary, shortcut)


def noted(shortcut: Path) -> str | None:
    """The name of that entry; None where it, or the code that it was made by, is gone."""
    try:
        known = json.loads(shortcut.read_text())
        if code_digest([Path(file) for file in known["files"]]) != known["code"]:
            return None
        return known["entry"] if (folder() / known["entry"]).is_dir() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tell(store: ReferenceStore) -> None:
    if store.rows_reused:
        print(
            f"reference: {store.rows_reused:,} rows reused, {store.rows_computed:,} computed",
            file=sys.stderr,
        )


@dataclass
class _Progress:
    """Rows that are computed take time; those that are found do not."""

    line: ProgressLine
    done: int = 0

    def computed(self, rows: int) -> None:
        self.done += rows
        self.line.advance(rows)

    def found(self, rows: int) -> None:
        if rows:
            self.done += rows
            self.line.skip(self.done)


def _entry(
    job: Job, read_from: Origin, engine: engines.Engine, fresh: bool, processes: Processes
) -> Entry | None:
    """The entry on disk of this model and way of computing; None where there can be none."""
    source = job.reference or job.model
    dtype = load_models.compute_dtype(source.path, source.dtype, **hub_keywords(source))
    key, why, settings = None, "", None
    try:
        settings = settings_of(engine, dtype, adapter_off=fresh)
    except OSError as error:  # in every process: the model's code is in no file
        why = str(error)
    if processes.is_main and settings is not None:
        try:
            key = read_from.key(settings, engine, digests_folder())
        except OSError as error:
            why = str(error)
    key, why = processes.gather((key, why))[0]
    if key is not None and any(one != settings for one in processes.gather(settings)):
        key, why = None, "the processes compute in different ways"
    if key is not None:
        about: dict[str, Any] = {
            "model": read_from.path,
            "made": time.strftime("%Y-%m-%d %H:%M:%S"),
            "penchant": __version__,
            "key": key,
        }
        try:
            return Entry(folder(), name_of(key), about, hold_it=processes.is_main)
        except OSError as error:
            why = f"{folder()}: {error.strerror or error}"
    if processes.is_main:
        print(f"reference: kept in memory, for this run only ({why})", file=sys.stderr)
    return None
