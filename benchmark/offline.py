"""Throughput of whole workloads through `quintet.LLM`: the real processes, token ids in and out.

    python -m benchmark.offline --model DIR|0.6b|14b --work single|decode64|prefill|mix256|FILE.json [--json OUT]
        [--repeats N] [-- OPTIONS OF launch.py]

A shape (0.6b, 14b: Qwen3's) runs with random weights. A file holds {"prompts": [[ids]], "max_tokens": [n]}. Every
repeat has a prefix cache of its own; the best one counts. With --json, a row for each work is added to the list in OUT.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmark.shapes import SHAPES, write_shape
from quintet import LLM, SamplingParams

MAX_ID = 10000
OPTIONS: dict[str, Any] = {"max_model_len": 4096, "max_num_seqs": 256, "max_num_batched_tokens": 16384}
"""What the works run with unless told otherwise; max_num_seqs and max_model_len are those of the published peers."""

LIMITS = {
    ("0.6b", "single"): 3590, ("0.6b", "decode64"): 68300, ("0.6b", "prefill"): 712500, ("0.6b", "mix256"): 36224,
    ("14b", "single"): 153, ("14b", "decode64"): 8558, ("14b", "prefill"): 29160, ("14b", "mix256"): 8310,
}  # fmt: skip
"""Tokens a second (in for prefill, else out) that the memory and the matrix units of one H200 allow."""


@dataclass(slots=True)
class Work:
    """Prompts of token ids, and how many tokens each is to be answered with."""

    name: str
    prompts: list[list[int]]
    max_tokens: list[int]


def make_work(name: str) -> Work:
    """A workload by its name, or from a file."""
    if name.endswith(".json"):
        content = json.loads(Path(name).read_text())
        return Work(Path(name).stem, content["prompts"], content["max_tokens"])

    def prompt(rng: Random, length: int) -> list[int]:
        return [rng.randint(0, MAX_ID) for _ in range(length)]

    if name == "single":
        return Work(name, [prompt(Random(1), 128)], [512])
    if name == "decode64":
        rng = Random(3)
        return Work(name, [prompt(rng, 128) for _ in range(64)], [512] * 64)
    if name == "prefill":
        rng = Random(2)
        return Work(name, [prompt(rng, 2048) for _ in range(64)], [1] * 64)
    if name == "mix256":
        rng = Random(0)
        prompts = [[rng.randint(0, MAX_ID) for _ in range(rng.randint(100, 1024))] for _ in range(256)]
        return Work(name, prompts, [rng.randint(100, 1024) for _ in range(256)])
    raise SystemExit(f"--work: {name!r} is none of single, decode64, prefill, mix256, FILE.json")


def run(llm: LLM, work: Work, salt: str) -> float:
    """Seconds that the work takes. Stops when a request did not get all its tokens."""
    sampling = [SamplingParams(temperature=0.6, max_tokens=count, ignore_eos=True, seed=1) for count in work.max_tokens]
    started = time.perf_counter()
    results = llm.generate(work.prompts, sampling, show_progress=False, cache_salt=salt)
    seconds = time.perf_counter() - started
    for result, count in zip(results, work.max_tokens, strict=True):
        if len(result.token_ids) != count or result.cached_tokens:
            raise SystemExit(f"a request got {len(result.token_ids)} tokens of {count}, {result.cached_tokens} cached")
    return seconds


def measure(model: str, works: list[Work], repeats: int, options: dict[str, Any]) -> tuple[list[dict[str, Any]], float]:
    """A row for each work, and the seconds from the start to the first token."""
    with tempfile.TemporaryDirectory() as folder:
        if model in SHAPES:
            options = {"load_format": "dummy", **options, "model": str(write_shape(model, Path(folder) / model))}
        else:
            options = {**options, "model": model}
        options = {**OPTIONS, **options}
        started = time.perf_counter()
        rows = []
        with LLM(**options) as llm:
            llm.generate([[1, 2, 3]], SamplingParams(max_tokens=1, ignore_eos=True), show_progress=False)
            startup = time.perf_counter() - started
            for work in works:
                warm_up = Work("warm-up", work.prompts, [min(count, 8) for count in work.max_tokens])
                run(llm, warm_up, "warm-up " + work.name)
                times = [run(llm, work, f"{work.name} {repeat}") for repeat in range(repeats)]
                rows.append(row(model, work, times, options))
    return rows, startup


def row(model: str, work: Work, times: list[float], options: dict[str, Any]) -> dict[str, Any]:
    seconds = min(times)
    tokens_in, tokens_out = sum(map(len, work.prompts)), sum(work.max_tokens)
    limit = LIMITS.get((model, work.name))
    rate = (tokens_in if work.name == "prefill" else tokens_out) / seconds
    return {
        "engine": "quintet",
        "size": model if model in SHAPES else Path(model).name,
        "work": work.name,
        "seconds": round(seconds, 4),
        "all_seconds": [round(value, 4) for value in times],
        "out_tok_s": round(tokens_out / seconds, 1),
        "in_tok_s": round(tokens_in / seconds, 1),
        "limit_ratio": round(rate / limit, 4) if limit else None,
        "depth": options.get("pipeline_depth", 2),
        "options": {name: value for name, value in options.items() if name != "model"},
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
    }


def commit() -> str:
    """The commit that is measured, "" outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def show(rows: list[dict[str, Any]], startup: float) -> None:
    table = Table(title=f"first token {startup:.1f} s after the start", title_justify="left")
    for column in ("size", "work", "seconds", "out tok/s", "in tok/s", "of the limit"):
        table.add_column(column, justify="right")
    for line in rows:
        share = f"{line['limit_ratio']:.0%}" if line["limit_ratio"] else "-"
        table.add_row(
            line["size"], line["work"], f"{line['seconds']:.3f}", f"{line['out_tok_s']:.0f}",
            f"{line['in_tok_s']:.0f}", share,
        )  # fmt: skip
    Console(width=100).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmark.offline", description="Throughput through the offline API.")
    parser.add_argument("--model", required=True, help=f"a model, or one of {', '.join(SHAPES)} with random weights")
    parser.add_argument("--work", nargs="+", default=["single", "decode64", "prefill", "mix256"])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="add the rows to the list in this file")
    parser.add_argument("options", nargs="*", help="options of launch.py, as --name=value, behind --")
    args = parser.parse_args()
    given = dict(option.removeprefix("--").split("=", 1) for option in args.options)
    options = {name.replace("-", "_"): json_value(value) for name, value in given.items()}
    rows, startup = measure(args.model, [make_work(name) for name in args.work], args.repeats, options)
    show(rows, startup)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(args.json.read_text()) if args.json.is_file() else []
        args.json.write_text(json.dumps(before + rows, indent=1) + "\n")
    return 0


def json_value(text: str) -> Any:
    """A number, true or false as such; anything else is a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    sys.exit(main())
