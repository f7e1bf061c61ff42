"""Throughput and latency of a server under load, level by level.

    python -m benchmark.serving [--base-url URL | --launch] [--input-len 1024] [--output-len 1024] [--randomness 1.0]
        [--concurrencies 1,2,4,8,16,32] [--num-requests 100] [--seed 42] [--json FILE] [-- OPTIONS OF launch.py]
    python -m benchmark.serving --request-rate 4 --max-concurrency 64 --goodput ttft:200 tpot:50 --save-result

The first form is MiniEngine's: a sweep over requests in flight. The second one is `vllm bench serve`: one level, with
arrivals that do not wait for answers. --help lists the rest. Any OpenAI-style server can be asked; with --launch a
Quintet server is started for the run, and the CPU time and memory of its processes are reported too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvloop
from rich.console import Console
from rich.progress import Progress

from benchmark.client import Client
from benchmark.datasets import DatasetError, read_rows
from benchmark.events import CHAT, COMPLETIONS
from benchmark.plot import NoPlotError, check_matplotlib
from benchmark.profiled import profiled
from benchmark.progress import progress_bar
from benchmark.report import write_csv, write_json
from benchmark.server import Server, ServerError
from benchmark.server_figures import cpu_seconds
from benchmark.serving import arguments
from benchmark.serving.arguments import ArgumentsError
from benchmark.serving.metrics import DEFINITIONS, details, level_metrics
from benchmark.serving.prompts import PromptError, Request, Turn, built_in, from_turns, read_turns
from benchmark.serving.report import draw, file_name, level_name, rows, show, show_server
from benchmark.serving.tokens import Counter, FileCounter, TokenizerFileError, find_counter
from benchmark.serving.traffic import Form, Traffic, send_all
from benchmark.targets import TargetError, first_model, target

DETAILS = ("latencies", "queue_times")  # one number a request: in the files of --save-result alone


@dataclass(slots=True)
class Bench:
    """One run of the benchmark against one server."""

    args: argparse.Namespace
    client: Client
    form: Form
    counter: Counter
    turns: list[Turn]  # of a dataset, in the order in which they are asked
    server: Server | None = None
    asked: int = 0  # of those
    progress: Progress = field(default_factory=lambda: Progress(disable=True))

    async def requests(self, count: int, purpose: str) -> list[Request]:
        """Fresh ones: no two calls get the same. Raises PromptError and DatasetError."""
        args, lengths, seed = self.args, arguments.lengths(self.args), f"{self.args.seed} {purpose}"
        if not self.turns:
            return await built_in(count, lengths, self.counter, seed)
        start, self.asked = self.asked, self.asked + count
        chosen = (self.turns[index % len(self.turns)] for index in range(start, start + count))
        return await from_turns(chosen, count, lengths, self.counter, f"{args.seed} {purpose}")

    async def warm_up(self) -> None:
        """Send what counts nothing, and see whether the server says how many tokens it makes. Raises TargetError."""
        count = max(1, self.args.num_warmups)
        requests = await self.requests(count, "warm-up")
        traffic = await send_all(self.client, self.form, requests, [0.0] * count, 1, self.args.timeout)
        measured = [sent.measured for sent in traffic.sent]
        if failed := [one.error for one in measured if one.error]:
            raise TargetError(f"a warm-up request failed: {failed[0]}")
        if not all(one.completion_tokens for one in measured):
            if not isinstance(self.counter, FileCounter):
                raise TargetError("the server sends no usage: give --tokenizer, so that answers can be counted")
            self.client.keep_text = True

    async def level(self, index: int, max_concurrency: int | None) -> dict[str, Any]:
        """Run one level. Returns its results under the keys of `vllm bench serve`, and some of our own."""
        args = self.args
        count = arguments.num_requests(args, max_concurrency)
        requests = await self.requests(count, f"level {index}")
        times_s = arguments.arrivals(args).times_s(count, np.random.default_rng([args.seed, index]))
        ring = self.server.processes() if self.server else {}
        before = {name: cpu_seconds(process) for name, process in ring.items()}
        task = self.progress.add_task(f"level {index + 1}", total=count)
        traffic = await send_all(
            self.client, self.form, requests, times_s, max_concurrency, args.timeout,
            on_done=lambda: self.progress.advance(task),
        )  # fmt: skip
        self._count_answers(traffic)
        found = level_metrics(traffic, arguments.metrics(args), arguments.percentiles(args), arguments.objectives(args))
        if args.save_detailed:
            found |= details(traffic)
        if ring:
            found["server_cores"] = {
                name: (cpu_seconds(process) - before[name]) / traffic.duration for name, process in ring.items()
            }
        return self._setting(count, max_concurrency) | found | self._doubts(requests, found)

    def _count_answers(self, traffic: Traffic) -> None:
        """Count the tokens that the server does not count."""
        if isinstance(self.counter, FileCounter):
            for sent in traffic.sent:
                measured = sent.measured
                if not measured.error and not measured.completion_tokens:
                    measured.completion_tokens = self.counter.count_answer(measured.text)

    def _setting(self, count: int, max_concurrency: int | None) -> dict[str, Any]:
        args = self.args
        backend = args.backend or ("openai-chat" if arguments.chat(args) else "openai")
        setting = {
            "date": time.strftime("%Y%m%d-%H%M%S"),
            "endpoint_type": backend,
            "backend": backend,
            "label": args.label or None,
            "model_id": self.form.model,
            "tokenizer_id": args.tokenizer or None,
            "num_prompts": count,
            "request_rate": "inf" if args.request_rate == np.inf else args.request_rate,
            "burstiness": "inf" if args.burstiness == np.inf else args.burstiness,
            "max_concurrency": max_concurrency,
            "endpoint": arguments.endpoint(args),
            "prompts": self._about_prompts(),
            "token_count": self.counter.about,
            "seed": args.seed,
            "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "load_average": os.getloadavg()[0],
            "definitions": DEFINITIONS,
        }
        if args.ramp_up_strategy:
            names = ("ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps")
            setting |= {name: getattr(args, name) for name in names}
        return setting | arguments.metadata(args)

    def _about_prompts(self) -> str:
        lengths = arguments.lengths(self.args)
        what = f"prompts of {self.args.dataset_path}" if self.turns else "words"
        tokens = f"{lengths.input_len or 'as many as there are'} -> {lengths.output_len or 'as many as asked'} tokens"
        return f"{what}, {tokens}" + (f", randomness {lengths.randomness:g}" if lengths.randomness < 1 else "")

    def _doubts(self, requests: list[Request], found: dict[str, Any]) -> dict[str, Any]:
        lengths = arguments.lengths(self.args)
        exact = lengths.input_len if lengths.randomness >= 1 else None
        inexact = sum(exact is not None and request.prompt_tokens != exact for request in requests)
        cached = 0.0 if self.turns else found["total_cached_tokens"] / max(found["total_input_tokens"], 1)
        return {"inexact_prompts": inexact, "cached_share": cached}


async def run(args: argparse.Namespace, url: str, server: Server | None, progress: Progress) -> list[dict[str, Any]]:
    """The results of every level. Raises PromptError, DatasetError, TokenizerFileError."""
    turns = []
    levels = arguments.levels(args)
    if args.dataset_path:
        wanted = max(1, args.num_warmups) + sum(arguments.num_requests(args, level) for level in levels)
        turns = read_turns(read_rows(arguments.source(args)), wanted, args.seed)
    chat = arguments.chat(args)
    client = Client(
        url, keep_text=args.save_detailed, dialect=CHAT if chat else COMPLETIONS, path=args.endpoint,
        headers=arguments.headers(args, os.environ),
    )  # fmt: skip
    async with client:
        try:
            model = args.model or await first_model(client, url)
            counter = await find_counter(client, model, chat, args.tokenizer)
            ignore_eos = args.ignore_eos if args.ignore_eos is not None else not turns
            form = Form(model, chat, args.temperature, ignore_eos, args.extra_body)
            bench = Bench(args, client, form, counter, turns, server, progress=progress)
            await bench.warm_up()
            async with contextlib.AsyncExitStack() as stack:
                trace = await stack.enter_async_context(profiled(client, {})) if args.profile else None
                results = [await bench.level(index, level) for index, level in enumerate(levels)]
            if trace is not None:
                print(f"the server's profile: {trace.path}")
            return results
        except OSError as error:
            raise TargetError(f"{url}: {error}") from None


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All levels, and what is known of a server of one's own."""
    with contextlib.ExitStack() as stack:
        url, server = stack.enter_context(target(args))
        progress = stack.enter_context(progress_bar(not args.no_progress))
        figures: dict[str, Any] = {"levels": uvloop.run(run(args, url, server, progress))}
        if server:
            memory = {name: process.memory_full_info().uss / 2**20 for name, process in server.processes().items()}
            figures["server"] = {
                "options": args.options, "startup_s": server.startup_s, "memory_mib": memory
            }  # fmt: skip
    return figures


def write(args: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Write the files that were asked for. Raises OSError and NoPlotError."""
    results = figures["levels"]
    if args.save_result:
        for result in results:
            path = args.result_dir / (args.result_filename or file_name(result))
            write_json(path, result)
            print(f"{level_name(result)}: {path}")
    plain = [{name: value for name, value in result.items() if name not in DETAILS} for result in results]
    if args.json:
        write_json(args.json, figures | {"levels": plain})
    if args.csv:
        write_csv(args.csv, rows(results))
    if args.plot:
        draw(args.plot, results, arguments.metrics(args))


def main(argv: list[str] | None = None) -> int:
    args = arguments.parser().parse_args(argv)
    try:
        arguments.check(args)
        if args.plot:
            check_matplotlib()
        figures = measure(args)
        write(args, figures)
        console = Console()
        show(console, figures["levels"], arguments.metrics(args), arguments.percentiles(args))
        if "server" in figures:
            show_server(console, figures["server"], figures["levels"])
    except (
        ArgumentsError, DatasetError, NoPlotError, PromptError, ServerError, TargetError, TokenizerFileError,
        OSError,        ValueError,
    ) as error:  # fmt: skip
        print(f"benchmark.serving: {error}", file=sys.stderr)
        return 2
    return 1 if any(result["failed"] for result in figures["levels"]) else 0


if __name__ == "__main__":
    sys.exit(main())
