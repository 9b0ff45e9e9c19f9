"""What is said of a run while it goes on."""

from __future__ import annotations

import time

import pytest

from penchant.train.progress import ProgressLine


def test_what_an_earlier_run_did_is_not_in_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with ProgressLine("train", 20, "step") as line:
        line.skip(16)
        assert capsys.readouterr().err == ""
        clock[0] = 10.0
        line.advance(2)
    assert capsys.readouterr().err == "train  step 18/20  0:10 left\n"
