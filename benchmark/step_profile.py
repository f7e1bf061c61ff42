"""Where the time of one step goes on a GPU: kernels by name, and the gaps between them.

    python -m benchmark.step_profile --model 0.6b|14b --batch 1 64 [--context 384] [--prefill 16384] [--json FILE]

Runs the model's runner alone, without the other processes, on hand-made plans.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmark.offline import OPTIONS
from benchmark.shapes import write_shape
from ipc.codec import Ids
from ipc.config import ModelConfig, section
from ipc.messages import Admit, Plan, Sampling
from ipc.options import complete
from model_proc.describe import describe
from model_proc.files.checkpoint import resolve
from model_proc.torch_runner import TorchRunner

STEPS = 20


class Bench:
    """A loaded runner, and plans for it."""

    def __init__(self, size: str, options: dict[str, Any]) -> None:
        folder = Path(tempfile.mkdtemp())
        model = write_shape(size, folder)
        values = {**OPTIONS, "model": str(model), "load_format": "dummy", **options}
        config = section(ModelConfig, complete(values))
        files = describe(resolve(str(model), folder, lambda *_: None, needs_weights=False), config)
        self.runner = TorchRunner(config, files, lambda *_: None)
        self.ready = self.runner.load()
        self._step = 0

    def plan(self, admit: list[Admit], slots: list[int], num_tokens: list[int]) -> Plan:
        self._step += 1
        return Plan(self._step, [], admit, slots, num_tokens, [0] * len(slots), [])

    def admit(self, batch: int, length: int, computed: int, room: int) -> list[Admit]:
        """Sequences of `length` tokens, `computed` of them there already, and blocks for `room` more."""
        per_sequence = -(-(length + room) // self.ready.block_size)
        sampling = Sampling(temperature=0.6, seed=1)
        return [
            Admit(
                slot, slot, Ids("i", [(slot * 7 + index) % 9000 for index in range(length)]), length, computed,
                list(range(slot * per_sequence, (slot + 1) * per_sequence)), sampling,
            )
            for slot in range(batch)
        ]  # fmt: skip

    def run(self, plan: Plan) -> None:
        self.runner.launch(plan)

    def drain(self) -> None:
        while self.runner.in_flight:
            result = self.runner.collect()
            if result.errors:
                raise SystemExit(result.errors[0])

    def decode(self, batch: int, context: int) -> dict[str, Any]:
        """Steps of `batch` sequences with about `context` tokens each."""
        slots, ones = list(range(batch)), [1] * batch
        self.run(self.plan(self.admit(batch, context, context - 1, 4 * STEPS), slots, ones))
        return self._measure(lambda: self.run(self.plan([], slots, ones)), STEPS)

    def prefill(self, tokens: int, length: int) -> dict[str, Any]:
        """Steps of whole prompts of `length` tokens, `tokens` in all."""
        batch = max(1, tokens // length)
        slots = list(range(batch))

        def step() -> None:
            self.run(self.plan(self.admit(batch, length, 0, 0), slots, [length] * batch))

        step()
        return self._measure(step, 3)

    def _measure(self, step: Any, count: int) -> dict[str, Any]:
        for _ in range(3):
            step()
        self.drain()
        torch.cuda.synchronize()
        started = time.perf_counter()
        host = 0.0
        for _ in range(count):
            before = time.perf_counter()
            step()
            host += time.perf_counter() - before
        torch.cuda.synchronize()
        elapsed = (time.perf_counter() - started) / count
        self.drain()
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            for _ in range(3):
                step()
            torch.cuda.synchronize()
        self.drain()
        return {"step_ms": 1e3 * elapsed, "launch_ms": 1e3 * host / count, "kernels": kernels(recorded, 3)}


def kernels(recorded: Any, steps: int) -> list[dict[str, Any]]:
    """Time and launches a step, by kernel, the costliest first."""
    total: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in recorded.events():
        if event.device_type == DeviceType.CUDA:
            entry = total[event.name]
            entry[0] += event.device_time_total / 1e3 / steps
            entry[1] += 1 / steps
    rows = [{"kernel": name[:90], "ms": round(ms, 4), "launches": round(n, 1)} for name, (ms, n) in total.items()]
    return sorted(rows, key=lambda row: -row["ms"])


def show(name: str, figures: dict[str, Any], most: int) -> None:
    busy = sum(row["ms"] for row in figures["kernels"])
    launches = sum(row["launches"] for row in figures["kernels"])
    print(
        f"== {name}: step {figures['step_ms']:.3f} ms, host {figures['launch_ms']:.3f} ms, kernels {busy:.3f} ms"
        f" in {launches:.0f} launches"
    )
    for row in figures["kernels"][:most]:
        print(f"   {row['ms']:8.4f} ms {row['launches']:6.1f} x  {row['kernel'][:70]}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmark.step_profile", description="Where a step's time goes.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 64])
    parser.add_argument("--context", type=int, default=384)
    parser.add_argument("--prefill", type=int, default=16384, help="tokens of a prefill step; 0 measures none")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of each of its prompts")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--json", type=Path)
    parser.add_argument("options", nargs="*", help="options of launch.py, as --name=value, behind --")
    args = parser.parse_args()
    given = dict(option.removeprefix("--").split("=", 1) for option in args.options)
    options: dict[str, Any] = {name.replace("-", "_"): value for name, value in given.items()}
    if args.batch:
        options.setdefault("cudagraph_capture_sizes", [str(size) for size in args.batch])
    bench = Bench(args.model, options)
    results = {}
    for batch in args.batch:
        results[f"decode {batch}"] = bench.decode(batch, args.context)
    if args.prefill:
        results[f"prefill {args.prefill}"] = bench.prefill(args.prefill, args.prompt)
    for name, figures in results.items():
        show(f"{args.model} {name}", figures, args.rows)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
