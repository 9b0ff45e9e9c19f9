"""Digests of models' files: computed once per change, by one of several, never believed late."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penchant.engine.reference import digests
from penchant.engine.reference.locks import hold


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """How many files were read whole so far, by this process and its children."""
    log, read = tmp_path / "reads", digests._read
    log.touch()

    def logging(path: Path) -> str:
        with log.open("a") as file:
            file.write(f"{path}\n")
        time.sleep(0.05)
        return read(path)

    monkeypatch.setattr(digests, "_read", logging)
    monkeypatch.setattr(digests, "_known", {})
    monkeypatch.setattr(digests, "_SETTLED", 0)
    yield lambda: len(log.read_text().splitlines())


def test_a_file_is_read_once_per_change(
    tmp_path: Path, reads: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, kept = tmp_path / "weights", tmp_path / "kept"
    file.write_bytes(b"one")
    first = digests.of_file(file, kept)
    assert digests.of_file(file, kept) == first and reads() == 1
    monkeypatch.setattr(digests, "_known", {})  # as in another process
    assert digests.of_file(file, kept) == first and reads() == 1
    known = file.stat()
    file.write_bytes(b"two")  # as long, and with its time put back
    os.utime(file, ns=(known.st_atime_ns, known.st_mtime_ns))
    second = digests.of_file(file, kept)
    assert second != first and reads() == 2
    replaced = tmp_path / "new"
    replaced.write_bytes(b"six")
    os.replace(replaced, file)
    assert digests.of_file(file, kept) not in (first, second) and reads() == 3
    assert digests.forget_gone(kept) == 0
    file.unlink()
    assert digests.forget_gone(kept) == 1


def test_a_file_that_just_changed_is_read_again(
    tmp_path: Path, reads: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the clock's resolution it could change once more and look the same."""
    monkeypatch.setattr(digests, "_SETTLED", 3600 * 10**9)
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    for _ in range(2):
        digests.of_file(file, tmp_path / "kept")
    assert reads() == 2


def test_two_processes_at_once_read_a_file_once(tmp_path: Path, reads: Callable[[], int]) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            digests.of_file(file, tmp_path / "kept")
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    assert reads() == 1


def test_where_nothing_can_be_kept_it_is_read_every_time(
    tmp_path: Path, reads: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    (tmp_path / "taken").write_text("a file where the folder should be")
    found = {digests.of_file(file, tmp_path / "taken")}
    monkeypatch.setattr(digests, "_known", {})
    found.add(digests.of_file(file, tmp_path / "taken"))
    assert len(found) == 1 and reads() == 2


def test_a_damaged_digest_is_not_believed(
    tmp_path: Path, reads: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = digests.of_file(file, tmp_path / "kept")
    for kept in (tmp_path / "kept").iterdir():
        kept.write_text(kept.read_text()[:40])
    monkeypatch.setattr(digests, "_known", {})
    assert digests.of_file(file, tmp_path / "kept") == first and reads() == 2


def test_a_file_that_changed_before_a_long_reading_is_read_again(
    tmp_path: Path, reads: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts is when it was looked at, not when the last byte of it was read."""
    monkeypatch.setattr(digests, "_SETTLED", 3600 * 10**9)
    clock, read, later = time.time_ns, digests._read, [0]
    monkeypatch.setattr(digests.time, "time_ns", lambda: clock() + later[0])

    def slow(path: Path) -> str:
        later[0] += 2 * 3600 * 10**9
        return read(path)

    monkeypatch.setattr(digests, "_read", slow)
    file, kept = tmp_path / "weights", tmp_path / "kept"
    file.write_bytes(b"one")
    digests.of_file(file, kept)
    assert not list(kept.glob("*.json"))
    assert digests.of_file(file, kept) and reads() == 2 and list(kept.glob("*.json"))


def test_a_file_that_is_mounted_anew_has_its_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network and container file systems get another device number every time."""
    file, real = tmp_path / "weights", os.stat
    file.write_bytes(b"one")
    before = digests.stamp(file)

    def mounted_anew(path: Path) -> os.stat_result:
        fields, times = real(path).__reduce__()[1]
        return os.stat_result((*fields[:2], fields[2] + 1, *fields[3:]), times)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", mounted_anew)
        after = digests.stamp(file)
    assert after == before
    file.write_bytes(b"four")
    assert digests.stamp(file) != before


def until_told(capfd: pytest.CaptureFixture[str]) -> str:
    """What is printed next to stderr; nothing where that takes very long."""
    deadline, told = time.monotonic() + 60, ""
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
        told = capfd.readouterr().err
    return told


def test_a_long_wait_for_another_reader_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(digests, "_SILENCE", 0.05)
    files, kept = [tmp_path / "one", tmp_path / "two"], tmp_path / "kept"
    locks = []
    kept.mkdir()
    for file in files:
        file.write_bytes(b"weights")
        locks.append(hold(digests._name(str(file), kept).with_suffix(".lock")))
    waiting = threading.Thread(target=digests.of_files, args=(files, kept))
    waiting.start()
    told = until_told(capfd)
    for lock in locks:
        assert lock is not None
        lock.release()
    waiting.join()
    told += capfd.readouterr().err
    assert "waiting for another process, which reads " in told and told.count("\n") == 1


def test_long_reading_is_said_once_and_short_reading_is_not(
    tmp_path: Path,
    reads: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    for file in files:
        file.write_bytes(b"weights")
    digests.of_files(files, tmp_path / "kept")
    assert not capfd.readouterr().err
    read, told = digests._read, [""]

    def long(path: Path) -> str:
        told[0] = told[0] or until_told(capfd)
        return read(path)

    monkeypatch.setattr(digests, "_known", {})
    monkeypatch.setattr(digests, "_SILENCE", 0.01)
    monkeypatch.setattr(digests, "_THREADS", 1)
    monkeypatch.setattr(digests, "_read", long)
    digests.of_files(files, tmp_path / "elsewhere" / "kept")
    assert told[0] + capfd.readouterr().err == (
        "digests of the model's files: reading 2 files (0.0 GB), once until they change\n"
    )
