"""Everybody comes at once: are the refused told so in time, and do the admitted wait no longer than the queue says?

    python -m benchmark.flood [--requests 10000] [--queue 256] [--json FILE]

A server with the mock, whose steps take a fixed time, gets all requests in the same moment, each on a connection of its
own; its queue holds few of them. The clients are one thread with plain sockets, which does nothing but send and note
when the first byte of each answer comes.

The arithmetic of the unloaded queue: B sequences run at a time, each for its steps, so that the k-th admitted one gets
its first token with the batch k // B. Times are from the moment of sending, so they hold all that a request waits for:
to be accepted, to be read, to be refused. The server's own figure, from the first byte read to the refusal, comes from
its metrics page.
"""

from __future__ import annotations

import argparse
import errno
import json
import resource
import select
import socket
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmark.metrics_page import parse_page
from benchmark.report import write_json
from benchmark.server import Server
from benchmark.summary import percentile

SEQS = 32  # in the running batch
TOKENS = 20  # of each answer
STEP_MS = 10.0
FLOODS = 4
DEADLINE_S = 120.0
IN_TIME_S = 1.0
MOST_RATIO = 2.0


@dataclass
class Call:
    """One request on its connection. Times are on the monotonic clock; 0 has not happened."""

    socket: socket.socket
    sent: float = 0.0
    answered: float = 0.0  # the first byte of the answer
    data: bytes = b""

    @property
    def status(self) -> int:
        """0 when the connection ended without an answer."""
        return int(self.data[9:12]) if self.data.startswith(b"HTTP/1.1 ") else 0


def flood(url: str, count: int) -> list[Call]:
    """Send so many requests at once and see all of them through."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "x", "max_tokens": TOKENS, "stream": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    poller = select.epoll()
    calls: dict[int, Call] = {}
    for _ in range(count):
        one = socket.socket()
        one.setblocking(False)
        code = one.connect_ex((host, int(port)))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, "connect")
        calls[one.fileno()] = Call(one)
        poller.register(one.fileno(), select.EPOLLOUT)
    started, running = time.monotonic(), len(calls)
    while running and time.monotonic() - started < DEADLINE_S:
        for number, _ in poller.poll(1.0):
            if _go_on(calls[number], request):
                poller.unregister(number)
                calls[number].socket.close()
                running -= 1
            elif calls[number].sent:
                poller.modify(number, select.EPOLLIN)
    return list(calls.values())


def _go_on(call: Call, request: bytes) -> bool:
    """Send, or take what has come. Whether the connection is over."""
    try:
        if not call.sent:
            call.socket.send(request)  # it is shorter than any buffer
            call.sent = time.monotonic()
            return False
        data = call.socket.recv(1 << 16)
    except BlockingIOError:
        return False
    except OSError:
        return True
    if data and not call.answered:
        call.answered = time.monotonic()
    if len(call.data) < 4096:
        call.data += data
    return not data


def arithmetic_s(admitted: int) -> list[float]:
    """The times to the first token that the queue itself asks for, in seconds, of those that were let in."""
    batch_s = TOKENS * STEP_MS / 1000
    return [index // SEQS * batch_s + STEP_MS / 1000 for index in range(admitted)]


def memory_mib(server: Server) -> dict[str, float]:
    return {name: round(process.memory_info().rss / 2**20, 1) for name, process in server.processes().items()}


def measure(server: Server, count: int) -> dict[str, Any]:
    """Several floods: what one leaves behind must not grow with the next, once the process has its size."""
    memory = [memory_mib(server)]
    floods = []
    for _ in range(FLOODS):
        calls = flood(server.url, count)
        served = [call for call in calls if call.status == 200]
        refused = [call for call in calls if call.status in (429, 503)]
        ttft = sorted(call.answered - call.sent for call in served)
        waits = sorted(call.answered - call.sent for call in refused if call.sent)
        expected = sorted(arithmetic_s(len(served)))
        floods.append(
            {
                "statuses": dict(Counter(str(call.status) for call in calls)),
                "unanswered": sum(1 for call in calls if call.status == 0),
                "ttft_p50_s": round(percentile(ttft, 50), 3),
                "ttft_p99_s": round(percentile(ttft, 99), 3),
                "arithmetic_p99_s": round(percentile(expected, 99), 3),
                "refused_p50_s": round(percentile(waits, 50), 3),
                "refused_p99_s": round(percentile(waits, 99), 3),
                "refused_last_s": round(waits[-1], 3),
            }
        )
        time.sleep(2.0)  # the metrics page is made once a second
        memory.append(memory_mib(server))
    return {"floods": floods, "memory_mib": memory, "refusal_seconds": refusal_seconds(server)}


def refusal_seconds(server: Server) -> dict[str, int]:
    """How many refusals took up to so many seconds from the first byte read, as the server has counted them."""
    page = parse_page(urllib.request.urlopen(f"{server.url}/metrics").read().decode())
    found = page.by("quintet_refusal_seconds_bucket", "le")
    return {bound: int(value) for bound, value in sorted(found.items(), key=lambda item: float(item[0]))}


def failures(found: dict[str, Any]) -> list[str]:
    broken = []
    for result in found["floods"]:
        if result["unanswered"]:
            broken.append(f"{result['unanswered']} connections got no answer")
        if set(result["statuses"]) - {"200", "429", "503", "0"}:
            broken.append(f"statuses: {result['statuses']}")
        if result["ttft_p99_s"] > MOST_RATIO * result["arithmetic_p99_s"]:
            broken.append(f"p99 of TTFT {result['ttft_p99_s']} s, by arithmetic {result['arithmetic_p99_s']} s")
    counts = {float(bound): count for bound, count in found["refusal_seconds"].items()}
    late = counts[float("inf")] - counts[IN_TIME_S]
    if late:
        broken.append(f"{late} refusals took more than {IN_TIME_S:g} s")
    before, after = found["memory_mib"][-2:]
    for name in after:
        if after[name] > before[name] * 1.05 + 1:
            broken.append(f"{name} had {before[name]} MiB before the last flood, {after[name]} MiB after it")
    return broken


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmark.flood", description="everybody comes at once")
    parser.add_argument("--requests", type=int, default=10_000, help="at once, each on its connection (default: 10000)")
    parser.add_argument("--queue", type=int, default=256, help="requests that may wait (default: 256)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    args = parser.parse_args(argv)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, args.requests + 1024), hard))
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as profile:
        profile.write(f"[step]\nfixed_ms = {STEP_MS}\n")
        profile.flush()
        options = {"max_num_seqs": SEQS, "max_num_queued_reqs": args.queue, "mock_profile": profile.name}
        with Server(model="mock", **options) as server:
            found = {"requests": args.requests, "queue": args.queue, **measure(server, args.requests)}
    found["failures"] = failures(found)
    table = Table("flood", *found["floods"][0])
    for number, result in enumerate(found["floods"], 1):
        table.add_row(str(number), *map(str, result.values()))
    console = Console()
    console.print(table)
    console.print("refusals within so many seconds of their first byte:", found["refusal_seconds"])
    console.print("MiB before, and after each:", found["memory_mib"])
    if args.json:
        write_json(args.json, found)
    for failure in found["failures"]:
        print(f"broken: {failure}", file=sys.stderr)
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
