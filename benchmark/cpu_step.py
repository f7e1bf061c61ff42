"""The CPU time of the embedded model's steps, beside llama.cpp's on the same GGUF file.

    python -m benchmark.cpu_step [--threads 1] [--llama-python PYTHON] [--json FILE] [-- OPTIONS OF launch.py]

CPU time, not the clock: on a machine with other work the clock says how much of the machine one got. With one thread,
nothing waits for anything, and both sides are what they would take on an idle core. --llama-python is the interpreter
of an environment with llama-cpp-python, which is asked in turns with our runner.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmark.report import write_json
from ipc.codec import Ids
from ipc.config import ModelConfig, section
from ipc.messages import Admit, Plan, Sampling
from ipc.options import complete
from model_proc.describe import describe
from model_proc.files.checkpoint import default_cache_dir, find_embedded_gguf, resolve
from model_proc.torch_runner import TorchRunner

MODEL = "smollm2-135m"
PROMPT = 140  # tokens of the prefill
BATCHES = (1, 8, 16)
CACHED = 170  # tokens of each decoding sequence: a prompt and half of its answer
STEPS = 20
PEER = Path(__file__).resolve().with_name("llama_step.py")


class Bench:
    """A runner on its own, and hand-made plans for it."""

    def __init__(self, threads: int, options: dict[str, Any]) -> None:
        values = {"model": MODEL, "device": "cpu", "num_threads": threads, "num_gpu_blocks_override": 600, **options}
        config = section(ModelConfig, complete(values))
        self.runner = TorchRunner(
            config, describe(resolve(MODEL, default_cache_dir(), lambda *_: None), config), _silent
        )
        self._block_size = self.runner.load().block_size
        gc.collect()
        gc.freeze()  # as the model's process does
        self._step = 0
        self._random = random.Random(1)

    def prefill(self) -> dict[str, float]:
        return _summary([self._run(self._admits(1, PROMPT, 0), [PROMPT]) for _ in range(4)][1:])

    def decode(self, batch: int) -> dict[str, float]:
        ones = [1] * batch
        self._run(self._admits(batch, CACHED, CACHED - 1), ones)
        return _summary([self._run([], ones) for _ in range(STEPS)][2:])

    def _admits(self, batch: int, length: int, computed: int) -> list[Admit]:
        blocks = -(-(length + STEPS + 1) // self._block_size)
        return [
            Admit(
                slot, slot, Ids("i", [self._random.randrange(1000, 10000) for _ in range(length)]), length, computed,
                list(range(slot * blocks, (slot + 1) * blocks)), Sampling(temperature=0.0),
            )
            for slot in range(batch)
        ]  # fmt: skip

    def _run(self, admits: list[Admit], num_tokens: list[int]) -> float:
        """CPU seconds of one step, sampling included."""
        self._step += 1
        slots = list(range(len(num_tokens)))
        plan = Plan(self._step, [], admits, slots, num_tokens, [0] * len(slots), [])
        started = time.process_time()
        self.runner.launch(plan)
        result = self.runner.collect()
        seconds = time.process_time() - started
        if result.errors:
            raise SystemExit(result.errors[0])
        return seconds


def _silent(phase: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def _summary(times: list[float]) -> dict[str, float]:
    return {"median_ms": 1e3 * statistics.median(times), "least_ms": 1e3 * min(times)}


def ask_llama(python: str, threads: int) -> dict[str, Any]:
    """The same of llama.cpp, in its own interpreter."""
    arguments = [find_embedded_gguf(), threads, PROMPT, " ".join(map(str, BATCHES)), CACHED, STEPS]
    done = subprocess.run([python, str(PEER), *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{python} {PEER.name} failed: {done.stderr[-1000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(threads: int, llama_python: str, options: dict[str, Any]) -> dict[str, Any]:
    bench = Bench(threads, options)
    ours = {"prefill": bench.prefill(), "decode": {str(batch): bench.decode(batch) for batch in BATCHES}}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "load": os.getloadavg(),
        "threads": threads,
        "options": options,
        "prefill_tokens": PROMPT,
        "cached_tokens": CACHED,
        "quintet": ours,
        "llama.cpp": ask_llama(llama_python, threads) if llama_python else None,
    }


def show(figures: dict[str, Any]) -> None:
    table = Table(title=f"CPU milliseconds of a step, {figures['threads']} threads", title_justify="left")
    for column in ("", "quintet", "llama.cpp", "ratio"):
        table.add_column(column, justify="right")
    peer = figures["llama.cpp"]
    for name in ("prefill", *figures["quintet"]["decode"]):
        mine, theirs = (
            (side["prefill"] if name == "prefill" else side["decode"][name])["median_ms"] if side else 0.0
            for side in (figures["quintet"], peer)
        )
        label = f"prefill of {PROMPT}" if name == "prefill" else f"decode of {name}"
        table.add_row(label, f"{mine:.2f}", f"{theirs:.2f}" if peer else "", f"{theirs / mine:.2f}" if peer else "")
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmark.cpu_step", description="CPU time of the embedded model's steps.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--llama-python", default="", help="the interpreter of an environment with llama-cpp-python")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("options", nargs="*", help="options of launch.py, as --name=value, behind --")
    args = parser.parse_args()
    given = dict(option.removeprefix("--").split("=", 1) for option in args.options)
    figures = measure(args.threads, args.llama_python, {name.replace("-", "_"): value for name, value in given.items()})
    show(figures)
    if args.json:
        write_json(args.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
