"""Memory and time of a run: from a probe where one can be made, else reckoned from sizes."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import final

from penchant.train import memory_use
from penchant.train.case import Case, Works
from penchant.train.costs import EFFICIENCY, OTHER_EFFICIENCY, matmul_rate
from penchant.train.probe import Line, Measured, Sample, Shallow, quietly
from penchant.train.work import Load

_DEPTHS = (1, 3)
"""Layers of the models that a probe runs."""
_SMALL = 8_000_000
"""Parameters up to which it runs the whole model."""
_MOST_SECONDS = 40.0
"""A probe that would take longer, by reckoning, is not made."""
_TYPICAL_SECONDS = 4.0
"""Of ordinary micro-batches that are timed, by reckoning."""
_MOST_MEMORY = 0.5
"""Part of the free memory that a probe may take, by reckoning."""
_TRAIN = 3
"""A forward and a backward pass in forward passes."""


@final
@dataclass(frozen=True)
class Estimate:
    """What a run will take."""

    works: Works
    layout: str
    peak_bytes: int
    """Of the process on a CPU, of tensors on a GPU; of each process where there are several."""
    step_seconds: float
    """Mean over all updates."""
    reference_seconds: float
    eval_seconds: float
    how: str


def estimate(case: Case) -> Estimate:
    """By a probe, or by reckoning where there is a reason against one, which is then said."""
    memory_use.bound_caches()
    memory_use.keep_freed(case.device)
    works: Works | None = None
    reason = _against(case)
    if reason is None:
        try:
            with quietly():
                return _probe(case)
        except _NoProbeError as error:
            works, reason = error.works, str(error)
        except Exception as error:  # whatever a model's code does, a plan can be given without it
            reason = f"it ended with {type(error).__name__}: {str(error).splitlines()[0]}"
        finally:
            memory_use.release()
    return _reckon(case, works, reason or "")


class _NoProbeError(Exception):
    """Why a probe is not made, found out after the plan was."""

    def __init__(self, reason: str, works: Works) -> None:
        super().__init__(reason)
        self.works = works


def _against(case: Case) -> str | None:
    """Why no probe can be made; None where it can."""
    if case.job.model.quantization is not None:
        return "quantised weights cannot be drawn at random"
    if int(os.environ.get("RANK", "0")):
        return "the first process measures"
    if not case.size.layers_are_alike and not _is_small(case):
        return "the model's layers are not alike"
    resting = case.setting(False, _depths(case)[-1]).resting_bytes()
    if resting > _MOST_MEMORY * case.free:
        return "even a few layers of the model would fill half of the free memory"
    return None


def _is_small(case: Case) -> bool:
    return case.size.parameters <= _SMALL or case.size.layers <= _DEPTHS[-1]


def _depths(case: Case) -> tuple[int, ...]:
    return (case.size.layers,) if _is_small(case) else _DEPTHS


def _probe(case: Case) -> Estimate:
    started, depths = time.perf_counter(), _depths(case)
    memory_use.release()
    memory_use.restart_peak(case.device)
    before = memory_use.peak_bytes(case.device)

    def build(layers: int) -> Shallow:
        memory_use.release()
        return Shallow(case.job, case.config, layers, case.device, case.dtype, before)

    shallow = build(depths[0])
    layout = shallow.engine.layout
    works = case.works(shallow.engine.padded)
    sample, load = _sample(case, works)
    found: list[tuple[int, Measured]] = []
    for depth in depths:
        if found:
            del shallow  # its memory is free for the next one
            shallow = build(depth)
        measured, budget = shallow.measure(sample, works.budget)
        if budget < works.budget:
            raise _NoProbeError("memory ran out in a few layers already", works)
        found.append((depth, measured))
    line = Line.through(found)
    whole = line.at(case.size.layers)
    layers = f"models of {' and '.join(map(str, depths))} of its {case.size.layers} layers"
    what = layers if len(depths) > 1 else "the model"
    seconds = time.perf_counter() - started
    return Estimate(
        works=works,
        layout=layout,
        peak_bytes=before + _peak(case, whole),
        how=f"a probe of {seconds:.0f} s: {what} with random weights, on rows of this plan",
        **_seconds(case, works, _Rates.of(line, case.size.layers, load), whole.update_seconds),
    )


def _sample(case: Case, works: Works) -> tuple[Sample, Load]:
    """Trees for the probe, and how much work those are that it times.

    Raises _NoProbeError where they would take too much time or memory.
    """
    depths, train = _depths(case), works.train
    rate = _rate(case)

    def seconds(load: Load) -> float:
        """Of training on it in all of the probe's models."""
        layers = load.layers * sum(depths) / case.size.layers
        return _TRAIN * (layers + load.head * len(depths)) / rate

    widest, is_alone = train.widest()
    typical = train.typical(_TYPICAL_SECONDS, seconds)
    once = seconds(train.load([widest]))
    expected = (1 + 1 / _TRAIN) * (once + seconds(train.load(typical)))
    if expected > _MOST_SECONDS:
        raise _NoProbeError(f"it would take about {expected:.0f} s", works)
    largest = max(train.costs([widest]))
    setting = case.setting(train.setting.padded, depths[-1])
    if setting.peak_bytes(largest) > _MOST_MEMORY * case.free:
        raise _NoProbeError("it could fill half of the free memory", works)
    trees = case.job.train_trees
    timed = [trees[i] for group in typical for i in group]
    again = expected + once < _MOST_SECONDS / 2
    return Sample([trees[i] for i in widest], is_alone, timed, again), train.load(typical)


def _rate(case: Case) -> float:
    """Operations per second of a step."""
    part = EFFICIENCY.get((case.device.type, case.dtype), OTHER_EFFICIENCY)
    return part * matmul_rate(case.device, case.dtype)


@final
@dataclass(frozen=True)
class _Rates:
    """Seconds per operation of a forward pass: with a backward pass, and alone."""

    train_layers: float
    train_head: float
    forward_layers: float
    forward_head: float

    @classmethod
    def of(cls, line: Line, layers: int, load: Load) -> _Rates:
        """From what a load took."""
        return cls(
            train_layers=line.layer.train_seconds * layers / load.layers,
            train_head=line.rest.train_seconds / load.head,
            forward_layers=line.layer.forward_seconds * layers / load.layers,
            forward_head=line.rest.forward_seconds / load.head,
        )

    def train(self, load: Load) -> float:
        return self.train_layers * load.layers + self.train_head * load.head

    def forward(self, load: Load) -> float:
        return self.forward_layers * load.layers + self.forward_head * load.head


def _seconds(case: Case, works: Works, rates: _Rates, update: float) -> dict[str, float]:
    """Of a mean step, of the reference pass and of all evaluations, on the busiest process."""
    train, share = works.train, 1 / case.processes
    ahead = [group for groups in train.steps if case.looks_ahead(groups) for group in groups]
    seconds = rates.train(train.load(train.groups)) + rates.forward(train.load(ahead))
    step = seconds / len(train.steps)
    reference = sum(rates.forward(work.load(work.groups)) for work in works.reference)
    evaluation = sum(rates.forward(work.load(work.groups)) for work in works.evaluation)
    return {
        "step_seconds": step * share * train.busiest() + update,
        "reference_seconds": reference * share * case.reference_scale,
        "eval_seconds": evaluation * share * case.num_evaluations(),
    }


def _peak(case: Case, whole: Measured) -> int:
    """Beyond what the process holds before the model is loaded."""
    if not memory_use.can_measure(case.device):
        return 0
    forward = whole.forward_bytes + case.reference_bytes
    return round(max(forward, whole.train_bytes, whole.update_bytes))


def _reckon(case: Case, works: Works | None, reason: str) -> Estimate:
    layout = "packed, if it is exact for this model"
    if works is None:
        works = case.works(padded=False)
    else:
        layout = "plain" if works.train.setting.padded else "packed"
    train = works.train
    rate = _rate(case)
    rates = _Rates(_TRAIN / rate, _TRAIN / rate, 1 / rate, 1 / rate)
    memory_use.restart_peak(case.device)
    return Estimate(
        works=works,
        layout=layout,
        peak_bytes=memory_use.peak_bytes(case.device)
        + train.setting.peak_bytes(max(train.costs([train.widest()[0]]))),
        how=f"the model's sizes, within a factor of two: no probe was made, as {reason}",
        **_seconds(case, works, rates, 0.0),
    )
