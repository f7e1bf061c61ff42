"""How long the GPU stands still between decode steps, with the whole ring around it.

    python -m benchmark.idle --model DIR|0.6b|14b [--work decode64] [--steps 200] [--json FILE] [-- OPTIONS]

The real five processes run the work; in the model process PyTorch's profiler notes when each kernel and copy began and
ended on the device. A step ends with the copy of its sampled ids to the host. Whatever lies between that and the next
thing that the device does is a gap between steps; the other gaps are inside of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmark.offline import json_value, make_work, measure
from supervision.child import PACKAGES

STEP_END = "Memcpy DtoH"

Row = tuple[str, float, float]


def gaps(rows: list[Row]) -> dict[str, Any]:
    """Shares of the time from the first step's end to the last one's: between steps, and inside of them.

    `rows` are (name, start, end) in µs, by start; kernels may overlap. Two copies in a row are one end of a step.
    """
    ends = [index for index, (name, _, _) in enumerate(rows) if name.startswith(STEP_END)]
    rows = rows[ends[0] : ends[-1] + 1]
    between = inside = 0.0
    steps = 0
    busy_until = rows[0][2]
    before = rows[0][0]
    for name, start, end in rows[1:]:
        gap = max(0.0, start - busy_until)
        if before.startswith(STEP_END) and not name.startswith(STEP_END):
            between += gap
            steps += 1
        else:
            inside += gap
        busy_until = max(busy_until, end)
        before = name
    span = busy_until - rows[0][2]
    return {
        "steps": steps,
        "step_ms": round(span / steps / 1e3, 4),
        "idle_between_steps": round(between / span, 5),
        "idle_inside_steps": round(inside / span, 5),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmark.idle", description="How long the GPU stands still between steps.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", default="decode64")
    parser.add_argument("--first", type=int, default=100, help="decode steps before the profile begins")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path, help="add a row to the list in this file")
    parser.add_argument("options", nargs="*", help="options of launch.py, as --name=value, behind --")
    args = parser.parse_args()
    given = dict(option.removeprefix("--").split("=", 1) for option in args.options)
    options = {name.replace("-", "_"): json_value(value) for name, value in given.items()}
    PACKAGES["model"] = "benchmark.profiled_model"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        os.environ |= {"PROFILE_FILE": str(file), "PROFILE_FROM": str(args.first), "PROFILE_STEPS": str(args.steps)}
        measure(args.model, [make_work(args.work)], 1, options)
        rows = [(name, start, end) for name, start, end in json.loads(file.read_text())]
    figures = {"size": args.model, "work": args.work, "depth": options.get("pipeline_depth", 2), **gaps(rows)}
    print(json.dumps(figures))
    if args.json:
        before = json.loads(args.json.read_text()) if args.json.is_file() else []
        args.json.write_text(json.dumps([*before, figures], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
