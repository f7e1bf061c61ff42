"""The start-up benchmark: what it makes of events, and one run with the mock."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmark.startup import Start, evict, main
from ipc.control_messages import Loading, Ready, RingState


def test_phases_last_until_the_next_one() -> None:
    found = Start("warm")
    events = [
        (1.0, Loading("convert", 0, 10)), (2.0, Loading("convert", 10, 10)), (3.0, Loading("load", 0, 0)),
        (3.5, Ready("gateway", {"url": "http://x"})), (7.0, Ready("model", {})), (7.1, RingState({})),
    ]  # fmt: skip
    for now, event in events:
        found.take(event, now)
    assert found.took_s() == {"convert": 2.0, "load": 4.0}
    assert (found.ready_s, found.serving_s, found.url) == ({"gateway": 3.5, "model": 7.0}, 7.1, "http://x")


def test_evicted_files_are_whole_when_they_are_read_again(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "weights").write_bytes(b"x" * 10_000)
    assert evict(tmp_path) == 1
    assert (tmp_path / "folder" / "weights").read_bytes() == b"x" * 10_000


def test_a_run_with_the_mock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUINTET_CACHE", str(tmp_path / "mine"))
    path = tmp_path / "startup.json"
    assert main(["--runs=1", f"--json={path}", "--", "--model=mock"]) == 0
    found = json.loads(path.read_text())
    assert [start["kind"] for start in found["starts"]] == ["cold", "warm"]
    for start in found["starts"]:
        assert set(start["ready_s"]) == {"gateway", "tokenizer", "scheduler", "model", "detokenizer"}
        assert 0 < max(start["ready_s"].values()) <= start["serving_s"] < start["first_token_s"]
    assert set(found["imports_s"]) == set(found["starts"][0]["ready_s"])
    assert os.environ["QUINTET_CACHE"] == str(tmp_path / "mine")


def test_a_server_that_cannot_start_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    for argv, error in (
        (["--runs=0"], "--runs: must be at least 1"),
        (["--", "--modle=x"], "--modle"),
        (["--", "--model=mock", "--num-gpu-blocks-override=8"], "--max-model-len"),
    ):
        assert main(argv) == 2
        assert error in capfd.readouterr().err
