"""How a run was started: in how many processes, with whole or split weights, and was that meant?

Some launches silently run one process, or several separate trainings; what was asked for is held
against what is there before any work is done.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, KwargsHandler

from penchant.engine.processes import WAITING, Processes
from penchant.errors import RecipeError
from penchant.train.config import TrainingConfig
from penchant.train.device import pick_device
from penchant.train.tracking import check_trackers

_HOW = (
    "start several with: torchrun --nproc_per_node N -m penchant train ..., or "
    "accelerate launch --config_file configs/accelerate/ddp.yaml -m penchant train ..."
)


def start(training: TrainingConfig, folder: Path) -> tuple[Accelerator, Processes]:
    """Joins the processes of the run.

    Raises RecipeError where their number or kind is not what launcher and recipe ask for.
    """
    sharded = check_environment(training, os.environ)
    device = pick_device(training.device)
    trackers = check_trackers(training.report_to)
    accelerator = Accelerator(
        cpu=device == "cpu",
        log_with=trackers or None,
        project_dir=str(folder),
        kwargs_handlers=group_settings(device),
    )
    processes = Processes.current(sharded=sharded)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if not processes.size == accelerator.num_processes == launched:
        raise RecipeError(
            f"the launcher started {launched} processes, but they found "
            f"{max(processes.size, accelerator.num_processes)}; {_HOW}"
        )
    return accelerator, processes


def group_settings(device: str) -> list[KwargsHandler]:
    """How the processes of a run wait for each other.

    NCCL would end the run after ten minutes in which the others wait for one, which reads a large
    model's files, say. On a processor Accelerate's half an hour is left as it is.
    """
    return [] if device == "cpu" else [InitProcessGroupKwargs(timeout=WAITING)]


def check_environment(training: TrainingConfig, environment: Mapping[str, str]) -> bool:
    """Whether the weights are to be split, by what launcher and recipe say.

    Raises RecipeError where they contradict each other or cannot be followed.
    """
    launched = int(environment.get("WORLD_SIZE", "1"))
    if training.num_processes is not None and training.num_processes != launched:
        raise RecipeError(
            f"training.num_processes={training.num_processes}, but {launched} "
            f"{'was' if launched == 1 else 'were'} started; {_HOW}"
        )
    if environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise RecipeError(
            "the launcher asks for DeepSpeed, which this version does not run; "
            "take configs/accelerate/fsdp2.yaml for split weights"
        )
    by_launcher = environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if by_launcher and training.distribution == "replicate":
        raise RecipeError(
            "the launcher asks for FSDP, the recipe for training.distribution=replicate; "
            "change one of them"
        )
    sharded = training.distribution == "shard" or by_launcher
    if sharded and launched == 1:
        asked = "the launcher asks for FSDP" if by_launcher else "training.distribution=shard"
        raise RecipeError(f"{asked}, but there is one process only; {_HOW}")
    if sharded and environment.get("FSDP_VERSION", "2") != "2":
        raise RecipeError("the launcher asks for FSDP version 1; set fsdp_version: 2")
    return sharded
