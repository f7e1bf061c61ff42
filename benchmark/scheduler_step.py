"""How long one step costs the scheduler, by the number of running sequences.

    python -m benchmark.scheduler_step [--running 1 32 256 1024] [--steps 300] [--json FILE]

Planning and taking the result, in process: no codec, no sockets, no model. All sequences decode.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import deque
from pathlib import Path

from ipc.codec import Ids
from ipc.config import SchedulerConfig, section
from ipc.control_messages import RunnerReady
from ipc.messages import Output, Plan, Result, Sampling, Submit
from ipc.options import complete
from scheduler_proc.scheduler import Scheduler

BLOCK_SIZE = 16
PROMPT_LEN = 100


def measure(running: int, steps: int) -> list[float]:
    """Microseconds of each of `steps` steps with `running` sequences decoding."""
    length = PROMPT_LEN + steps + 50
    ready = RunnerReady(running * -(-length // BLOCK_SIZE), BLOCK_SIZE, length, running, Ids("i", [0]))
    options = complete({"max_num_batched_tokens": running * PROMPT_LEN, "max_num_queued_reqs": running})
    scheduler = Scheduler(ready, section(SchedulerConfig, options))
    for rid in range(running):
        prompt = Ids("i", [rid + 1] * PROMPT_LEN)
        sampling = Sampling(max_tokens=steps + 50)
        scheduler.submit(Submit(rid, "", 1, prompt, sampling, Output(), 0, "", 0, 0, None), 0)
    plans: deque[Plan] = deque()
    samples = []
    for step in range(steps + 10):
        started = time.perf_counter()
        while (plan := scheduler.plan(0)) is not None:
            plans.append(plan)
        planned = time.perf_counter()
        slots = plans.popleft().slots
        result = Result(step, slots, Ids("i", [5]) * len(slots), None, [], [], 0, 0)
        answered = time.perf_counter()
        scheduler.result(result, 0)
        scheduler.outgoing.clear()
        samples.append((planned - started + time.perf_counter() - answered) * 1e6)
    return samples[10:]  # the first ones are prefills


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmark.scheduler_step", description="The cost of a step in the scheduler."
    )
    parser.add_argument("--running", type=int, nargs="+", default=[1, 32, 256, 1024])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    rows = []
    for running in args.running:
        samples = measure(running, args.steps)
        rows.append({"running": running, "us_per_step": statistics.mean(samples), "median": statistics.median(samples)})
        print(f"{running:5} running: {rows[-1]['us_per_step']:8.1f} us a step (median {rows[-1]['median']:.1f})")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
