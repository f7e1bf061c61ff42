"""How long one step costs the scheduler, by the number of running sequences.

    python -m benchmark.scheduler_step [--running 1 32 256 1024] [--steps 300] [--kv-events] [--json FILE]

Planning and taking the result, in process: no codec, no sockets, no model. All sequences decode. With --kv-events
the same is measured again with somebody who follows the cache: what is noted of each step, and made a payload of.
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
from scheduler_proc.kv_events import as_map, pack_batch
from scheduler_proc.scheduler import Scheduler

BLOCK_SIZE = 16
PROMPT_LEN = 100


def measure(running: int, steps: int, kv_events: bool = False) -> list[float]:
    """Microseconds of each of `steps` steps with `running` sequences decoding."""
    length = PROMPT_LEN + steps + 50
    ready = RunnerReady(running * -(-length // BLOCK_SIZE), BLOCK_SIZE, length, running, Ids("i", [0]))
    options = complete({"max_num_batched_tokens": running * PROMPT_LEN, "max_num_queued_reqs": running})
    scheduler = Scheduler(ready, section(SchedulerConfig, options))
    events = scheduler.record_kv_events() if kv_events else []
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
        if events:
            pack_batch([as_map(event) for event in events], time.time())
            events.clear()
        samples.append((planned - started + time.perf_counter() - answered) * 1e6)
    return samples[10:]  # the first ones are prefills


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmark.scheduler_step", description="The cost of a step in the scheduler."
    )
    parser.add_argument("--running", type=int, nargs="+", default=[1, 32, 256, 1024])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kv-events", action="store_true", help="also with what KV events cost")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    rows = []
    for running in args.running:
        samples = measure(running, args.steps)
        row = {"running": running, "us_per_step": statistics.mean(samples), "median": statistics.median(samples)}
        shown = f"{running:5} running: {row['us_per_step']:8.1f} us a step (median {row['median']:.1f})"
        if args.kv_events:
            row["us_with_kv_events"] = statistics.mean(measure(running, args.steps, kv_events=True))
            shown += f", with KV events {row['us_with_kv_events']:.1f}"
        rows.append(row)
        print(shown)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
