"""`fingerprints.json`: by which one can tell later that a run's files are those it was made with.

Before the first update: the starting model, the reference, the files of the data, and
the token trees made of them. At the end: the files that the run wrote beside the model, which has
a manifest of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from penchant.engine.reference import digests
from penchant.engine.reference_store import content_key
from penchant.errors import ModelError, RecipeError
from penchant.models import load
from penchant.train import durable, manifest, reference
from penchant.types import TokenTree

FILE = "fingerprints.json"
HUB = "hub:"
"""Before the id of what is no folder here; `hub:ID@REVISION` where a revision was named."""
WRITTEN = (
    "recipe.yaml",
    manifest.MANIFEST,
    "metrics.jsonl",
    "final_pairs.jsonl",
    "data_report.json",
    "environment.json",
)
_OF_A_MODEL = (
    "*.safetensors", "*.bin", "*.pt", "*.pth", "*config*.json", "*token*", "*.model", "*.txt",
    "*.jinja", "*.py",
)  # fmt: skip
"""Weights, settings, tokenizer, and the code that a checkpoint brings."""


def start(
    folder: Path,
    recipe_text: str,
    trees: tuple[Sequence[TokenTree], Sequence[TokenTree]],
    dtype: torch.dtype,
) -> None:
    """Writes what is known before the first update; what an interrupted run wrote stays.

    Args:
        trees: of training and of evaluation.
        dtype: that the run computes in.
    Raises:
        RecipeError: the run goes on, and its data or its models are not what they were.
    """
    recipe = yaml.safe_load(recipe_text)
    models = [recipe["model"], *([recipe["reference"]] if recipe.get("reference") else [])]
    found = {
        "algorithm": "sha256",
        "dtype": str(dtype).removeprefix("torch."),
        "trust_remote_code": bool(recipe["model"].get("trust_remote_code")),
        "models": of_models(models, kept=True),
        "data": of_files(data_paths(recipe["data"])),
        "trees": dict(zip(("train", "eval"), map(of_trees, trees), strict=True)),
    }
    if (folder / FILE).is_file():
        _check_unchanged(json.loads((folder / FILE).read_text()), found, folder)
        return
    durable.write_text(folder / FILE, json.dumps(found, indent=2) + "\n")


def _check_unchanged(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """A run that goes on with other data or from another start would be neither of the two."""
    for what, name in (("trees", "data"), ("models", "starting model or reference")):
        if before[what] != now[what]:
            raise RecipeError(
                f"the {name} of this run changed since it was started in {str(folder)!r}; "
                "put it back, or name a new output_dir"
            )


def finish(folder: Path) -> None:
    """Adds the files that the run wrote."""
    found = json.loads((folder / FILE).read_text())
    found["written"] = of_files(folder / name for name in WRITTEN)
    found["written"] = {Path(name).name: value for name, value in found["written"].items()}
    durable.write_text(folder / FILE, json.dumps(found, indent=2) + "\n")


def of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_files(paths: Iterator[Path] | Sequence[Path]) -> dict[str, str]:
    """SHA-256 by path, of those that are files."""
    return {str(path): of_file(path) for path in paths if path.is_file()}


def of_unchanged_files(paths: Sequence[Path]) -> dict[str, str]:
    """The same, from what is known of files that did not change since they were last read."""
    files = [path for path in paths if path.is_file()]
    found = digests.of_files(files, reference.digests_folder())
    return {str(path): sha256 for path, sha256 in zip(files, found, strict=True)}


def of_models(given: Sequence[Mapping[str, Any]], *, kept: bool = False) -> dict[str, str]:
    """By path: the files of model folders, and of an adapter's base; of a hub id, its commit.

    Args:
        kept: read only files that changed since they were last read; else every byte.
    """
    found: dict[str, str] = {}
    for one in given:
        path = str(one["path"])
        if not Path(path).is_dir():
            revision = f"@{one['revision']}" if one.get("revision") else ""
            found[f"{HUB}{path}{revision}"] = _commit(one)
            continue
        files = sorted({file for what in _OF_A_MODEL for file in Path(path).glob(what)})
        digests_of = of_unchanged_files if kept else of_files
        found |= digests_of(files)
        if load.is_adapter(path):
            base = json.loads((Path(path) / load.ADAPTER_FILE).read_text())
            found |= of_models([{"path": base["base_model_name_or_path"]}], kept=kept)
    return found


def of_trees(trees: Sequence[TokenTree]) -> str:
    """Digest of all that training sees of the data: ids, tokens, masks, pairs, scores, marks."""
    digest = hashlib.sha256()
    for tree in trees:
        digest.update(content_key(tree))
        rest = (tree.row_id, tree.pairs_P2, tree.scores_R, tree.soft_labels_P)
        digest.update(repr(rest).encode())
        for marks in tree.marks or ():
            digest.update(bytes(marks.chosen) + b"|" + bytes(marks.rejected))
    return digest.hexdigest()


def data_paths(data: Mapping[str, Any]) -> Iterator[Path]:
    """Every file here that the data section of a recipe names; of a folder, all in it."""
    named = [source["path"] for part in ("train", "eval") for source in data[part]]
    named += data["decontaminate"]
    named += [data["soft_labels"]["path"]] if data.get("soft_labels") else []
    named += [data["chat_template"]] if data.get("chat_template") else []
    for name in dict.fromkeys(named):
        place = Path(name).expanduser()
        while not place.exists() and ":" in place.name:  # folder:config:split
            place = place.with_name(place.name.rpartition(":")[0])
        yield from sorted(place.rglob("*")) if place.is_dir() else [place]


def _commit(model: Mapping[str, Any]) -> str:
    try:
        config = load.load_config(
            str(model["path"]),
            revision=model.get("revision"),
            trust_remote_code=bool(model.get("trust_remote_code")),
        )
    except ModelError:
        return "not found"
    return str(getattr(config, "_commit_hash", None))
