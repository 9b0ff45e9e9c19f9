"""Metrics as numerators and denominators, so that means are exact over any split of a step."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from penchant.engine.processes import Processes
from penchant.types import ObjectiveOutput, PairLogps


@final
@dataclass
class Totals:
    """Sums over pairs, kept on the device until somebody reads them."""

    num_pairs: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    non_finite_rows: list[str] = field(default_factory=list)

    def add(self, policy: PairLogps, output: ObjectiveOutput, row_ids: Sequence[str]) -> None:
        """Takes in the pairs of a micro-batch; `row_ids` names the row of each pair."""
        values_P = {"loss": output.loss_P, "logps/chosen": policy.chosen.total_P}
        if policy.rejected is not None:
            margin_P = output.chosen_reward_P - output.rejected_reward_P
            values_P |= {
                "logps/rejected": policy.rejected.total_P,
                "rewards/chosen": output.chosen_reward_P,
                "rewards/rejected": output.rejected_reward_P,
                "rewards/accuracies": (margin_P > 0).double(),
                "rewards/margins": margin_P,
            }
        for name, value_P in values_P.items():
            total = value_P.detach().double().sum()
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.num_pairs += len(policy)
        finite_P = torch.isfinite(output.loss_P.detach())
        if not bool(finite_P.all()):
            places = (~finite_P).nonzero().flatten().tolist()
            self.non_finite_rows.extend(row_ids[place] for place in places)

    def summed(self, processes: Processes) -> Totals:
        """Over all processes; the same on each."""
        if processes.size == 1:
            return self
        whole = Totals()
        own = {name: total.cpu() for name, total in self.sums.items()}
        for num_pairs, sums, rows in processes.gather((self.num_pairs, own, self.non_finite_rows)):
            whole.num_pairs += num_pairs
            whole.non_finite_rows += rows
            for name, total in sums.items():
                whole.sums[name] = whole.sums[name] + total if name in whole.sums else total
        return whole

    def means(self) -> dict[str, float]:
        """Means over the pairs."""
        if not self.sums:
            return {}
        values = torch.stack(list(self.sums.values())).tolist()
        return {name: value / self.num_pairs for name, value in zip(self.sums, values, strict=True)}


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, one line per logged update or evaluation."""

    def __init__(self, path: Path, *, resume_after: int | None = None) -> None:
        """Starts the file anew, or keeps the rows up to a step that a checkpoint holds."""
        self.path = path
        kept = []
        if resume_after is not None and path.exists():
            rows = (line for line in path.read_text().splitlines() if line.strip())
            kept = [line for line in rows if json.loads(line)["step"] <= resume_after]
        path.write_text("".join(f"{line}\n" for line in kept))

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row; numbers that are not finite become null, as JSON has none."""
        clean = {k: None if _not_finite(v) else v for k, v in row.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(clean) + "\n")


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
