"""What the device in this machine can do at most: copy, read, and multiply matrices.

    python -m benchmark.roofline [--device cuda|cpu] [--json FILE]

The ceilings that every other figure is a share of. Medians of repeated runs, on random data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

REPEATS = 20


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median time of `work`, after three runs to warm up."""
    times = []
    for repeat in range(REPEATS + 3):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if repeat >= 3:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure(device: torch.device) -> dict[str, float]:
    """TB/s of a copy (bytes read and written) and of a read, TFLOP/s of a bfloat16 product."""
    on_gpu = device.type == "cuda"
    size, side = (1 << 32, 8192) if on_gpu else (1 << 27, 1024)
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    return {
        "copy_tb_s": 2 * size / seconds(lambda: target.copy_(source), device) / 1e12,
        "read_tb_s": size / seconds(lambda: source.sum(), device) / 1e12,
        "matmul_bf16_tflop_s": 2 * side**3 / seconds(lambda: a @ b, device) / 1e12,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmark.roofline", description="The device's ceilings.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    device = torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    figures = {key: round(value, 4) for key, value in measure(device).items()}
    print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"device": name, "torch": torch.__version__, **figures}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
