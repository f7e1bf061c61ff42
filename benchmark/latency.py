"""Where each millisecond of the first token, and of every token behind it, goes.

    python -m benchmark.latency [--base-url URL | --launch] [--batch-sizes 1,8] [--input-len 128] [--output-len 64]
        [--num-iters 10] [--num-iters-warmup 2] [--profile] [--json FILE] [-- OPTIONS OF launch.py]

The requests of a batch are sent together, and the next batch when all of them have ended. The client measures; a
Quintet server's `timings` say which part of its time to the first token every process had, and its metrics page how
much CPU time each process used. Of another server only the client's figures are known.

The stages of a first token lie one behind the other; together they are the client's TTFT, exactly:

    tokenize        read by the gateway -> its prompt is token ids
    to_scheduler    -> taken in by the scheduler
    queue           -> its first step is planned
    batch_wait      -> the runner begins that step
    first_step      -> the result that brings the first token has reached the scheduler
    http_and_text   the rest: request to the gateway, token to the detokenizer, text to the gateway and to the client

A token behind the first takes TPOT as the client sees it, `ring` from one result to the next as the scheduler sees it,
and `runner` on the device: what the ring takes beyond the runner is work that no other step hid. With --profile one
more batch of each size is recorded, in all processes on one clock, and the way of a token through them is shown span by
span and hop by hop; the timeline itself stays where the server wrote it.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmark.client import Client, Measured
from benchmark.events import COMPLETIONS
from benchmark.kinds import count, counts
from benchmark.metrics_page import Page, page_behind, read_page
from benchmark.profiled import profiled
from benchmark.progress import progress_bar
from benchmark.report import write_json
from benchmark.server import ServerError
from benchmark.serving.metrics import spread_ms
from benchmark.serving.prompts import Lengths, PromptError, built_in
from benchmark.serving.tokens import Counter, find_counter
from benchmark.serving.traffic import Form, Sent, send_all
from benchmark.targets import TargetError, add_target, api_headers, check_target, first_model, target
from benchmark.trace import TraceError, load
from benchmark.trace_report import report

STAGES = ("tokenize", "to_scheduler", "queue", "batch_wait", "first_step", "http_and_text")
PERCENTILES = (50, 90, 99)
TIMEOUT_S = 600.0


def stages_ms(measured: Measured) -> dict[str, float] | None:
    """The parts of one request's TTFT, in milliseconds; None when the server does not tell them."""
    told = measured.timings
    names = ("tokenize_ms", "queue_ms", "batch_wait_ms", "prefill_ms", "ttft_ms")
    if any(told.get(name) is None for name in names):
        return None
    tokenize, queue, batch_wait, prefill, ttft = (told[name] for name in names)
    return {
        "tokenize": tokenize,
        "to_scheduler": ttft - tokenize - queue - prefill,
        "queue": queue,
        "batch_wait": batch_wait,
        "first_step": prefill - batch_wait,
        "http_and_text": 1000 * measured.ttft - ttft,
    }


def token_ms(measured: Measured) -> tuple[float, float] | None:
    """What a token behind the first took as the scheduler saw it, and of that the runner, in milliseconds.

    The mean of one answer; None when it has one token, or the server does not tell.
    """
    more, stages = measured.completion_tokens - 1, stages_ms(measured)
    if more < 1 or stages is None:
        return None
    told = measured.timings
    return told["decode_ms"] / more, (told["execution_ms"] - stages["first_step"]) / more


def figures(
    batch_size: int, batches: Sequence[Sequence[Sent]], before: Page | None, after: Page | None
) -> dict[str, Any]:
    """What all batches of one size amount to. Times are in milliseconds. Raises TargetError when a request failed."""
    measured = [sent.measured for batch in batches for sent in batch]
    if failed := [one.error for one in measured if one.error]:
        raise TargetError(f"{len(failed)} of {len(measured)} requests failed, the first with: {failed[0]}")
    ends = [max(sent.measured.sent + sent.measured.latency for sent in batch) for batch in batches]
    whole_s = [end - batch[0].measured.sent for end, batch in zip(ends, batches, strict=True)]
    stages = [one for one in map(stages_ms, measured) if one is not None]
    each_token = [one for one in map(token_ms, measured) if one is not None]
    tokens = sum(one.completion_tokens for one in measured)
    found: dict[str, Any] = {
        "batch_size": batch_size,
        "batches": len(batches),
        "prompt_tokens": fmean(one.prompt_tokens for one in measured),
        "completion_tokens": fmean(one.completion_tokens for one in measured),
        "cached_tokens": sum(one.cached_tokens for one in measured),
        **spread_ms("batch", whole_s, PERCENTILES),
        **spread_ms("ttft", [one.ttft for one in measured], PERCENTILES),
        **spread_ms("tpot", [one.tpot for one in measured if one.completion_tokens > 1], PERCENTILES),
        "ttft_stages_ms": {
            name: {"mean": fmean(values), "median": median(values), "max": max(values)}
            for name in STAGES
            if (values := [one[name] for one in stages])
        },
        "ring_ms_a_token": fmean(ring for ring, _ in each_token) if each_token else None,
        "runner_ms_a_token": fmean(runner for _, runner in each_token) if each_token else None,
    }
    if before is not None and after is not None:
        earlier, later = (page.by("quintet_process_cpu_seconds_total", "process") for page in (before, after))
        found["cpu_ms_a_token"] = {
            name: 1000 * (seconds - earlier.get(name, 0.0)) / tokens for name, seconds in later.items()
        }
    return found


async def measure_batches(
    client: Client, form: Form, counter: Counter, args: argparse.Namespace, progress: Progress
) -> list[dict[str, Any]]:
    """The figures of every batch size. Raises TargetError, PromptError and OSError."""
    lengths = Lengths(args.input_len, args.output_len, 1.0)
    found = []
    for size in args.batch_sizes:
        total = args.num_iters_warmup + args.num_iters
        task = progress.add_task(f"batches of {size}", total=total)
        before, batches = None, []
        for index in range(total):
            if index == args.num_iters_warmup:
                before = await read_page(client)
            requests = await built_in(size, lengths, counter, f"{args.seed} {size} {index}")
            traffic = await send_all(client, form, requests, [0.0] * size, None, TIMEOUT_S)
            batches.append(traffic.sent)
            progress.advance(task)
        batches = batches[args.num_iters_warmup :]
        tokens = sum(sent.measured.completion_tokens for batch in batches for sent in batch)
        after = None if before is None else await page_behind(client, before, tokens)
        found.append(figures(size, batches, before, after))
        if args.profile:
            requests = await built_in(size, lengths, counter, f"{args.seed} {size} profiled")
            async with profiled(client, {"torch": False}) as trace:  # that alone would cost more than a step
                await send_all(client, form, requests, [0.0] * size, None, TIMEOUT_S)
            found[-1]["way_of_a_token"] = report(load(trace.path))["token"]
    return found


async def run(args: argparse.Namespace, url: str) -> dict[str, Any]:
    """All figures of one server. Raises TargetError and PromptError."""
    async with Client(url, dialect=COMPLETIONS, headers=api_headers(os.environ)) as client:
        try:
            model = args.model or await first_model(client, url)
            counter = await find_counter(client, model, chat=False, tokenizer="")
            form = Form(model, chat=False, temperature=0.0, ignore_eos=True, extra={})
            with progress_bar(True) as progress:
                batches = await measure_batches(client, form, counter, args, progress)
        except OSError as error:
            raise TargetError(f"{url}: {error}") from None
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "load_average": os.getloadavg()[0],
        "model": model,
        "options": args.options,
        "input_len": args.input_len,
        "output_len": args.output_len,
        "batches": batches,
    }


def show(console: Console, found: dict[str, Any]) -> None:
    """Print the client's figures, the stages of a first token, a token's way, and the CPU time of a token."""
    title = f"{found['model']}: {found['input_len']} -> {found['output_len']} tokens, milliseconds"
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    columns = found["batches"]
    for column in columns:
        table.add_column(f"batch {column['batch_size']}", justify="right")

    def row(name: str, cells: Sequence[float | None], digits: int = 2) -> None:
        table.add_row(name, *("-" if cell is None else f"{cell:.{digits}f}" for cell in cells))

    for label, key in (("whole batch", "batch"), ("TTFT", "ttft"), ("TPOT", "tpot")):
        row(f"{label}, mean", [column[f"mean_{key}_ms"] for column in columns])
        row(f"{label}, p99", [column[f"p99_{key}_ms"] for column in columns])
    table.add_section()
    for stage in STAGES:
        told = [column["ttft_stages_ms"].get(stage) for column in columns]
        row(f"TTFT: {stage}, mean", [stage_ms and stage_ms["mean"] for stage_ms in told])
    table.add_section()
    row("a token: ring, mean", [column["ring_ms_a_token"] for column in columns])
    row("a token: runner, mean", [column["runner_ms_a_token"] for column in columns])
    table.add_section()
    names = dict.fromkeys(name for column in columns for name in column.get("cpu_ms_a_token", {}))
    for name in names:
        row(f"CPU a token: {name}", [column["cpu_ms_a_token"].get(name) for column in columns], 3)
    table.add_section()
    ways = [{span["what"]: span["mean"] / 1000 for span in column.get("way_of_a_token", ())} for column in columns]
    for what in dict.fromkeys(what for way in ways for what in way):
        row(what, [way.get(what) for way in ways], 3)
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.latency", description="Where the time of a token goes.")
    add_target(parser)
    parser.add_argument("--batch-sizes", "--batch-size", type=counts, default=[1, 8], help="default: 1,8")
    parser.add_argument("--input-len", type=count, default=128, help="tokens of a prompt (default: 128)")
    parser.add_argument("--output-len", type=count, default=64, help="tokens of an answer (default: 64)")
    parser.add_argument("--num-iters", type=count, default=10, help="batches of each size (default: 10)")
    parser.add_argument("--num-iters-warmup", type=count, default=2, help="batches before those (default: 2)")
    parser.add_argument("--seed", type=int, default=42, help="of the prompts (default: 42)")
    parser.add_argument("--profile", action="store_true", help="record a batch of each size, and show a token's way")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    args = parser.parse_args(argv)
    try:
        check_target(args)
        with target(args) as (url, _):
            found = uvloop.run(run(args, url))
        if args.json:
            write_json(args.json, found)
        show(Console(), found)
    except (TargetError, PromptError, ServerError, TraceError, OSError, ValueError) as error:
        print(f"benchmark.latency: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
