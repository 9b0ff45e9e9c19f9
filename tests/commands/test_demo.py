"""The demo, for real but tiny: all steps run, the files agree, it goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import penchant
from penchant.commands._demo_measure import read_rows
from penchant.errors import RecipeError
from penchant.generate.row_file import write_rows

QUICK = {"quick": True, "objectives": ["dpo", "mmpo"], "num_prompts": 12, "full": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished quick demo, with its results beside it."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENCHANT_CACHE", str(folder.parent / "cache"))
        results = penchant.run("demo", None, {"output_dir": str(folder), **QUICK})
    (folder.parent / "returned.json").write_text(json.dumps(results))
    return folder


def _answers(folder: Path, name: str) -> dict:
    return json.loads((folder / "seed-0" / "answers" / f"{name}.json").read_text())


def test_it_returns_what_it_wrote(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    assert results == json.loads((folder.parent / "returned.json").read_text())
    assert list(results["seeds"]["0"]) == ["sft", "dpo", "mmpo"]
    assert results["num_prompts"] == 12


def test_every_policy_answers_every_prompt(folder: Path) -> None:
    for name in ("sft", "dpo", "mmpo"):
        answers = _answers(folder, name)
        assert {len(values) for values in answers.values()} == {12}
        assert all(0 <= reward <= 1 for reward in answers["reward_N"])
        assert all(length >= 1 for length in answers["length_N"])


def test_the_figures_follow_from_the_answers(folder: Path) -> None:
    row = json.loads((folder / "results.json").read_text())["seeds"]["0"]["dpo"]
    start, dpo = _answers(folder, "sft"), _answers(folder, "dpo")
    assert row["gold_reward"]["mean"] == pytest.approx(sum(dpo["reward_N"]) / 12)
    assert row["kl_from_start"]["mean"] == pytest.approx(sum(dpo["kl_N"]) / 12)
    assert row["mean_length"] == pytest.approx(sum(dpo["length_N"]) / 12)
    won = sum(
        (a > b) + (a == b) / 2 for a, b in zip(dpo["reward_N"], start["reward_N"], strict=True)
    )
    assert row["win_rate"]["rate"] == pytest.approx(won / 12)
    summary = json.loads((folder / "seed-0" / "dpo" / "summary.json").read_text())
    assert row["held_out_accuracy"] == summary["eval"]["eval_rewards/accuracies"]


def test_kl_is_what_the_two_models_say_of_the_answers(folder: Path) -> None:
    import torch

    from penchant.commands._demo_measure import _log_ratio
    from penchant.generate import Sample
    from penchant.models.load import load_causal_lm

    policy, start = (load_causal_lm(str(folder / "seed-0" / name)) for name in ("dpo", "sft"))
    answers = [Sample((9, 10, 1), "", False), Sample((11, 12), "", True)]
    prompts = [[5, 6, 7], [8]]
    ours = _log_ratio(policy, start, prompts, answers)
    for prompt, answer, ratio in zip(prompts, answers, ours, strict=True):
        expected = 0.0
        with torch.no_grad():
            for model, sign in ((policy, 1), (start, -1)):
                logits_LV = model(torch.tensor([prompt + list(answer.ids)])).logits[0]
                logp_LV = logits_LV[len(prompt) - 1 : -1].log_softmax(-1)
                expected += sign * float(logp_LV.gather(1, torch.tensor(answer.ids)[:, None]).sum())
        assert ratio == pytest.approx(expected, abs=1e-4)
    assert any(abs(ratio) > 1e-6 for ratio in ours)


def test_the_page_shows_the_table_and_warns_that_it_was_quick(folder: Path) -> None:
    page = (folder / "index.html").read_text(encoding="utf-8")
    row = json.loads((folder / "results.json").read_text())["seeds"]["0"]["mmpo"]
    assert f"{row['gold_reward']['mean']:.3f}" in page
    assert "figures mean nothing" in page
    assert len(page.encode()) < 300_000


def test_the_second_half_follows_from_what_its_commands_wrote(folder: Path) -> None:
    found = json.loads((folder / "results.json").read_text())["full"]["0"]
    assert list(found["rewards"]) == ["reward-multitask", "reward-more"]
    for name in found["rewards"]:
        evaluation = folder / "seed-0" / "evaluations" / name / "evaluation.json"
        first = json.loads(evaluation.read_text())["preferences"]["sets"][0]
        (measure,) = first["measures"].values()
        assert found["rewards"][name]["correct"]["accuracy"] == measure["accuracy"]
    lines = (folder / "seed-0" / "candidates" / "held_out.scored.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    best = found["best_of_n"]
    assert best["num_prompts"] + best["left_out"] == len(rows) == 12
    kept = [row for row in rows if None not in row["scores"]]
    assert {len(row["scores"]) for row in kept} == {4}
    mean = sum(sum(row["gold"]) / 4 for row in kept) / len(kept)
    assert best["chosen"][0]["mean"] == pytest.approx(mean) == best["exact"][0]["mean"]
    for row in kept:
        assert all(0 <= gold <= 1 for gold in row["gold"])
    exact = [one["mean"] for one in best["exact"]]
    assert exact == sorted(exact)
    assert exact[-1] == pytest.approx(sum(max(row["gold"]) for row in kept) / len(kept))
    assert all(a["mean"] <= b + 1e-9 for a, b in zip(best["chosen"], exact, strict=True))
    assert list(found["policies"]) == ["sft", "best-of-n-sft"]
    tuned = (folder / "seed-0" / "candidates" / "train.best.jsonl").read_text().splitlines()
    assert len(tuned) == 8
    page = (folder / "full.html").read_text(encoding="utf-8")
    assert f"{found['policies']['sft']['gold_reward']['mean']:.3f}" in page
    assert "figures mean nothing" in page and "<script" not in page


def test_the_same_command_again_trains_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "seed-0").rglob("*")}
    results = penchant.run("demo", None, {"output_dir": str(folder), **QUICK})
    after = {path: path.stat().st_mtime_ns for path in (folder / "seed-0").rglob("*")}
    assert before == after
    assert results["seeds"] == json.loads((folder.parent / "returned.json").read_text())["seeds"]


def test_a_run_that_was_interrupted_is_finished(folder: Path) -> None:
    (folder / "seed-0" / "answers" / "mmpo.json").unlink()
    results = penchant.run("demo", None, {"output_dir": str(folder), **QUICK})
    # Sampling is seeded, so the missing part comes back as it was.
    assert results["seeds"] == json.loads((folder.parent / "returned.json").read_text())["seeds"]


def test_other_settings_or_a_foreign_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="differs in num_prompts"):
        penchant.run("demo", None, {"output_dir": str(folder), **QUICK, "num_prompts": 13})
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RecipeError, match="not empty and holds no demo"):
        penchant.run("demo", None, {"output_dir": str(tmp_path), **QUICK})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    plan = penchant.run(
        "demo", None, {"output_dir": str(folder), "flipped_control": True}, dry_run=True
    )
    assert plan["steps"][0] == "seed-0: miniature"
    assert plan["steps"][-1] == "seed-0: dpo-flipped"
    assert not folder.exists()


def test_sampled_texts_may_hold_any_line_end(tmp_path: Path) -> None:
    """A model that spells in bytes writes U+0085 or U+2028 now and then."""
    rows = [{"responses": [f"a{end}b"]} for end in ("\n", "\r", "\x0b", "\x85", "\u2028")]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
