"""`penchant reference list | verify | prune`: what it shows, removes and refuses."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import penchant
from penchant import cli
from penchant.engine.reference.entry import Entry
from penchant.errors import VerificationError
from tests.commands.world import recipe, write_world


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world, and two entries: of a model, and of the model that was trained from it."""
    world = write_world(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENCHANT_CACHE", str(world / "cache"))
        for model, run in (("model", "one"), ("one", "two")):
            keys = {"model": str(world / model), "output_dir": str(world / run)}
            penchant.run("train", None, recipe(world, training__max_steps=3, **keys))
    return world


@pytest.fixture
def cache(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import shutil

    shutil.copytree(made / "cache", tmp_path / "cache")
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "cache"


def shards(cache: Path) -> list[Path]:
    return sorted((cache / "reference").glob("*/*.safetensors"), key=lambda p: p.stat().st_mtime)


def call(*arguments: str) -> tuple[int, str]:
    """Exit code, and what was printed on both streams."""
    done = CliRunner().invoke(cli.app, ["reference", *arguments])
    return done.exit_code, done.output


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_list_shows_what_is_there(cache: Path, made: Path) -> None:
    code, shown = call("list")
    assert code == 0
    lines = shown.splitlines()
    assert len(lines) == 1 + 2 + 1
    for line, model in zip(lines[1:3], ("one", "model"), strict=True):  # the last used first
        assert str(made / model) in line and "float32" in line and "packed cpu" in line
        assert " 24 " in line and line.rstrip().endswith("ago")
    assert "2 entries, 48 rows" in lines[3] and "limit 20 GB" in lines[3]
    found = penchant.run("reference", None, {"action": "list"})
    assert [one["rows"] for one in found["entries"]] == [24, 24]
    assert json.dumps(found)


def test_an_entry_in_use_says_so_and_is_not_pruned(cache: Path) -> None:
    path = shards(cache)[0]
    entry = Entry(path.parent.parent, path.parent.name, {})
    code, shown = call("list")
    assert code == 0 and shown.count("in use") == 1
    code, shown = call("prune", "max_size=0")
    assert code == 0 and "1 shard removed" in shown
    assert f"{path.parent.name[:12]} is in use and was left as it is" in shown
    assert shards(cache) == [path]
    entry.close()
    assert call("prune", "max_size=0")[0] == 0
    assert not shards(cache) and not list((cache / "reference").iterdir())


def test_prune_keeps_to_the_size_and_the_days(cache: Path) -> None:
    old, new = shards(cache)
    size = max(old.stat().st_size, new.stat().st_size)
    code, shown = call("prune", f"max_size={size}", "--dry-run")
    assert code == 0 and "1 shard would be removed" in shown and str(old) in shown
    assert shards(cache) == [old, new]
    assert call("prune")[1].startswith("0 shards removed")
    os.utime(old, (time.time() - 10 * 86400,) * 2)
    assert call("prune", "unused_days=11")[1].startswith("0 shards removed")
    assert call("prune", "unused_days=9")[1].startswith("1 shard removed")
    assert shards(cache) == [new]


def test_the_size_may_come_from_the_environment(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENCHANT_REFERENCE_CACHE_SIZE", "1kB")
    assert "limit 1e-06 GB" in call("list")[1]
    assert "2 shards removed" in call("prune")[1]
    monkeypatch.setenv("PENCHANT_REFERENCE_CACHE_SIZE", "everything")
    code, shown = call("list")
    assert code == 2 and shown.startswith("error: PENCHANT_REFERENCE_CACHE_SIZE='everything'")


def test_one_entry_by_the_start_of_its_name(cache: Path) -> None:
    old, new = (path.parent.name for path in shards(cache))
    assert f"{old[:12]}" in call("list", f"entry={old[:5]}")[1]
    assert new[:12] not in call("list", f"entry={old[:5]}")[1]
    call("prune", "max_size=0", f"entry={old[:5]}")
    assert [path.parent.name for path in shards(cache)] == [new]
    code, shown = call("prune", "entry=xyz")
    assert code == 2 and "begins with 'xyz'" in shown and shown.count("\n") == 1


def test_verify_finds_damage_and_prune_removes_it(cache: Path) -> None:
    assert call("verify") == (0, call("verify")[1])
    old, new = shards(cache)
    damage(old)
    code, shown = call("verify")
    assert code == 1
    assert f"{old}: " in shown and "1 DAMAGED" in shown and str(new) not in shown
    assert shown.splitlines()[-1].startswith("error: 1 files in ")
    with pytest.raises(VerificationError):
        penchant.run("reference", None, {"action": "verify"})
    assert call("prune", "damaged=true")[1].startswith("1 shard removed")
    assert shards(cache) == [new] and call("verify")[0] == 0


def test_what_cannot_be_read_or_removed_is_named_and_stays(cache: Path) -> None:
    old, new = shards(cache)
    freed = new.stat().st_size
    old.unlink()
    old.mkdir()  # which nobody can read or unlink as a file, root neither
    code, shown = call("verify")
    assert code == 1 and "1 UNREADABLE" in shown and "DAMAGED" not in shown
    assert f"{old}: cannot be read: Is a directory" in shown
    assert "read and checked, but for 1 file" in shown
    last = shown.splitlines()[-1]
    assert last.startswith("error: 1 files in ") and "cannot be read and were not checked" in last
    assert "do not hold what was written" not in last
    code, shown = call("prune", "damaged=true")
    assert code == 0 and shown.startswith("0 shards removed")
    assert f"{old} was left as it is: it cannot be read: Is a directory" in shown
    found = penchant.run("reference", None, {"action": "prune", "max_size": "0"})
    assert found["removed"] == [str(new)] and found["freed_bytes"] == freed
    assert [one["path"] for one in found["left"]] == [str(old)] and old.is_dir()


def test_a_folder_of_somebody_beside_the_entries_stays(cache: Path) -> None:
    file = cache / "reference" / "my-model" / "model.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    for path in (file, file.parent):
        os.utime(path, (time.time() - 10 * 86400,) * 2)
    assert "2 entries, 48 rows" in call("list")[1]
    assert call("prune", "max_size=0", "damaged=true")[1].startswith("2 shards removed")
    assert [*(cache / "reference").iterdir()] == [file.parent] and file.exists()


def test_verify_finds_an_entry_under_another_name(cache: Path) -> None:
    """Values of one model must not be taken for those of another by renaming a folder."""
    folder = shards(cache)[0].parent
    folder.rename(folder.with_name("0" * 32))
    code, shown = call("verify")
    assert code == 1 and "it does not say what the entry's name is made of" in shown


def test_prune_forgets_digests_of_files_that_are_gone(
    cache: Path, made: Path, tmp_path: Path
) -> None:
    from penchant.engine.reference import digests

    file = tmp_path / "weights"
    file.write_bytes(b"one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "_SETTLED", 0)
        digests.of_file(file, cache / "digests")
    before = len(list((cache / "digests").glob("*.json")))
    file.unlink()
    call("prune", "--dry-run")
    assert len(list((cache / "digests").glob("*.json"))) == before
    call("prune")
    assert len(list((cache / "digests").glob("*.json"))) == before - 1


def test_without_anything_stored_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path / "nothing"))
    for action in ("list", "verify", "prune"):
        code, shown = call(action)
        assert code == 0 and shown.startswith("0 ")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "action is missing; allowed: list | verify | prune"),
        (["show"], "action: given 'show', allowed: list | verify | prune"),
        (["list", "max_size=3GB"], "max_size: only for prune, not for list"),
        (["verify", "damaged=true"], "damaged: only for prune, not for verify"),
        (["prune", "max_size=3 apples"], "max_size='3 apples' is no size"),
        (["prune", "unused_days=-1"], "unused_days: given -1"),
        (["list", "verify"], "given 'verify' besides list"),
    ],
)
def test_what_cannot_be_done_is_one_line(cache: Path, arguments: list[str], message: str) -> None:
    code, shown = call(*arguments)
    assert code == 2 and message in shown and shown.count("\n") == 1


def test_its_help(monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    code, shown = call("--help")
    assert code == 0 and "penchant reference list | verify | prune" in shown
    assert "PENCHANT_REFERENCE_CACHE_SIZE" in " ".join(shown.split())
