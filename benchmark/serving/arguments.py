"""The command line of the serving benchmark: MiniEngine's flags and those of `vllm bench serve`, checked."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmark.datasets import Source
from benchmark.events import CHAT, COMPLETIONS
from benchmark.kinds import count, counts, positive
from benchmark.serving.arrivals import UNLIMITED, Arrivals, Ramp
from benchmark.serving.metrics import METRICS, SLO_METRICS
from benchmark.serving.prompts import DEFAULT_LEN, Lengths
from benchmark.targets import add_target, api_headers, check_target

SWEEP = (1, 2, 4, 8, 16, 32)
# What vLLM calls backends: who is asked. Here all speak the same dialect, but for chats.
BACKENDS = ("openai", "openai-chat", "vllm", "sglang")
# Requests of a level when their number is left to it: a few for each one in flight.
PER_CONCURRENT = 3
FEWEST = 4


class ArgumentsError(ValueError):
    """Arguments that are wrong, or wrong beside each other; the text names them."""


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(
        prog="benchmark.serving", description="The serving benchmark, for any OpenAI-style server."
    )
    server = parse.add_argument_group("server")
    add_target(server)
    server.add_argument("--backend", choices=BACKENDS, default="", help="openai-chat asks for chats (default: openai)")
    server.add_argument("--endpoint", default="", help="path of the API (default: the backend's)")
    server.add_argument("--tokenizer", default="", metavar="PATH", help="tokenizer.json that counts, not the server")
    server.add_argument("--header", action="append", default=[], metavar="K=V", help="header of every request")
    server.add_argument("--timeout", type=positive, default=600.0, help="seconds for one request (default: 600)")

    asked = parse.add_argument_group("what is asked")
    asked.add_argument("--input-len", "--random-input-len", type=count, help="tokens of a prompt (default: 1024)")
    asked.add_argument("--output-len", "--random-output-len", type=count, help="tokens of an answer (default: 1024)")
    asked.add_argument(
        "--randomness", type=positive, default=1.0, help="below 1, lengths are drawn from [length x this, length]"
    )
    asked.add_argument("--seed", type=int, default=42, help="of prompts, lengths and arrivals (default: 42)")
    asked.add_argument("--dataset-path", default="", help="a .jsonl, .json, .csv or .parquet file, or a hub id")
    asked.add_argument("--hf-subset", default="", help="subset of a dataset on the hub")
    asked.add_argument("--hf-split", default="", help="split of a dataset on the hub (default: train)")
    asked.add_argument("--temperature", type=float, default=0.0, help="of every request (default: 0)")
    asked.add_argument(
        "--ignore-eos", action=argparse.BooleanOptionalAction, default=None,
        help="ask for answers of full length (default: yes for built-in prompts, else no)",
    )  # fmt: skip
    asked.add_argument("--extra-body", type=_object, default={}, metavar="JSON", help="more fields of every request")

    load = parse.add_argument_group("load")
    load.add_argument(
        "--num-requests", "--num-prompts", type=int, default=100,
        help=f"requests of each level (default: 100); 0: {PER_CONCURRENT} for each one in flight, at least {FEWEST}",
    )  # fmt: skip
    load.add_argument("--concurrencies", type=counts, help="levels: requests in flight (default: 1,2,4,8,16,32)")
    load.add_argument("--max-concurrency", type=count, help="one level with so many in flight at most")
    load.add_argument("--request-rate", type=positive, default=UNLIMITED, help="arrivals a second (default: inf)")
    load.add_argument("--burstiness", type=positive, default=1.0, help="of arrivals: 1 is Poisson (default)")
    load.add_argument("--ramp-up-strategy", choices=("linear", "exponential"), help="how the rate grows")
    load.add_argument("--ramp-up-start-rps", type=positive, help="rate at the first request")
    load.add_argument("--ramp-up-end-rps", type=positive, help="rate at the last request")
    load.add_argument("--num-warmups", type=int, default=2, help="requests before the first level (default: 2)")

    output = parse.add_argument_group("output")
    output.add_argument("--goodput", nargs="+", default=[], metavar="METRIC:MS", help="such as ttft:200 tpot:50")
    output.add_argument("--percentile-metrics", default="ttft,tpot,itl", help="metrics to report (ttft,tpot,itl)")
    output.add_argument("--metric-percentiles", default="99", help="percentiles to report (99)")
    output.add_argument("--save-result", action="store_true", help="write one file a level, as vllm bench serve does")
    output.add_argument("--save-detailed", action="store_true", help="put every request into those files")
    output.add_argument("--result-dir", type=Path, default=Path(), help="where they go")
    output.add_argument("--result-filename", default="", help="the name of that file, if it is one")
    output.add_argument("--label", default="", help="the beginning of their names (default: the backend)")
    output.add_argument("--metadata", nargs="+", default=[], metavar="K=V", help="more keys of the results")
    output.add_argument("--profile", action="store_true", help="have the server record itself (/start_profile)")
    output.add_argument("--json", type=Path, metavar="FILE", help="write all levels to this file")
    output.add_argument("--csv", type=Path, metavar="FILE", help="write a row for each level")
    output.add_argument("--plot", type=Path, metavar="FILE", help="draw throughput and latency over the levels")
    output.add_argument("--no-progress", "--disable-tqdm", action="store_true", help="show no progress bar")
    return parse


def check(args: argparse.Namespace) -> None:
    """Refuse what makes no sense together. Raises ArgumentsError and TargetError."""
    check_target(args)
    if args.concurrencies and args.max_concurrency:
        raise ArgumentsError("--max-concurrency: give either one level or --concurrencies")
    if args.concurrencies and open_loop(args):
        raise ArgumentsError("--concurrencies: levels in flight have no arrival rate; use --max-concurrency with one")
    ramp = (args.ramp_up_strategy, args.ramp_up_start_rps, args.ramp_up_end_rps)
    if any(ramp) and not all(ramp):
        raise ArgumentsError("--ramp-up-strategy, --ramp-up-start-rps and --ramp-up-end-rps belong together")
    if any(ramp) and args.request_rate != UNLIMITED:
        raise ArgumentsError("--request-rate: a ramp has its own rates")
    if args.burstiness != 1 and not open_loop(args):
        raise ArgumentsError("--burstiness needs --request-rate or a ramp")
    if args.save_detailed and not args.save_result:
        raise ArgumentsError("--save-detailed needs --save-result")
    if args.result_filename and (not args.save_result or len(levels(args)) > 1):
        raise ArgumentsError("--result-filename names the one file of --save-result, of a single level")
    if (args.hf_subset or args.hf_split) and not args.dataset_path:
        raise ArgumentsError("--hf-subset and --hf-split need --dataset-path")
    if args.num_requests < 0 or args.num_warmups < 0:
        raise ArgumentsError("--num-requests and --num-warmups must not be negative")
    if args.num_requests == 0 and open_loop(args):
        raise ArgumentsError("--num-requests: with an arrival rate their number must be given")
    if wanted := set(metrics(args)) - set(METRICS):
        raise ArgumentsError(f"--percentile-metrics: {', '.join(sorted(wanted))}: known are {', '.join(METRICS)}")
    percentiles(args)
    objectives(args)
    headers(args, {})
    metadata(args)


def open_loop(args: argparse.Namespace) -> bool:
    """Whether requests arrive at given times, whatever is in flight."""
    return args.request_rate != UNLIMITED or args.ramp_up_strategy is not None


def levels(args: argparse.Namespace) -> list[int | None]:
    """The most requests in flight of each level; None is no limit."""
    if args.concurrencies:
        return list(args.concurrencies)
    if args.max_concurrency or open_loop(args):
        return [args.max_concurrency]
    return list(SWEEP)


def num_requests(args: argparse.Namespace, max_concurrency: int | None) -> int:
    return args.num_requests or max(FEWEST, PER_CONCURRENT * (max_concurrency or 1))


def arrivals(args: argparse.Namespace) -> Arrivals:
    ramp = None
    if args.ramp_up_strategy:
        ramp = Ramp(args.ramp_up_strategy, args.ramp_up_start_rps, args.ramp_up_end_rps)
    return Arrivals(args.request_rate, args.burstiness, ramp)


def lengths(args: argparse.Namespace) -> Lengths:
    """Built-in prompts have lengths of their own; a dataset's keep theirs unless told otherwise."""
    default = None if args.dataset_path else DEFAULT_LEN
    return Lengths(args.input_len or default, args.output_len or default, args.randomness)


def source(args: argparse.Namespace) -> Source:
    return Source(args.dataset_path, args.hf_subset, args.hf_split or "train")


def chat(args: argparse.Namespace) -> bool:
    """Whether chats are asked for."""
    return args.backend == "openai-chat" or args.endpoint.endswith("/chat/completions")


def endpoint(args: argparse.Namespace) -> str:
    return args.endpoint or (CHAT if chat(args) else COMPLETIONS).path


def metrics(args: argparse.Namespace) -> list[str]:
    return [name.strip() for name in args.percentile_metrics.split(",") if name.strip()]


def percentiles(args: argparse.Namespace) -> list[float]:
    """Raises ArgumentsError."""
    try:
        values = [float(text) for text in args.metric_percentiles.split(",")]
    except ValueError:
        values = [-1.0]
    if not all(0 <= value <= 100 for value in values):
        raise ArgumentsError(f"--metric-percentiles {args.metric_percentiles}: expected numbers from 0 to 100")
    return values


def objectives(args: argparse.Namespace) -> dict[str, float]:
    """The upper bounds of --goodput, in milliseconds. Raises ArgumentsError."""
    found = {}
    for text in args.goodput:
        name, _, limit = text.partition(":")
        try:
            found[name] = float(limit)
        except ValueError:
            found[name] = math.nan
        if name not in SLO_METRICS or not found[name] >= 0:
            raise ArgumentsError(f"--goodput {text}: expected METRIC:MS with one of {', '.join(SLO_METRICS)}")
    return found


def metadata(args: argparse.Namespace) -> dict[str, str]:
    """Raises ArgumentsError."""
    return dict(_pair("--metadata", text) for text in args.metadata)


def headers(args: argparse.Namespace, environment: Mapping[str, str]) -> dict[str, str]:
    """Those of every request; $OPENAI_API_KEY makes one of them. Raises ArgumentsError."""
    return api_headers(environment) | dict(_pair("--header", text) for text in args.header)


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or any(character in text for character in "\r\n"):
        raise ArgumentsError(f"{flag} {text!r}: expected KEY=VALUE")
    return name.strip(), value.strip()


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("expected a JSON object")
    return value
