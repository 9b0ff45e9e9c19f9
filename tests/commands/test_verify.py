"""`penchant verify`: a run is what it says, and whatever is changed afterwards is found."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import penchant
from penchant import cli
from penchant.commands import _recompute
from penchant.errors import MissingFileError, VerificationError
from penchant.models.load import load_causal_lm
from penchant.train.final_pairs import MOST, draw
from tests.commands.world import recipe, write_world
from tests.tiny import naive_logps, random_trees, tiny_model


def read_pairs(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "final_pairs.jsonl").read_text().splitlines()]


def train(world: Path, command: str = "train", **changes: Any) -> Path:
    penchant.run(command, None, recipe(world, training__learning_rate=5e-3, **changes))
    return world / "run"


def failing(run: Path, **keys: Any) -> str:
    with pytest.raises(VerificationError) as caught:
        penchant.run("verify", None, {"run": str(run), **keys})
    return str(caught.value)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = write_world(tmp_path_factory.mktemp("made"))
    objective = {"name": "dpo", "beta": 0.1}
    train(world, data__eval=str(world / "eval.jsonl"), objective=objective)
    return world


@pytest.fixture
def world(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that may be damaged. Its recipe names the copy's files."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    run = tmp_path / "run"
    for name in ("recipe.yaml", "fingerprints.json"):
        (run / name).write_text((run / name).read_text().replace(str(made), str(tmp_path)))
    stored = json.loads((run / "fingerprints.json").read_text())
    from penchant.train.fingerprints import of_file

    stored["written"]["recipe.yaml"] = of_file(run / "recipe.yaml")
    (run / "fingerprints.json").write_text(json.dumps(stored))
    return tmp_path


# ------------------------------------------------------------------ whole runs


def test_an_untouched_run_is_what_it_says(world: Path, capsys: Any) -> None:
    found = penchant.run("verify", None, {"run": str(world / "run"), "num_pairs": 4})
    assert all(check["ok"] for check in found["checks"])
    looked_at = {check["what"] for check in found["checks"]}
    assert {"recipe.yaml", "metrics.jsonl", "model.safetensors", "tokenizer.json"} <= looked_at
    assert {str(world / "pairs.jsonl"), str(world / "model" / "model.safetensors")} <= looked_at
    for name in ("policy, chosen", "reference, rejected", "reward, chosen", "loss"):
        assert f"{name} of 4 pairs" in looked_at
    shown = capsys.readouterr().out
    assert "the run is what it says" in shown and "DIFFERS" not in shown


@pytest.mark.parametrize(
    ("command", "changes"),
    [
        ("sft", {"data": "chats.jsonl"}),
        ("sft", {}),
        ("train", {"objective": "sft"}),
        ("train", {"objective": {"name": "dpo", "beta": 0.2, "sft_weight": 0.3}}),
        ("train", {"objective": {"name": "dpo-bmc", "beta": 0.1}}),
        ("train", {"objective": {"name": "mmpo", "bt_beta": 0.5}, "data.eval": "eval.jsonl"}),
        ("train", {"data.eval_fraction": 0.25, "objective": "slic-dpo"}),
        ("train", {"model.adapter": {"r": 4, "alpha": 8}}),
        ("train", {"model.dtype": "bfloat16"}),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value),
)
def test_every_kind_of_run_can_be_recomputed(
    tmp_path: Path, command: str, changes: dict[str, Any]
) -> None:
    write_world(tmp_path)
    files = {"data", "data.eval"}
    given = {key: str(tmp_path / one) if key in files else one for key, one in changes.items()}
    run = train(tmp_path, command, **given)
    found = penchant.run("verify", None, {"run": str(run)})
    looked_at = {check["what"] for check in found["checks"]}
    assert "loss of 10 pairs" in looked_at or "loss of 6 pairs" in looked_at
    has_reference = command == "train" and changes.get("objective") != "sft"
    assert any("reference" in what for what in looked_at) == has_reference


def test_a_continued_adapter_and_a_named_reference(tmp_path: Path) -> None:
    write_world(tmp_path)
    train(tmp_path, model__adapter={"r": 4, "alpha": 8})
    for name, keys in (
        ("second", {"model": str(tmp_path / "run")}),
        ("third", {"reference": str(tmp_path / "run")}),
    ):
        train(tmp_path, output_dir=str(tmp_path / name), **keys)
        penchant.run("verify", None, {"run": str(tmp_path / name)})
    assert read_pairs(tmp_path / "second") != read_pairs(tmp_path / "third")


def test_a_resumed_run_is_verified_too(world: Path) -> None:
    run = world / "run"
    for name in ("summary.json", "final_pairs.jsonl"):
        (run / name).unlink()
    given = recipe(
        world,
        training__learning_rate=5e-3,
        data__eval=str(world / "eval.jsonl"),
        objective={"name": "dpo", "beta": 0.1},
        training__health="off",
    )
    penchant.run("train", None, given)
    penchant.run("verify", None, {"run": str(run)})


# ------------------------------------------------------------------ tampering


def flip_a_byte(world: Path) -> None:
    path = world / "run" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 0x40  # of the last weight's exponent
    path.write_bytes(content)


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(world: Path) -> None:
        text = (world / name).read_text()
        assert old in text
        (world / name).write_text(text.replace(old, new, 1))

    return change


def another_tokenizer(world: Path) -> None:
    path = world / "run" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(content))


def another_start(world: Path) -> None:
    tiny_model(seed=5).save_pretrained(world / "model")


def edit_a_metric(world: Path) -> None:
    path = world / "run" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[-1]["eval_rewards/accuracies"] = 1.0 - rows[-1]["eval_rewards/accuracies"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


TAMPERING: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "model": (flip_a_byte, ("model.safetensors",)),
    "data row": (
        edit("eval.jsonl", "say white", "say black"),
        ("eval.jsonl", "tokens of the eval data", "final_pairs.jsonl"),
    ),
    "training row": (
        edit("pairs.jsonl", "say red", "say tan"),
        ("pairs.jsonl", "tokens of the train data"),
    ),
    "recipe": (
        edit("run/recipe.yaml", "beta: 0.1", "beta: 0.2"),
        ("recipe.yaml", "reward, chosen of 6", "loss of 6"),
    ),
    "metrics": (edit_a_metric, ("metrics.jsonl", "summary.json, last eval row")),
    "tokenizer": (another_tokenizer, ("tokenizer.json", "tokens of the eval data")),
    "start": (another_start, ("model/model.safetensors", "reference, chosen of 6")),
}


@pytest.mark.parametrize("what", TAMPERING)
def test_tampering_is_found_and_named(world: Path, what: str, capsys: Any) -> None:
    change, expected = TAMPERING[what]
    change(world)
    message = failing(world / "run")
    shown = capsys.readouterr().out
    differs = [line for line in shown.splitlines() if "DIFFERS" in line]
    assert len(differs) >= len(expected)
    for name in expected:
        assert name in message, message
    assert VerificationError.exit_code == 1


def test_the_recomputation_finds_what_hashes_do_not(world: Path) -> None:
    """As if the run itself had logged wrong values: the hashes are made to fit."""
    run = world / "run"
    rows = read_pairs(run)
    rows[2]["policy_chosen"] *= 1.001
    rows[3]["loss"] = float("nan")
    (run / "final_pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from penchant.train.fingerprints import finish

    finish(run)
    message = failing(run)
    assert "2 of" in message
    assert "policy, chosen of 6 pairs" in message and "loss of 6 pairs" in message


def test_the_command_line_exits_with_1_and_one_line(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    flip_a_byte(world)
    monkeypatch.setattr("sys.argv", ["penchant", "verify", str(world / "run"), "num_pairs=2"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and "model.safetensors" in error[0]


def test_no_finished_run_is_said_in_one_line(world: Path) -> None:
    (world / "run" / "summary.json").unlink()
    with pytest.raises(MissingFileError, match=r"holds no summary\.json.*finished run"):
        penchant.run("verify", None, {"run": str(world / "run")})


# ------------------------------------------------------------------ parts


def test_the_naive_forward_is_the_oracles(made: Path) -> None:
    model = _recompute.load_plain(str(made / "model"))
    oracle = load_causal_lm(str(made / "model")).double()
    for tree in random_trees(3):
        for response in (0, 1):
            got = _recompute.response_logps(model, tree, response)
            assert got.dtype == torch.float64
            torch.testing.assert_close(got, naive_logps(oracle, tree, response).detach())


def test_logged_pairs_say_what_the_run_ended_with(made: Path) -> None:
    rows = read_pairs(made / "run")
    assert len(rows) == 6 and {row["data"] for row in rows} == {"eval"}
    last = json.loads((made / "run" / "summary.json").read_text())["eval"]
    for name, column in (("loss", "loss"), ("logps/chosen", "policy_chosen")):
        mean = math.fsum(row[column] for row in rows) / len(rows)
        assert mean == pytest.approx(last[f"eval_{name}"], rel=1e-5)


def test_a_draw_is_whole_trees_in_the_seeds_order() -> None:
    trees = random_trees(MOST + 20)
    assert len(draw(trees, 0)) == MOST == len({tree.row_id for tree in draw(trees, 0)})
    assert draw(trees, 0) == draw(trees, 0) != draw(trees, 1)
    assert len(draw(trees[:3], 0)) == 3
