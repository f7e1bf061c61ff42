"""The model process of a ring, with PyTorch's profiler on for some of its steps; `benchmark.idle` starts it.

    python -m benchmark.profiled_model

Where the profile goes, and of which steps, is in the environment, since the supervisor starts this as it starts the
real one: PROFILE_FILE, PROFILE_FROM and PROFILE_STEPS.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ipc.config import ModelConfig
from ipc.control_messages import RunnerReady
from ipc.messages import Plan, Prepare, Prepared, Result
from ipc.process import Process, run
from model_proc.main import execute, open_runner


class ProfiledRunner:
    """A Runner that notes what the GPU does in some of its decode steps."""

    def __init__(self, runner: Any, file: Path, first: int, steps: int) -> None:
        self._runner = runner
        self._file = file
        self._left = {first: "start", first + steps: "stop"}
        self._launched = 0
        self._profile: Any = None

    def load(self) -> RunnerReady:
        return self._runner.load()

    def launch(self, plan: Plan) -> None:
        # Prefills do not count: the steps in question are those that decode and nothing else.
        if all(count == 1 for count in plan.num_tokens):
            action = self._left.pop(self._launched, "")
            self._launched += 1
            if action == "start":
                self._profile = profile(activities=[ProfilerActivity.CUDA])
                self._profile.__enter__()
            elif action == "stop":
                torch.cuda.synchronize()
                self._profile.__exit__(None, None, None)
                self._write()
        self._runner.launch(plan)

    @property
    def in_flight(self) -> int:
        return self._runner.in_flight

    @property
    def next_done_ns(self) -> int | None:
        return self._runner.next_done_ns

    def is_done(self) -> bool:
        return self._runner.is_done()

    def collect(self) -> Result:
        return self._runner.collect()

    def reset(self) -> None:
        self._runner.reset()

    def prepare(self, message: Prepare, answer: Callable[[Prepared], None]) -> None:
        self._runner.prepare(message, answer)

    def _write(self) -> None:
        rows = [
            [event.name, event.time_range.start, event.time_range.end]
            for event in self._profile.events()
            if event.device_type == DeviceType.CUDA
        ]
        self._file.write_text(json.dumps(sorted(rows, key=lambda row: row[1])))


def serve(process: Process) -> None:
    first, steps = int(os.environ["PROFILE_FROM"]), int(os.environ["PROFILE_STEPS"])
    runner = ProfiledRunner(open_runner(process), Path(os.environ["PROFILE_FILE"]), first, steps)
    ready = runner.load()
    process.peer("scheduler").send(ready)
    process.ready()
    execute(process, runner, ready)


if __name__ == "__main__":
    run("model", ModelConfig, serve)
