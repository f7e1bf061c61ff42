"""Where a token's time goes: the stages add up, the metrics page is read, and a run against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmark.client import Measured
from benchmark.latency import STAGES, figures, main, stages_ms, token_ms
from benchmark.metrics_page import parse_page
from benchmark.server import Server
from benchmark.serving.prompts import Request
from benchmark.serving.traffic import Sent
from benchmark.targets import TargetError

TIMINGS = {
    "tokenize_ms": 1.0, "queue_ms": 2.0, "batch_wait_ms": 3.0, "prefill_ms": 13.0, "ttft_ms": 16.5, "decode_ms": 40.0,
    "execution_ms": 46.0,
}  # fmt: skip


def measured(**changes: object) -> Measured:
    fields = {"sent": 5.0, "ttft": 0.02, "latency": 0.06, "completion_tokens": 5, "timings": TIMINGS}
    return Measured(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_stages_of_a_first_token_are_its_ttft() -> None:
    stages = stages_ms(measured())
    assert stages == pytest.approx(
        {"tokenize": 1, "to_scheduler": 0.5, "queue": 2, "batch_wait": 3, "first_step": 10, "http_and_text": 3.5}
    )
    assert tuple(stages or ()) == STAGES
    assert sum((stages or {}).values()) == pytest.approx(20)


def test_a_token_behind_the_first_is_the_rings_and_the_runners() -> None:
    assert token_ms(measured()) == (10, 9)
    assert token_ms(measured(completion_tokens=1)) is None


@pytest.mark.parametrize("timings", [{}, {**TIMINGS, "queue_ms": None}, {"prompt_ms": 3.0}])
def test_other_servers_tell_nothing(timings: dict[str, float | None]) -> None:
    assert stages_ms(measured(timings=timings)) is None
    assert token_ms(measured(timings=timings)) is None
    found = figures(1, [[Sent(Request("x", 3, 5), measured(timings=timings), 0, 0)]], None, None)
    assert (found["mean_ttft_ms"], found["mean_tpot_ms"], found["mean_batch_ms"]) == pytest.approx((20, 10, 60))
    assert (found["ttft_stages_ms"], found["ring_ms_a_token"]) == ({}, None)


def test_a_failed_request_is_no_figure() -> None:
    with pytest.raises(TargetError, match="1 of 1 requests failed, the first with: 500: no"):
        figures(1, [[Sent(Request("x", 3, 5), measured(error="500: no"), 0, 0)]], None, None)


def test_a_metrics_page_is_read() -> None:
    page = parse_page(
        "# TYPE cpu_seconds counter\n"
        'cpu_seconds_total{process="model"} 2.5\ncpu_seconds_total{process="gateway"} 1\n'
        "# TYPE tokens counter\ntokens_total 7\n"
    )
    assert page.by("cpu_seconds_total", "process") == {"model": 2.5, "gateway": 1}
    assert page.value("tokens_total") == 7
    assert page.value("cpu_seconds_total", process="model") == 2.5
    assert page.value("cpu_seconds_total") == 0
    with pytest.raises(ValueError, match="html"):
        parse_page("<html>no metrics</html>")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(["--model=mock", f"--profile-dir={tmp_path_factory.mktemp('profiles')}"]) as started:
        yield started


def test_a_run_against_a_server(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    argv = [
        f"--base-url={server.url}", "--batch-sizes=1,3", "--num-iters=2", "--num-iters-warmup=1", "--input-len=30",
        "--output-len=12", "--profile", f"--json={path}",
    ]  # fmt: skip
    assert main(argv) == 0
    found = json.loads(path.read_text())
    assert [column["batch_size"] for column in found["batches"]] == [1, 3]
    for column in found["batches"]:
        assert (column["prompt_tokens"], column["completion_tokens"], column["cached_tokens"]) == (30, 12, 0)
        stages = column["ttft_stages_ms"]
        assert sum(stage["mean"] for stage in stages.values()) == pytest.approx(column["mean_ttft_ms"], abs=0.01)
        assert {"scheduler: plan", "model: step", "detokenizer: detokenize", "gateway: text"} <= {
            span["what"] for span in column["way_of_a_token"]
        }
        assert set(column["cpu_ms_a_token"]) == {"gateway", "tokenizer", "scheduler", "model", "detokenizer"}


def test_what_is_wrong_is_one_line(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, error in (
        (["--base-url=http://127.0.0.1:1"], "http://127.0.0.1:1"),
        (["--", "--model=mock"], "options of launch.py need --launch"),
        (["--launch", "--base-url=http://x"], "--base-url: with --launch"),
        ([f"--base-url={server.url}", "--output-len=1000000"], "requests failed"),
    ):
        assert main(argv) == 2
        shown = capsys.readouterr().err
        assert error in shown
        assert len(shown.splitlines()) == 1
