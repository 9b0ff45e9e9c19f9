"""Two real processes on this machine: the same model as one, and no hang whatever goes wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from penchant.errors import RecipeError
from penchant.train.config import TrainingConfig
from penchant.train.launch import check_environment
from tests.commands.world import read_metrics, recipe, write_world
from tests.two_processes import launched


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with an odd number of rows, and a run of one process in it."""
    folder = write_world(tmp_path_factory.mktemp("made"), num_rows=23)
    done = launch(folder, processes=1)
    assert done.returncode == 0, done.stderr
    return folder


def launch(
    world: Path,
    *,
    processes: int,
    cache: Path | None = None,
    program: str | None = None,
    **changes: Any,
) -> subprocess.CompletedProcess[str]:
    """`penchant train` under torchrun, or as it is for one process.

    Args:
        cache: a folder of its own for what is kept between runs.
        program: to run in place of the command line's.
    """
    settings = {
        "data.eval": str(world / "eval.jsonl"),
        "objective": {"name": "dpo", "beta": 0.3},
        "training.token_budget": 200,
    }
    given = recipe(world, **changes)
    keys = [f"{key}={json.dumps(value)}" for key, value in (settings | given).items()]
    start = [program] if program else ["-m", "penchant"]
    own = {} if cache is None else {"PENCHANT_CACHE": str(cache)}
    return launched(*start, "train", *keys, processes=processes, **own)


def assert_same_run(one: Path, two: Path, tolerance: float = 1e-5) -> None:
    a, b = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert a.keys() == b.keys()
    for name, value in a.items():
        difference = torch.linalg.vector_norm(value - b[name])
        assert difference <= tolerance * torch.linalg.vector_norm(value), name
    rows, others = read_metrics(one), read_metrics(two)
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert other == pytest.approx(row, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("distribution", ["replicate", "shard"])
def test_two_processes_make_the_model_that_one_makes(made: Path, distribution: str) -> None:
    output = made / distribution
    settings = {"training__distribution": distribution, "training__num_processes": 2}
    cache = made / f"cache-{distribution}"
    done = launch(made, processes=2, cache=cache, output_dir=str(output), **settings)
    assert done.returncode == 0, done.stderr
    assert_same_run(made / "run", output)
    assert done.stdout.count("23 of 23 rows used") == 1  # one process prints
    assert reference_rows(output) == (29, 0)
    # In float32 whole and split weights give the same values: both find what both have stored.
    for again, processes in ((f"{distribution}-again", 2), (f"{distribution}-alone", 1)):
        own = settings if processes == 2 else {}
        done = launch(made, processes=processes, cache=cache, output_dir=str(made / again), **own)
        assert done.returncode == 0, done.stderr
        assert reference_rows(made / again) == (0, 29)
        assert_same_run(output, made / again)
    assert not [*cache.rglob("*.tmp"), *cache.rglob("*.claim")]


def reference_rows(run: Path) -> tuple[int, int]:
    """Computed, and reused."""
    summary = json.loads((run / "summary.json").read_text())
    return summary["reference_rows_computed"], summary["reference_rows_reused"]


def test_processes_without_a_common_folder_send_each_other_the_reference(made: Path) -> None:
    """As on machines whose caches are their own: here rank 1 finds nothing, and rank 0 all."""
    program = (
        "import os, sys\n"
        "os.environ['PENCHANT_CACHE'] += os.environ['RANK']\n"
        "from penchant.cli import main\n"
        "main()\n"
    )
    (made / "apart.py").write_text(program)
    cache = made / "cache-apart-"
    done = launch(made, processes=1, cache=Path(f"{cache}0"), output_dir=str(made / "first"))
    assert done.returncode == 0, done.stderr
    for run in ("found", "computed"):
        done = launch(made, processes=2, program=str(made / "apart.py"), cache=cache,
                      output_dir=str(made / run))  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert_same_run(made / "run", made / run)
        assert reference_rows(made / run) == ((0, 29) if run == "found" else (29, 0))
        for folder in made.glob("cache-apart-*"):
            shutil.rmtree(folder)


def test_more_processes_than_micro_batches(made: Path) -> None:
    """Steps of one pair: one of the two processes has nothing to do, and must not wait for ever."""
    settings = {"training__batch_size": 1, "training__max_steps": 3}
    one = launch(made, processes=1, output_dir=str(made / "lone"), **settings)
    two = launch(made, processes=2, output_dir=str(made / "idle"), **settings)
    assert one.returncode == two.returncode == 0, two.stderr
    assert_same_run(made / "lone", made / "idle")


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["replicate", "shard"])
def test_a_run_of_two_processes_resumes(made: Path, distribution: str) -> None:
    output = made / f"resumed-{distribution}"
    settings = {
        "output_dir": str(output),
        "training__distribution": distribution,
        "training__save_steps": 1,
        "training__save_total_limit": 9,
    }
    assert launch(made, processes=2, **settings).returncode == 0
    for name in ("summary.json", "model.safetensors"):
        (output / name).unlink()
    for step in (2, 3):
        (output / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"damaged")
    done = launch(made, processes=2, **settings)
    assert done.returncode == 0, done.stderr
    assert "resumed from checkpoint-1" in done.stdout
    assert_same_run(made / "run", output)


@pytest.mark.slow
def test_an_adapter_over_split_weights(made: Path) -> None:
    settings = {"model__adapter": {"r": 4, "alpha": 8, "dropout": 0}}
    one = launch(made, processes=1, output_dir=str(made / "lora-1"), **settings)
    two = launch(
        made,
        processes=2,
        output_dir=str(made / "lora-2"),
        training__distribution="shard",
        **settings,
    )
    assert one.returncode == two.returncode == 0, two.stderr
    a, b = (load_file(made / f"lora-{n}" / "adapter_model.safetensors") for n in (1, 2))
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-4, atol=1e-6)


def test_a_failure_in_one_process_ends_the_run_with_its_message(made: Path) -> None:
    """Rows of NaN weights: every process sees it, the run ends, its reason is printed."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(made / "model")
    with torch.no_grad():
        model.get_input_embeddings().weight[:] = float("nan")
    model.save_pretrained(made / "broken")
    AutoTokenizer.from_pretrained(made / "model").save_pretrained(made / "broken")
    done = launch(made, processes=2, model=str(made / "broken"), output_dir=str(made / "failed"))
    assert done.returncode != 0
    assert "error: the loss of step 1 is not finite; rows: pairs:" in done.stderr


@pytest.mark.slow
def test_a_killed_process_ends_the_others(made: Path) -> None:
    """Rank 1 alone dies; the launcher and the other process end by themselves."""
    program = (
        "import os, signal, sys, penchant.train.step as s\n"
        "train = s.Step.train\n"
        "def dying(self, trees):\n"
        "    if os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return train(self, trees)\n"
        "s.Step.train = dying\n"
        "from penchant.cli import main\n"
        "main()\n"
    )
    (made / "dying.py").write_text(program)
    keys = [f"{k}={json.dumps(v)}" for k, v in recipe(made, output_dir=str(made / "d")).items()]
    done = launched(str(made / "dying.py"), "train", *keys)
    assert done.returncode != 0
    assert not (made / "d" / "summary.json").exists()


ASKED = {"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}


def test_what_was_asked_for_is_held_against_what_was_started() -> None:
    assert not check_environment(TrainingConfig(), {})
    assert not check_environment(TrainingConfig(num_processes=2), {"WORLD_SIZE": "2"})
    assert check_environment(TrainingConfig(), ASKED)
    assert check_environment(TrainingConfig(distribution="shard"), {"WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("settings", "environment", "message"),
    [
        ({"num_processes": 2}, {}, "num_processes=2, but 1 was started"),
        ({"num_processes": 2}, {"WORLD_SIZE": "4"}, "but 4 were started"),
        ({"distribution": "shard"}, {}, "one process only"),
        ({}, {"ACCELERATE_USE_FSDP": "true"}, "the launcher asks for FSDP, but there is one"),
        ({"distribution": "replicate"}, ASKED, "the recipe for training.distribution=replicate"),
        ({}, {**ASKED, "FSDP_VERSION": "1"}, "fsdp_version: 2"),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
    ],
)
def test_launches_that_do_something_else_are_refused(
    settings: dict[str, Any], environment: dict[str, str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check_environment(TrainingConfig(**settings), environment)


WAITING = """
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from penchant.train import launch
from penchant.train.config import TrainingConfig

launch.pick_device = lambda asked: sys.argv[1]
launch.start(TrainingConfig(), Path(sys.argv[2]))
group = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
print(f"waits {group.options._timeout.total_seconds():.0f} s\\n", end="", flush=True)
"""


@pytest.mark.parametrize(("device", "seconds"), [("cpu", 1800), ("cuda", 365 * 86400)])
def test_processes_on_accelerators_wait_for_each_other(
    tmp_path: Path, device: str, seconds: int
) -> None:
    """By default NCCL ends a run in which one process reads a model's files for ten minutes."""
    (tmp_path / "waiting.py").write_text(WAITING)
    given = (str(tmp_path / "waiting.py"), device, str(tmp_path))
    # The group itself is one of processors here, whatever the device.
    done = launched(*given, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"waits {seconds} s") == 2
