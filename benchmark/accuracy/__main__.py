"""What a model answers through a server: the share of right answers, or how it compares with `transformers`.

    python -m benchmark.accuracy --dataset mmlu|gsm8k [--data FILE] [--num-samples 200] [--subjects a,b]
        [--max-tokens N] [--concurrency 8] [--base-url URL | --launch] [--json FILE] [-- OPTIONS OF launch.py]
    python -m benchmark.accuracy --dataset parity [--reference MODEL] [--max-tokens 64] [...]

Questions come from --data, with the columns of the published dataset, else from the Hugging Face hub. A request that
fails is no wrong answer: it is left out of the share, and makes the exit code 1. The parity check loads the reference
with torch in this process, in float32, and compares greedy tokens and log-likelihoods of twenty texts.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from benchmark.accuracy.asking import ask_all
from benchmark.accuracy.parity import ParityError, Reference, compare, continuations, summary
from benchmark.accuracy.questions import DATASETS, Question, choose, read_questions
from benchmark.accuracy.scores import Graded, by_subject, score
from benchmark.accuracy.texts import TEXTS
from benchmark.client import Client
from benchmark.connection_pool import ConnectionPool
from benchmark.datasets import DatasetError, Source, read_rows
from benchmark.events import CHAT
from benchmark.kinds import count
from benchmark.progress import progress_bar
from benchmark.report import write_json
from benchmark.server import ServerError
from benchmark.targets import TargetError, add_target, api_headers, check_target, first_model, target
from model_proc.files.checkpoint import default_cache_dir, resolve
from model_proc.files.model_files import ModelFilesError

PARITY_TOKENS = 64
EMBEDDED = "smollm2-135m"


def questions(args: argparse.Namespace) -> list[Question]:
    """Those that are asked for. Raises DatasetError."""
    dataset = DATASETS[args.dataset]
    source = Source(args.data) if args.data else dataset.source
    subjects = [name.strip() for name in args.subjects.split(",") if name.strip()]
    return choose(read_questions(dataset, read_rows(source)), subjects, args.num_samples, args.seed)


async def grade(args: argparse.Namespace, url: str, asked: list[Question]) -> tuple[str, list[Graded]]:
    """The model's name, and every question with its answer. Raises TargetError."""
    async with Client(url, stream=False, dialect=CHAT, headers=api_headers(os.environ)) as client:
        model = args.model or await first_model(client, url)
        max_tokens = args.max_tokens or DATASETS[args.dataset].max_tokens
        body = {"model": model, "max_tokens": max_tokens, "temperature": 0}
        with progress_bar(True) as progress:
            task = progress.add_task(args.dataset, total=len(asked))
            graded = await ask_all(client, asked, body, args.concurrency, args.timeout, lambda: progress.advance(task))
    return model, graded


async def check_parity(args: argparse.Namespace, url: str) -> dict[str, Any]:
    """The parity figures. Raises ParityError, TargetError and ModelFilesError."""
    folder = resolve(args.reference or EMBEDDED, default_cache_dir(), lambda *_: None).folder
    async with ConnectionPool(url, api_headers(os.environ)) as pool:
        model = args.model or await first_model(pool, url)
        max_tokens = args.max_tokens or PARITY_TOKENS
        try:
            got = await continuations(pool, model, TEXTS[: args.num_samples], max_tokens, args.concurrency)
        except OSError as error:
            raise TargetError(f"{url}: {error}") from None
    reference = Reference(folder)
    with progress_bar(True) as progress:
        compared = [compare(reference, one) for one in progress.track(got, description="transformers")]
    return {"model": model, "reference": args.reference or EMBEDDED, "max_tokens": max_tokens, **summary(compared)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one run, as plain data."""
    asked = [] if args.dataset == "parity" else questions(args)
    with target(args) as (url, _):
        found: dict[str, Any] = {"dataset": args.dataset, "date": time.strftime("%Y-%m-%d"), "options": args.options}
        if args.dataset == "parity":
            return found | uvloop.run(check_parity(args, url))
        model, graded = uvloop.run(grade(args, url, asked))
    each = [asdict(one) | {"right": one.right} for one in graded]
    return found | {
        "model": model, "seed": args.seed, **score(graded), "subjects": by_subject(graded), "each": each
    }  # fmt: skip


def show(console: Console, found: dict[str, Any]) -> None:
    """Print the share of right answers and its interval, for all questions and for each subject."""
    table = Table(title=f"{found['dataset']}, {found['model']}", title_justify="left")
    table.add_column("subject")
    for column in ("answers", "right", "share", "95 % interval", "unclear", "truncated", "errors"):
        table.add_column(column, justify="right")
    for subject, row in [*found["subjects"].items(), ("all", found)]:
        share = "-" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
        low, high = row["interval_95"]
        counts = (str(row[name]) for name in ("unclear", "truncated", "errors"))
        table.add_row(subject, str(row["answered"]), str(row["right"]), share, f"{low:.1%} to {high:.1%}", *counts)
    console.print(table)
    if error := next((one["error"] for one in found["each"] if one["error"]), ""):
        console.print(f"[red]{found['errors']} requests failed[/red], the first with: {error}", highlight=False)


def show_parity(console: Console, found: dict[str, Any]) -> None:
    """Print how the server compares with the reference."""
    console.print(
        f"greedy: {found['same']} of {found['prompts']} continuations of {found['max_tokens']} tokens are the"
        f" reference's, token for token", highlight=False,
    )  # fmt: skip
    if gaps := found["gaps_where_they_part"]:
        shown = ", ".join(f"{gap:.4f}" for gap in sorted(gaps))
        console.print(f"where they part, the reference's two best candidates are {shown} nats apart", highlight=False)
    console.print(
        f"log-likelihoods of {found['tokens']} tokens differ by {found['logprob_difference_mean']:.2e} nats on average,"
        f" by {found['logprob_difference_max']:.2e} at most", highlight=False,
    )  # fmt: skip
    if found["prompt_tokens_compared"]:
        console.print(
            f"of the {found['prompt_tokens_compared']} prompt tokens, at most by"
            f" {found['prompt_logprob_difference_max']:.2e}; perplexity is {found['prompt_perplexity_ratio']:.5f} times"
            " the reference's", highlight=False,
        )  # fmt: skip
    else:
        console.print("the server tells no log-likelihoods of prompts (echo with logprobs)", highlight=False)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.accuracy", description="What a model answers through a server.")
    parser.add_argument("--dataset", choices=(*DATASETS, "parity"), default="mmlu", help="what is asked")
    parser.add_argument("--data", default="", help="local file instead of the hub's: .parquet, .jsonl, .json or .csv")
    parser.add_argument("--num-samples", type=count, default=200, help="questions (default: 200) or texts of parity")
    parser.add_argument("--subjects", default="", help="subjects of MMLU, separated by commas (default: all)")
    parser.add_argument("--seed", type=int, default=42, help="of the choice of questions (default: 42)")
    parser.add_argument("--max-tokens", type=count, default=0, help="of an answer (default: mmlu 32, gsm8k 512)")
    parser.add_argument("--concurrency", type=count, default=8, help="questions or texts at a time (default: 8)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one answer (default: 300)")
    add_target(parser)
    parser.add_argument("--reference", default="", help=f"parity: folder, .gguf or hub id (default: {EMBEDDED})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures and all answers to this file")
    args = parser.parse_args(argv)
    try:
        _check(args)
        found = measure(args)
        if args.json:
            write_json(args.json, found)
    except (DatasetError, ParityError, ModelFilesError, ServerError, TargetError, OSError, ValueError) as error:
        print(f"benchmark.accuracy: {error}", file=sys.stderr)
        return 2
    if args.dataset == "parity":
        show_parity(Console(), found)
        return 0
    show(Console(), found)
    return 1 if found["errors"] else 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what makes no sense together. Raises ValueError and TargetError."""
    check_target(args)
    if args.dataset == "parity" and (args.data or args.subjects):
        raise ValueError("--data and --subjects are of no use to the parity check: its texts are built in")
    if args.dataset != "parity" and args.reference:
        raise ValueError("--reference is the parity check's")
    if args.dataset != "mmlu" and args.subjects:
        raise ValueError("--subjects: only mmlu has subjects")


if __name__ == "__main__":
    sys.exit(main())
