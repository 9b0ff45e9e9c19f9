"""The benchmark's results file: written after every sitting, taken up again where it stopped.

A case is taken further only under the settings, library versions and code that it was begun with;
otherwise it starts again.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from step_cases import OURS, PENCHANT, PENCHANT_ONLINE, TRL_BEST

BENCH = Path(__file__).parent
SOURCE = BENCH.parent / "src" / "penchant"
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate")
SIDE_FILES = ("flash", "job", "measure", "penchant", "trl", "turns", "watch", "workload")


def conditions(asked: dict[str, Any]) -> dict[str, Any]:
    """What the runs of a case must have in common."""
    return {
        "asked": {key: asked[key] for key in sorted(asked)},
        "versions": {name: version(name) for name in LIBRARIES},
        "processor": accelerator() if asked["device"] == "cuda" else processor(),
        **present_code(),
    }


def present_code() -> dict[str, str]:
    """Fingerprints of `code`, Penchant's that a step runs, and `bench`, that of the sides."""
    rooms = ("engine", "train", "objectives", "models", "data")
    files = [path for room in rooms for path in (SOURCE / room).rglob("*.py")]
    files = [path for path in files if path.parent.name != "reference"]  # a store on disk
    return {
        "bench": fingerprint(BENCH / f"step_{name}.py" for name in SIDE_FILES),
        "code": fingerprint([SOURCE / "types.py", *files]),
    }


def accelerator() -> str:
    """The name of the CUDA device."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"


def fingerprint(paths: Iterable[Path]) -> str:
    """Of what the files do: comments and layout do not count."""
    whole = hashlib.sha256()
    for path in sorted(paths):
        whole.update(path.name.encode() + ast.dump(ast.parse(path.read_text())).encode())
    return whole.hexdigest()[:16]


def processor() -> str:
    """Its name as the system gives it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


@dataclass
class Results:
    """All cases of one results file."""

    path: Path
    cases: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Results:
        """What is there already."""
        return cls(path, json.loads(path.read_text())["cases"] if path.exists() else {})

    def start(self, name: str, wanted: dict[str, Any]) -> str:
        """Makes the case ready to be taken further; says so where what was there does not fit."""
        entry = self.cases.get(name)
        if entry is not None and entry["conditions"] == wanted:
            return ""
        self.cases[name] = {"conditions": wanted, "contestants": {}, "summary": {}}
        return "" if entry is None else "begun again: it changed"

    def retry(self, name: str) -> None:
        """What failed in an earlier session may run again."""
        for one in self.cases.get(name, {}).get("contestants", {}).values():
            one.pop("failed", None)

    def runs(self, name: str, who: str) -> dict[str, Any]:
        """A contestant's `runs`, `discarded`, `about`, or why it was `left_out` or `failed`."""
        empty: dict[str, Any] = {"runs": [], "discarded": []}
        return self.cases[name]["contestants"].setdefault(who, empty)

    def add(self, name: str, sitting: dict[str, dict[str, Any]]) -> None:
        """Keeps what a sitting gave, beside what earlier ones gave."""
        number = self.cases[name]["sittings"] = self.cases[name].get("sittings", 0) + 1
        for who, found in sitting.items():
            place = self.runs(name, who)
            for key, value in found.items():
                if key in ("runs", "discarded"):
                    place[key] += [run | {"sitting": number} for run in value]
                else:
                    place[key] = value
        self.cases[name]["summary"] = summarise(self.cases[name]["contestants"])
        self.save()

    def save(self) -> None:
        """Whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".part")
        text = json.dumps({"written_by": "bench/against_trl.py", "cases": self.cases}, indent=1)
        temporary.write_text(text + "\n")
        os.replace(temporary, self.path)


def summarise(contestants: dict[str, Any]) -> dict[str, Any]:
    """Medians over the usable runs of each contestant, and what Penchant's are to TRL's.

    The machine's rate is the median of those that the contestants' processes measured.
    """
    usable = {who: one for who, one in contestants.items() if one["runs"] and "about" in one}
    if not usable:
        return {}
    peak = statistics.median(one["about"]["gemm_flops_per_second"] for one in usable.values())
    found: dict[str, Any] = {"gemm_flops_per_second": peak, "contestants": {}}
    for who, one in usable.items():
        found["contestants"][who] = _medians(one["runs"], one["about"], peak) | {
            "usable_runs": len(one["runs"]),
            "discarded_runs": len(one["discarded"]),
        }
    if PENCHANT in usable:
        found |= _ratios(found["contestants"], {who: one["runs"] for who, one in usable.items()})
    return found


def _medians(runs: list[dict[str, Any]], about: dict[str, Any], peak: float) -> dict[str, Any]:
    seconds = [run["seconds"] for run in runs]
    middle = statistics.median(seconds)
    return {
        "seconds": middle,
        "fastest": min(seconds),
        "slowest": max(seconds),
        "tokens_per_second": about["tokens"] / middle,
        "memory_bytes": about["memory_bytes"],
        "cores": statistics.median(run["cores"] for run in runs),
        "share_of_gemm_peak": about["useful_flops"] / middle / peak,
        "loss": about["loss"],
        "grad_norm": about["grad_norm"],
    }


def _ratios(found: dict[str, Any], runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Times faster and times less memory than each other side; how far losses are apart.

    The reference known is held against all; the reference in the step against those that compute
    it in the step, too.
    """
    ratios: dict[str, Any] = {"times_faster": {}, "times_less_memory": {}, "difference": {}}
    for ours in OURS:
        for who, one in found.items():
            if ours not in found or who in OURS or (ours == PENCHANT_ONLINE and who == TRL_BEST):
                continue
            faster = _faster(runs[ours], runs[who])
            ratios["times_faster"].setdefault(ours, {})[who] = faster
            mine = found[ours]
            if one["memory_bytes"] and mine["memory_bytes"]:
                less = one["memory_bytes"] / mine["memory_bytes"]
                ratios["times_less_memory"].setdefault(ours, {})[who] = less
    mine = found[PENCHANT]
    for who, one in found.items():
        if who != PENCHANT:
            ratios["difference"][who] = {
                key: abs(one[key] - mine[key]) / abs(one[key]) for key in ("loss", "grad_norm")
            }
    return ratios


def _faster(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """Of medians: of the sittings that both were in, or of all where there was none."""
    sittings = [{run.get("sitting") for run in runs} for runs in (ours, theirs)]
    both = sittings[0] & sittings[1]
    middle = [
        statistics.median(run["seconds"] for run in runs if not both or run.get("sitting") in both)
        for runs in (theirs, ours)
    ]
    return middle[0] / middle[1]
