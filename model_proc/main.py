"""The model's process: plans in, results out."""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipc import faults
from ipc.control_messages import Loading, Lost, RunnerReady
from ipc.messages import Plan, Prepare, Prepared
from ipc.names import number_of
from ipc.process import FatalError, Process
from ipc.spans import COLLECT, LAUNCH, STEP
from model_proc.describe import describe
from model_proc.files.checkpoint import default_cache_dir, resolve
from model_proc.files.model_files import ModelFilesError
from model_proc.mock import MockRunner, describe_mock
from model_proc.runner import Runner
from model_proc.step_times import StepTimes

POLL_NS = 20_000  # how often a step is looked at that does not say when it will be done
SLACK_NS = 50_000  # how late Linux wakes a sleeper: the rest of the way to the end of a step is not slept
STATS_INTERVAL_NS = 100_000_000


def serve(process: Process) -> None:
    """Find the model, say which one it is, load it, and execute plans until shutdown."""
    gc.disable()  # imports and weights only allocate: collecting in between costs about a second of the start
    try:
        runner = open_runner(process)
        ready = runner.load()
        check_capacity(ready)
    except ModelFilesError as error:
        raise FatalError(str(error)) from error
    if number_of(process.name) == 0:
        process.peer("scheduler").send(ready)
    gc.enable()
    process.ready()
    execute(process, runner, ready)


def execute(
    process: Process,
    runner: Runner,
    ready: RunnerReady,
    clock: Callable[[], int] = time.monotonic_ns,
) -> None:
    """Launch plans as they come and send each result when its step is done, until shutdown.

    The first rank alone answers: what the others have to say is in their sums. When the scheduler is lost, its
    sequences are forgotten, and its successor is told what there is to schedule.
    """
    scheduler = process.peer("scheduler")
    answers = number_of(process.name) == 0
    spans = process.spans
    compiled = process.outbox(process.name)  # for the thread that compiles grammars: the scheduler may change meanwhile
    plans: deque[Plan] = deque()
    next_step = 0
    times = StepTimes()
    next_stats_ns = 0
    while process.running:
        if not plans:
            for message in wait(process, runner, clock):
                if type(message) is Plan:
                    plans.append(message)
                elif type(message) is Prepare:
                    runner.prepare(message, compiled.send)
                elif type(message) is Prepared:
                    scheduler.send(message)
                elif type(message) is Lost and message.process == "scheduler":
                    next_step = 0
                    runner.reset()
                    if answers:
                        scheduler.send(ready)
        if plans:
            plan = plans.popleft()
            if faults.armed:
                faults.at("step")
            if plan.step != next_step:
                # The scheduler believes in slots and tokens that are not there: only a new start helps.
                raise RuntimeError(f"the plan of step {next_step} is missing, that of {plan.step} came instead")
            next_step += 1
            begun = time.monotonic_ns() if spans.on else 0
            runner.launch(plan)
            process.progress += 1
            if begun:
                spans.add(LAUNCH, begun, plan.step, len(plan.slots))
        while runner.in_flight and runner.is_done():
            begun = time.monotonic_ns() if spans.on else 0
            result = runner.collect()
            if answers:
                scheduler.send(result)
            if begun:
                spans.put(STEP, result.started_ns, result.finished_ns, result.step, len(result.slots))
                spans.add(COLLECT, begun, result.step)
            times.add(result)
            process.progress += 1
        if not runner.in_flight or clock() >= next_stats_ns:
            process.stats = times.export()
            next_stats_ns = clock() + STATS_INTERVAL_NS


def wait(process: Process, runner: Runner, clock: Callable[[], int]) -> list[Any]:
    """Messages that have arrived. Waits for one as long as no step is due: for ever when none is in flight."""
    if not runner.in_flight:
        return process.receive()
    due = runner.next_done_ns
    left = POLL_NS if due is None else max(0, due - SLACK_NS - clock())
    return process.receive(left / 1e9, working=True)


def check_capacity(ready: RunnerReady) -> None:
    """Raise FatalError unless the KV cache can hold the longest sequence that the server promises to take."""
    capacity = ready.num_blocks * ready.block_size
    if capacity < ready.max_model_len:
        raise FatalError(
            f"the KV cache has room for {capacity} tokens, less than one sequence of {ready.max_model_len}: lower "
            "--max-model-len, or give more with --kv-cache-memory-bytes or --num-gpu-blocks-override"
        )


def open_runner(process: Process) -> Runner:
    """The runner that `--model` asks for, announced but not loaded. The mock's process never imports torch."""
    supervisor, config = process.peer("supervisor"), process.config
    rank, size = number_of(process.name), config.tensor_parallel_size
    if config.model == "mock":
        files = describe_mock(config)
        supervisor.send(files)
        return MockRunner(config, files)

    def loading(phase: str, done: int, total: int) -> None:
        if rank == 0:
            supervisor.send(Loading(phase, done, total))

    needs_weights = config.load_format != "dummy"
    files = describe(resolve(config.model, default_cache_dir(), loading, needs_weights), config)
    if rank == 0:
        supervisor.send(files)
    # The others go on with the tokenizer while this import takes its seconds.
    loading("import torch", 0, 0)
    from model_proc.ranks import Seat
    from model_proc.torch_profile import TorchProfile
    from model_proc.torch_runner import TorchRunner

    process.profiled.detail = TorchProfile(process.name)
    return TorchRunner(
        config, files, loading, Seat(rank, size, Path(process.ring.run_dir) / f"ranks.{process.run_of('model')}")
    )
