"""The serving benchmark as a program: its arguments, and one run against a real server with the mock."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from rich.progress import Progress

from benchmark.events import CHAT, COMPLETIONS, Dialect, Events, StreamError
from benchmark.server import Server
from benchmark.serving import arguments
from benchmark.serving.__main__ import main, run
from benchmark.serving.report import file_name, level_name
from benchmark.targets import root_of


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["--", "--model=mock"], "--model=mock: options of launch.py need --launch"),
        (["--launch", "--base-url", "http://x"], "--base-url: with --launch"),
        (["--concurrencies", "1,2", "--max-concurrency", "3"], "--max-concurrency: give either"),
        (["--concurrencies", "1", "--request-rate", "3"], "--concurrencies: levels in flight have no arrival rate"),
        (["--ramp-up-strategy", "linear"], "belong together"),
        (["--burstiness", "2"], "--burstiness needs"),
        (["--save-detailed"], "--save-detailed needs --save-result"),
        (["--save-result", "--result-filename", "x"], "--result-filename names the one file"),
        (["--percentile-metrics", "ttft,tbt"], "--percentile-metrics: tbt: known are ttft, tpot"),
        (["--metric-percentiles", "50,101"], "expected numbers from 0 to 100"),
        (["--metric-percentiles", "nan"], "expected numbers from 0 to 100"),
        (["--goodput", "itl:3"], "--goodput itl:3: expected METRIC:MS"),
        (["--goodput", "ttft:fast"], "--goodput ttft:fast"),
        (["--metadata", "x"], "--metadata 'x': expected KEY=VALUE"),
        (["--header", "X=a\r\nY: b"], "expected KEY=VALUE"),
        (["--num-requests", "0", "--request-rate", "1"], "--num-requests: with an arrival rate"),
        (["--hf-split", "train"], "--hf-subset and --hf-split need"),
    ],
)
def test_what_makes_no_sense_is_refused(argv: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    shown = capsys.readouterr().err
    assert error in shown
    assert len(shown.splitlines()) == 1


def test_levels() -> None:
    parse = arguments.parser().parse_args
    assert arguments.levels(parse([])) == [1, 2, 4, 8, 16, 32]
    assert arguments.levels(parse(["--concurrencies", "3,5"])) == [3, 5]
    assert arguments.levels(parse(["--request-rate", "3"])) == [None]
    assert arguments.levels(parse(["--max-concurrency", "7"])) == [7]
    assert [arguments.num_requests(parse(["--num-requests", "0"]), level) for level in (1, 8)] == [4, 24]


def test_the_v1_of_other_clients_is_taken_too() -> None:
    assert root_of("") == "http://localhost:8000"
    assert root_of("http://x:1/v1/") == "http://x:1"


def test_chats_are_known_by_backend_or_path() -> None:
    parse = arguments.parser().parse_args
    for argv, chat, path in (
        ([], False, "/v1/completions"),
        (["--backend", "openai-chat"], True, "/v1/chat/completions"),
        (["--endpoint", "/api/v1/chat/completions"], True, "/api/v1/chat/completions"),
    ):
        args = parse(argv)
        assert (arguments.chat(args), arguments.endpoint(args)) == (chat, path)


def test_files_are_called_as_vllm_calls_them() -> None:
    result = {
        "label": None, "backend": "vllm", "model_id": "a/b", "max_concurrency": 4, "date": "D", "request_rate": "inf"
    }  # fmt: skip
    assert file_name(result) == "vllm-infqps-concurrency4-b-D.json"
    ramp = {"ramp_up_strategy": "linear", "ramp_up_start_rps": 1.0, "ramp_up_end_rps": 5.0, "max_concurrency": None}
    assert file_name({**result, **ramp}) == "vllm-ramp-up-linear-1qps-5qps-b-D.json"
    assert level_name({**result, **ramp}) == "1 to 5/s"
    assert level_name({**result, "request_rate": 2.5}) == "2.5/s, at most 4"


# -- which events are pieces -------------------------------------------------------------------------------------------


def pieces(
    dialect: Dialect, *choices: Mapping[str, object], keep: bool = False, indent: bool = False
) -> tuple[int, str]:
    events = Events(dialect, keep)
    for now, choice in enumerate(choices):
        data = json.dumps({"choices": [choice]}) if indent else orjson.dumps({"choices": [choice]}).decode()
        events.feed(f"data: {data}\n\n".encode(), float(now))
    times, _, text = events.parsed()
    return len(times), text


def delta(reason: str | None = None, **fields: object) -> dict[str, object]:
    return {"index": 0, "delta": fields, "finish_reason": reason}


@pytest.mark.parametrize("indent", [False, True], ids=["compact JSON", "JSON with spaces"])
def test_pieces_of_chats_are_content_reasoning_and_calls(indent: bool) -> None:
    chat = [
        delta(role="assistant", content=""),  # none
        delta(content="one"),
        delta(content='a "role": here'),
        delta(reasoning_content="hm"),
        delta(reasoning="hm"),
        delta(tool_calls=[{"index": 0}]),
        delta(content=""),
        delta(content=None),  # none
        delta("stop"),  # none
    ]
    assert pieces(CHAT, *chat, indent=indent)[0] == 6
    assert pieces(CHAT, *chat, keep=True, indent=indent) == (6, 'onea "role": here')


@pytest.mark.parametrize("indent", [False, True], ids=["compact JSON", "JSON with spaces"])
def test_every_choice_of_a_text_completion_is_a_piece(indent: bool) -> None:
    texts = [{"text": text, "finish_reason": reason} for text, reason in (("a", None), ("", None), ("", "stop"))]
    assert pieces(COMPLETIONS, *texts, indent=indent)[0] == 3


def test_an_error_among_the_events_is_raised() -> None:
    for body, message in (({"message": "gone", "code": 500}, "gone"), ("gone", "gone")):
        events = Events(CHAT, False)
        events.feed(b"data: " + orjson.dumps({"error": body}) + b"\n\n", 0.0)
        with pytest.raises(StreamError, match=message):
            events.parsed()


# -- whole runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(["--model=mock", f"--profile-dir={tmp_path_factory.mktemp('profiles')}"]) as started:
        yield started


def test_a_sweep_with_all_its_files(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        f"--base-url={server.url}/v1", "--concurrencies=1,3", "--num-requests=5", "--input-len=40", "--output-len=9",
        "--goodput", "ttft:60000", "--save-result", "--save-detailed", f"--result-dir={tmp_path / 'results'}",
        "--profile", "--metadata", "commit=abc", f"--json={tmp_path / 'all.json'}", f"--csv={tmp_path / 'all.csv'}",
    ]  # fmt: skip
    assert main(argv) == 0
    first, second = (json.loads(path.read_text()) for path in sorted((tmp_path / "results").iterdir()))
    assert (first["max_concurrency"], second["max_concurrency"]) == (1, 3)
    for result in (first, second):
        assert (result["completed"], result["failed"], result["num_prompts"]) == (5, 0, 5)
        assert (result["total_input_tokens"], result["total_output_tokens"]) == (5 * 40, 5 * 9)
        assert (result["model_id"], result["request_rate"], result["commit"]) == ("mock", "inf", "abc")
        assert (result["inexact_prompts"], result["total_cached_tokens"]) == (0, 0)
        assert result["request_goodput"] == pytest.approx(result["request_throughput"])
        assert result["definitions"]["output tokens"].startswith("usage")
        assert result["output_lens"] == [9] * 5
        assert result["max_concurrent_requests"] <= result["max_concurrency"]
        assert result["server_queue_times"][0] >= 0
    assert Path(capsys.readouterr().out.partition("the server's profile: ")[2].splitlines()[0]).is_file()
    everything = json.loads((tmp_path / "all.json").read_text())
    assert [level["p99_ttft_ms"] for level in everything["levels"]] == [first["p99_ttft_ms"], second["p99_ttft_ms"]]
    assert [row["max_concurrency"] for row in csv.DictReader((tmp_path / "all.csv").open())] == ["1", "3"]


def test_chats_of_a_file_at_a_rate(server: Server, tmp_path: Path) -> None:
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"question {n}", "output_tokens": 3}) + "\n" for n in range(9)))
    argv = [
        f"--base-url={server.url}", "--backend=openai-chat", f"--dataset-path={data}", "--request-rate=500",
        "--max-concurrency=2", "--num-requests=6", "--save-result", "--result-filename=r.json",
        f"--result-dir={tmp_path}", "--percentile-metrics=e2el,client_queue_time", "--metric-percentiles=50,99.9",
    ]  # fmt: skip
    assert main(argv) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["completed"], result["total_output_tokens"]) == (6, 18)
    assert result["request_rate"] == 500
    assert result["p99.9_e2el_ms"] >= result["p50_e2el_ms"] == result["median_e2el_ms"] > 0
    assert len(result["queue_times"]) == 6
    assert result["endpoint"] == "/v1/chat/completions"


def test_failures_make_the_exit_code_and_are_shown(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [f"--base-url={server.url}", "--concurrencies=1", "--num-requests=2", "--input-len=5", "--output-len=5"]
    assert main([*argv, "--extra-body", '{"top_p": 7}']) == 2  # the warm-up already shows it
    assert "a warm-up request failed: 400: top_p" in capsys.readouterr().err
    assert main(["--base-url", "http://127.0.0.1:1"]) == 2
    assert "127.0.0.1:1" in capsys.readouterr().err


@asynccontextmanager
async def silent_about_usage() -> AsyncIterator[str]:
    """A server that streams two words and counts nothing."""
    event = b'data: {"choices":[{"index":0,"text":"%b ","finish_reason":%b}]}\n\n'
    body = event % (b"one", b"null") + event % (b"two", b'"stop"') + b"data: [DONE]\n\n"

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"Content-Length: " in head:
                    await reader.readexactly(int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0]))
                found = b"/v1/completions" in head
                answer, status = (body, b"200 OK") if found else (b"{}", b"404 Not Found")
                writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(answer), answer))
                await writer.drain()
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_server_without_usage_needs_a_tokenizer(embedded_model: object) -> None:
    folder = str(embedded_model.folder)  # type: ignore[attr-defined]
    base = ["--model=x", "--concurrencies=1", "--num-requests=2", "--input-len=5", "--output-len=2"]
    parse = arguments.parser().parse_args
    async with silent_about_usage() as url:
        with pytest.raises(RuntimeError, match="sends no usage: give --tokenizer"):
            await run(parse(base), url, None, Progress(disable=True))
        [result] = await run(parse([*base, f"--tokenizer={folder}"]), url, None, Progress(disable=True))
    assert (result["completed"], result["total_input_tokens"], result["total_output_tokens"]) == (2, 10, 6)
    with pytest.raises(RuntimeError, match="names no model; give --model"):
        async with silent_about_usage() as url:
            await run(parse([]), url, None, Progress(disable=True))
