"""`quintet top`: the ring at work, in a terminal.

    quintet top [--url http://127.0.0.1:8000] [--once]

It reads the same stream of events as the page in the browser (`docs/live.md`), and shows the key of the environment's
QUINTET_API_KEY, as the server reads it. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections import Counter, deque
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import aiohttp
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

SHOWN_ENDED = 8
HISTORY = 48  # points of a sparkline
BARS = " ▁▂▃▄▅▆▇█"
STATE_STYLES = {"ready": "green", "starting": "yellow", "lost": "red"}
BLOCK_STYLES = {"free": "grey37", "cached": "blue", "in use": "green", "shared": "magenta"}

Snapshot = Mapping[str, Any]


class NoEventsError(Exception):
    """The server shows nothing; the text says why."""


async def snapshots(url: str, key: str) -> AsyncGenerator[Snapshot, None]:
    """What the server sends, for as long as it does. Raises NoEventsError."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_read=15)
    try:
        async with (
            aiohttp.ClientSession(headers=headers, timeout=timeout, read_bufsize=1 << 22) as session,
            session.get(f"{url}/v1/events") as response,
        ):
            if response.status != 200:
                raise NoEventsError(f"{url}: {(await response.json())['error']['message']}")
            async for line in response.content:
                if line.startswith(b"data: "):
                    yield json.loads(line.removeprefix(b"data: "))
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise NoEventsError(f"{url} does not answer ({reason}): is a server there? name it with --url") from None


class Screen:
    """What has been seen so far, as something that can be printed."""

    def __init__(self) -> None:
        self._ended: deque[Mapping[str, Any]] = deque(maxlen=SHOWN_ENDED)
        self._rates: deque[float] = deque(maxlen=HISTORY)

    def add(self, snapshot: Snapshot) -> RenderableType:
        """The screen for a new snapshot."""
        self._ended.extend(snapshot["ended"])
        self._rates.append(snapshot["series"]["generated_tokens_s"])
        parts: list[RenderableType] = [self._head(snapshot), processes(snapshot["processes"])]
        if snapshot["batch"] is not None:
            parts += [batch(snapshot), blocks(snapshot["blocks"])]
        parts += [requests(snapshot["requests"]), ended(self._ended)]
        return Group(*parts)

    def _head(self, snapshot: Snapshot) -> Text:
        series = snapshot["series"]
        head = Text()
        head.append(f"{snapshot['model'] or 'no model yet'}  ", style="bold")
        if snapshot["draining"]:
            head.append("shutting down  ", style="red")
        head.append(f"{series['generated_tokens_s']:.0f} tok/s  {series['requests_s']:.1f} req/s  ")
        for name, title in (("ttft_ms", "TTFT"), ("itl_ms", "ITL")):
            if (found := series[name]) is not None:
                head.append(f"{title} {found['p50']:.1f} ms (p99 {found['p99']:.1f})  ")
        head.append(sparkline(self._rates), style="cyan")
        return head


def sparkline(values: deque[float]) -> str:
    """The values as a row of bars, the highest one full."""
    top = max(values, default=0.0)
    return "".join(BARS[round(value / top * (len(BARS) - 1))] for value in values) if top > 0 else ""


def processes(found: list[Mapping[str, Any]]) -> Table:
    """One row a process."""
    table = _table("process", "state", "busy", "inbox", "peak", "messages", "memory", "gc max")
    for each in found:
        state = Text(each["state"], style=STATE_STYLES.get(each["state"], ""))
        if "loop_busy" not in each:
            table.add_row(each["name"], state, *[""] * 6)
            continue
        memory, pause = f"{each['rss_bytes'] / (1 << 20):.0f} MiB", f"{1000 * each['gc_pause_max_s']:.0f} ms"
        inbox = (str(each["inbox_depth"]), str(each["inbox_peak"]), str(each["messages_in"]))
        table.add_row(each["name"], state, f"{100 * each['loop_busy']:.0f} %", *inbox, memory, pause)
    return table


def batch(snapshot: Snapshot) -> Text:
    """The queues, and the newest step as a bar of its tokens."""
    queues, found = snapshot["queues"], snapshot["batch"]
    step = found["in_flight"][-1] if found["in_flight"] else None
    text = Text(f"\nwaiting {queues['waiting']}  held {queues['held']}  ")
    text.append(f"prefill {queues['prefill']}  decode {queues['decode']}  steps {found['steps']}  ")
    if step is None:
        return text.append("no step in flight", style="dim")
    width = 40
    prefill = round(width * step["prefill_tokens"] / found["budget"])
    decode = max(1 if step["decode_tokens"] else 0, round(width * step["decode_tokens"] / found["budget"]))
    text.append("█" * min(prefill, width), style="yellow").append("█" * min(decode, width - prefill), style="green")
    text.append("·" * max(0, width - prefill - decode), style="dim")
    return text.append(f" {step['prefill_tokens']} prefill + {step['decode_tokens']} decode of {found['budget']}")


def blocks(found: Mapping[str, Any]) -> Text:
    """The KV blocks as a bar."""
    counts = {
        "shared": found["shared"],
        "in use": found["in_use"] - found["shared"],
        "cached": found["cached"],
        "free": found["free"],
    }
    text, width = Text("KV blocks  "), 40
    for name, count in counts.items():
        text.append("█" * round(width * count / found["total"]), style=BLOCK_STYLES[name])
    for name, count in counts.items():
        text.append(f"  {name} {count}", style=BLOCK_STYLES[name])
    return text


def requests(found: list[Mapping[str, Any]]) -> Text:
    """How many sequences are in which state."""
    states = Counter(each["state"] for each in found)
    shown = "  ".join(f"{state} {count}" for state, count in states.most_common())
    return Text(f"in flight  {shown or 'nothing'}\n")


def ended(found: deque[Mapping[str, Any]]) -> Table:
    """The last sequences that ended."""
    table = _table("request", "end", "prompt", "output", "queue ms", "TTFT ms", "total ms")
    for each in reversed(found):
        table.add_row(
            each["id"][:32], each["reason"], str(each.get("prompt_tokens", "")), str(each["output_tokens"]),
            _span(each, "queued_ms", "scheduled_ms"), _span(each, "received_ms", "first_token_ms"),
            _span(each, "received_ms", "ended_ms"),
        )  # fmt: skip
    return table


def _span(each: Mapping[str, Any], begin: str, end: str) -> str:
    first, last = each.get(begin), each.get(end)
    return f"{last - first:.1f}" if first is not None and last is not None else ""


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right", no_wrap=True)
    return table


async def watch(url: str, key: str, once: bool, console: Console) -> None:
    """Show snapshots until the server ends, or one of them. Raises NoEventsError."""
    screen = Screen()
    async with contextlib.aclosing(snapshots(url, key)) as stream:
        if once:
            console.print(screen.add(await anext(stream)))
            return
        with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
            async for snapshot in stream:
                live.update(screen.add(snapshot), refresh=True)
    console.print("the server has ended the stream")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="quintet top", description="The ring at work, in a terminal.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the server is")
    parser.add_argument("--once", action="store_true", help="print one snapshot and end")
    args = parser.parse_args(argv)
    try:
        asyncio.run(
            watch(args.url.rstrip("/"), os.environ.get("QUINTET_API_KEY", "").split(" ")[0], args.once, Console())
        )
    except NoEventsError as error:
        print(f"quintet top: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
