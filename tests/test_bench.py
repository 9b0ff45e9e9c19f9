"""The benchmark against TRL at a size of seconds: its measuring, resuming and its command line."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

pytest.importorskip("trl")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
against_trl = importlib.import_module("against_trl")
step_cases = importlib.import_module("step_cases")
step_contention = importlib.import_module("step_contention")
step_flash = importlib.import_module("step_flash")
step_job = importlib.import_module("step_job")
step_penchant = importlib.import_module("step_penchant")
step_results = importlib.import_module("step_results")
step_table = importlib.import_module("step_table")
step_watch = importlib.import_module("step_watch")
step_workload = importlib.import_module("step_workload")

SECONDS = ["--threads", "1", "--seconds", "0", "--min-cores", "0", "--gemm-size", "64"]
BOTH = ["--contestants", "penchant", "trl-best"]


def sat(*seconds: float, memory: int = 2**20, discarded: int = 0, loss: float = 0.5) -> Any:
    """What a sitting gives of one contestant."""
    runs = [{"seconds": each, "steps": 1, "cores": 2.0, "other_cores": None} for each in seconds]
    about = {
        "memory_bytes": memory,
        "tokens": 100,
        "useful_flops": 50.0,
        "gemm_flops_per_second": 100.0,
        "loss": loss,
        "grad_norm": 2.0,
    }
    return {"runs": runs, "discarded": runs[:discarded], "about": about}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where `command` writes its results."""
    return tmp_path / "results.json"


@pytest.fixture
def command(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run of both sides at a size of seconds."""
    # Whoever edits the code while this runs begins the case again, which is meant.
    monkeypatch.setattr(step_results, "fingerprint", lambda paths: "the same")
    return ["--cases", "tiny-fp32", "--runs", "1", "--results", str(path), *SECONDS, *BOTH]


def test_it_measures_resumes_and_reports(
    path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Really against TRL: same loss and gradient, figures of both, and nothing measured twice."""
    assert against_trl.main(command) == 0
    first = json.loads(path.read_text())["cases"]["tiny-fp32"]
    runs = {who: one["runs"] for who, one in first["contestants"].items()}
    assert {who: len(listed) for who, listed in runs.items()} == {"penchant": 1, "trl-best": 1}
    apart = first["summary"]["difference"]["trl-best"]
    assert apart["loss"] < 1e-5 and apart["grad_norm"] < 1e-4
    about = {who: one["about"] for who, one in first["contestants"].items()}
    assert abs(about["penchant"]["loss"] - 0.693147) > 1e-3, "policy and reference are one"
    assert about["trl-best"]["micro_batch_pairs"] == 1 and about["trl-best"]["precomputed"]
    expected = runs["trl-best"][0]["seconds"] / runs["penchant"][0]["seconds"]
    assert first["summary"]["times_faster"]["penchant"]["trl-best"] == pytest.approx(expected)
    assert "tiny-fp32" in capsys.readouterr().out
    picture = ElementTree.parse(path.with_suffix(".svg"))
    assert sum(element.tag.endswith("rect") for element in picture.iter()) == 2

    written = path.read_text()
    assert against_trl.main(command) == 0
    assert path.read_text() == written, "a finished case was measured again"

    cut = json.loads(written)
    del cut["cases"]["tiny-fp32"]["contestants"]["trl-best"]
    path.write_text(json.dumps(cut))
    assert against_trl.main(command) == 0
    after = json.loads(path.read_text())["cases"]["tiny-fp32"]["contestants"]
    assert after["penchant"]["runs"][:1] == runs["penchant"] and len(after["trl-best"]["runs"]) == 1


def test_processes_take_turns(
    path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two rounds of both, each from one process; then two processes each, one at a time."""
    assert against_trl.main([*command, "--runs", "2"]) == 0
    told = [line.split()[1] for line in capsys.readouterr().out.splitlines() if " cores" in line]
    assert [name for name in told if name.endswith(":")] == ["penchant:", "trl-best:"] * 2

    assert against_trl.main([*command, "--runs", "2", "--together", "1", "--fresh"]) == 0
    case = json.loads(path.read_text())["cases"]["tiny-fp32"]
    sittings = {
        who: [run["sitting"] for run in one["runs"]] for who, one in case["contestants"].items()
    }
    assert sittings == {"penchant": [1, 3], "trl-best": [2, 4]}


def test_the_fastest_micro_batch_is_found(
    path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two pairs, so micro-batches of 1 and 2 are tried; what is chosen is what then runs."""
    assert against_trl.main([*command, "--trl-micro-batch", "auto"]) == 0
    case = json.loads(path.read_text())["cases"]["tiny-fp32"]
    tried = case["tuned_seconds"]
    assert sorted(tried) == ["1", "2"]
    fastest = int(min(tried, key=tried.get))
    assert case["tuned"] == {"trl_micro_batch": fastest}
    assert case["contestants"]["trl-best"]["about"]["micro_batch_pairs"] == fastest
    assert "pairs a micro-batch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "groups"),
    [
        (
            ["--together", "3"],
            [["penchant", "penchant-online", "trl-best"], ["penchant", "trl-default"]],
        ),
        ([], [["penchant", who] for who in ("penchant-online", "trl-best", "trl-default")]),
        (["--together", "2", *BOTH], [["penchant", "trl-best"]]),
        (["--together", "1", *BOTH], [["penchant"], ["trl-best"]]),
        (["--device", "cuda", *BOTH], [["penchant"], ["trl-best"]]),
    ],
)
def test_penchant_sits_with_every_group(asked: list[str], groups: list[list[str]]) -> None:
    assert against_trl.groups_of("b-fp32", against_trl.parse(asked)) == groups


def test_a_failing_contestant_is_said_and_the_others_go_on(
    path: Path,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = against_trl.job

    def no_such_layout(name: str, options: Any) -> dict[str, Any]:
        return real(name, options) | {"token_budget": -1}

    monkeypatch.setattr(against_trl, "job", no_such_layout)
    assert against_trl.main(command) == 0
    assert "failed: ValueError: token_budget is -1" in capsys.readouterr().out
    contestants = json.loads(path.read_text())["cases"]["tiny-fp32"]["contestants"]
    assert len(contestants["trl-best"]["runs"]) == 1


def test_a_contestant_that_is_killed_has_failed(capsys: pytest.CaptureFixture[str]) -> None:
    options = against_trl.parse(["--cases", "tiny-fp32", *SECONDS])
    asked = against_trl.job("tiny-fp32", options) | {"contestant": "penchant"}
    with against_trl.start(asked, options) as one:
        assert one.step()["seconds"] > 0
        one._process.kill()
        assert one.step() == {}
        assert one.stop() == {"failed": "exit code -9"}


def test_what_is_discarded_is_repeated_so_often_and_no_more(path: Path, command: list[str]) -> None:
    alone = ["--contestants", "penchant", "--retries", "2", "--min-cores", "99"]
    assert against_trl.main([*command, *alone]) == 0
    place = json.loads(path.read_text())["cases"]["tiny-fp32"]["contestants"]["penchant"]
    assert (len(place["runs"]), len(place["discarded"])) == (0, 3)


@pytest.mark.parametrize("wrong", [["--cases", "a-fp31"], ["--runs", "0"], ["--device", "tpu"]])
def test_wrong_options_end_with_one_line(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        against_trl.main(wrong)
    assert left.value.code == 2
    assert wrong[1] in capsys.readouterr().err.splitlines()[-1]


def test_the_list_marks_the_default_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert against_trl.main(["--list"]) == 0
    marked = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line[0] == "*"]
    assert tuple(marked) == step_cases.DEFAULT


def test_medians_are_of_usable_runs(tmp_path: Path) -> None:
    """2, 4 and 6 against 1; Penchant's runs of a sitting without the other side do not count."""
    results = step_results.Results(tmp_path / "r.json")
    results.start("a-fp32", {"code": "1"})
    ours = sat(1.0, memory=2 * 2**20, discarded=1)
    results.add("a-fp32", {"trl-best": sat(2.0, 4.0, 6.0, memory=6 * 2**20), "penchant": ours})
    results.add("a-fp32", {"trl-default": sat(8.0), "penchant": sat(1.0, 2.0, 2.0)})
    summary = step_results.Results.load(tmp_path / "r.json").cases["a-fp32"]["summary"]
    assert summary["times_faster"]["penchant"]["trl-best"] == 4.0
    assert summary["times_faster"]["penchant"]["trl-default"] == 4.0
    assert summary["contestants"]["penchant"]["discarded_runs"] == 1
    assert summary["contestants"]["penchant"]["seconds"] == 1.5
    assert summary["contestants"]["trl-best"]["share_of_gemm_peak"] == 0.125
    assert summary["contestants"]["trl-best"]["tokens_per_second"] == 25
    assert summary["times_less_memory"]["penchant"]["trl-best"] == 6.0


@pytest.mark.parametrize(
    ("cores", "others", "usable"),
    [(1.9, 0.5, True), (1.7, 0.1, True), (1.7, 0.3, False), (1.7, None, False), (1.8, None, True)],
)
def test_only_runs_that_others_disturbed_are_discarded(
    cores: float, others: float | None, usable: bool
) -> None:
    options = against_trl.parse(["--threads", "2"])
    assert against_trl.is_usable({"cores": cores, "other_cores": others}, options) is usable


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what others use")
def test_what_other_programs_use_is_measured() -> None:
    """A loop is another program, unless it is the one that is watched."""
    loop = [sys.executable, "-c", "while True: pass"]
    with subprocess.Popen(loop) as busy, subprocess.Popen(["sleep", "60"]) as idle:
        with (
            step_contention.OtherPrograms(idle.pid) as others,
            step_contention.OtherPrograms(busy.pid) as less,
        ):
            time.sleep(1)
        busy.kill()
        idle.kill()
    assert others.cores is not None and less.cores is not None
    assert others.cores - less.cores > 0.1


def test_changed_conditions_begin_a_case_again(tmp_path: Path) -> None:
    results = step_results.Results(tmp_path / "r.json")
    wanted = {"code": "1", "asked": {"threads": 2}}
    results.start("k8", wanted)
    results.add("k8", {"trl-best": sat(2.0), "penchant": sat(1.0)})
    assert results.start("k8", wanted) == ""
    assert len(results.runs("k8", "penchant")["runs"]) == 1
    assert "again" in results.start("k8", wanted | {"code": "2"})
    assert results.runs("k8", "trl-best")["runs"] == []


def test_targets_are_shown_beside_what_was_measured(tmp_path: Path) -> None:
    results = step_results.Results(tmp_path / "r.json")
    results.start("a-bf16", {"code": "1"})
    default = sat(13.5, loss=0.6)
    results.add("a-bf16", {"penchant": sat(1.0), "trl-best": sat(3.4), "trl-default": default})
    text = step_table.targets(results.cases)
    assert "3.4x (3.5x / 5.5x) BELOW FLOOR" in text
    assert "13.5x (8.5x / 13.0x) goal" in text
    assert "DIFFERS" in text
    assert step_table.disagreements(results.cases) == ["a-bf16"]


def test_useful_flops_by_hand() -> None:
    """One prompt of 2 tokens, responses of 3 and 1: 6 tokens, 4 of them scored.

    Body: 2 layers x (4 x 32 x 32 + 3 x 32 x 64) = 20,480 weights. Keys seen: prompt 1 + 2; first
    response 3 + 4 + 5; second 3: 18 in all, at 4 x 2 layers x 32.
    """
    case = step_cases.CASES["tiny-fp32"]
    trees = step_workload.make_trees(case, [(2, [3, 1])])
    products = 2 * 20_480 * 6 + 2 * 32 * 300 * 4 + 4 * 2 * 32 * 18
    assert step_workload.useful_flops(case, trees, online=False) == 3 * products
    assert step_workload.useful_flops(case, trees, online=True) == 4 * products


@pytest.mark.parametrize("name", ["a-bf16", "k8", "length-2048", "1B-long-prompts"])
def test_lengths_keep_their_mean_and_the_cap(name: str) -> None:
    case = step_cases.all_cases()[name]
    lengths = step_workload.draw_lengths(case)
    assert len(lengths) == case.prompts
    assert all(len(responses) == case.responses for _, responses in lengths)
    assert all(prompt + max(responses) <= case.cap for prompt, responses in lengths)
    if case.fixed:
        assert {prompt for prompt, _ in lengths} == {case.cap // 2}
    else:
        mean = sum(prompt for prompt, _ in lengths) / len(lengths)
        assert 0.85 * case.prompt_mean < mean <= 1.01 * case.prompt_mean


@pytest.mark.parametrize("name", ["tiny-fp32", "tiny-k4", "tiny-bf16-lora"])
@pytest.mark.parametrize("budget", [40, None])
def test_packing_without_sharing_computes_the_same_step(name: str, budget: int | None) -> None:
    """Through sdpa here; on CUDA through flash attention, by the same restarting positions."""
    case = step_cases.CASES[name]
    trees = step_workload.make_trees(case, step_workload.draw_lengths(case))
    rows = step_job.Job("packed-flash", case, trees, "cpu", budget)
    theirs = step_flash.train(rows, step_watch.Watch("cpu"), "sdpa")
    ours = step_penchant.train(
        step_job.Job("penchant", case, trees, "cpu"), step_watch.Watch("cpu")
    )
    allowed = 1e-5 if case.dtype == "float32" else 5e-3
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=allowed)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=10 * allowed)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_memory_is_what_a_step_took_above_rest() -> None:
    watch = step_watch.Watch("cpu")
    kept = torch.ones(8, 2**20)
    while not watch.done:
        watch.begin()
        taken = torch.ones(16, 2**20)
        del taken
        watch.end(0.0, 0.0)
    measured = watch.record()["memory_bytes"]
    assert 60 * 2**20 < measured < 80 * 2**20
    assert kept.sum() == 8 * 2**20
