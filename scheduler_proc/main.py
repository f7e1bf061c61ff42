"""The scheduler's process: messages in, plans and tokens out. The only file of this room that does I/O."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from typing import Any

from ipc.config import SchedulerConfig
from ipc.messages import (
    Abort,
    FlushCache,
    Inspect,
    Report,
    Result,
    RunnerReady,
    StopHit,
    Submit,
    Watch,
    gateway_name,
    gateway_of,
    model_name,
)
from ipc.process import FatalError, Process
from scheduler_proc.live import live_view
from scheduler_proc.policies import PolicyError
from scheduler_proc.scheduler import Scheduler
from scheduler_proc.step_log import StepLog

STATS_INTERVAL_NS = 100_000_000

log = logging.getLogger(__name__)


def serve(process: Process) -> None:
    """Wait for the runner, then schedule until shutdown."""
    with ExitStack() as stack:
        step_log = open_step_log(process.config, stack)
        runner = wait_for_runner(process)
        if runner is not None:
            Loop(process, make_scheduler(runner, process.config), step_log).run()


def wait_for_runner(process: Process) -> RunnerReady | None:
    """What there is to schedule; None when the ring ends before the model is loaded."""
    while process.running:
        for message in process.receive():
            if type(message) is RunnerReady:
                return message
    return None


def make_scheduler(runner: RunnerReady, config: SchedulerConfig) -> Scheduler:
    try:
        return Scheduler(runner, config)
    except PolicyError as error:
        raise FatalError(str(error)) from error


def open_step_log(config: SchedulerConfig, stack: ExitStack) -> StepLog | None:
    if not config.step_log:
        return None
    try:
        return StepLog(stack.enter_context(open(config.step_log, "w", encoding="utf-8", buffering=1 << 16)))
    except OSError as error:
        raise FatalError(f"--step-log {config.step_log}: {error.strerror}") from error


class Loop:
    """The loop of this process: all messages that are there, then as many steps as the runner has room for."""

    def __init__(self, process: Process, scheduler: Scheduler, step_log: StepLog | None) -> None:
        self._process = process
        self._scheduler = scheduler
        self._step_log = step_log
        self._next_stats_ns = 0

    def run(self) -> None:
        process, scheduler = self._process, self._scheduler
        ranks = [process.peer(model_name(rank)) for rank in range(process.config.tensor_parallel_size)]
        detokenizer = process.peer("detokenizer")
        self._publish_stats(time.monotonic_ns())
        process.ready(num_blocks=scheduler.runner.num_blocks, block_size=scheduler.runner.block_size)
        while process.running:
            for message in process.receive(self._seconds_to_deadline()):
                self._handle(message, time.monotonic_ns())
            scheduler.expire(time.monotonic_ns())
            while (plan := scheduler.plan(time.monotonic_ns())) is not None:
                for rank in ranks:
                    rank.send(plan)
                process.progress += 1
            for tokens in scheduler.outgoing:
                detokenizer.send(tokens)
            scheduler.outgoing.clear()
            for transition in scheduler.log.entries:
                log.info("%s", transition)
            scheduler.log.entries.clear()
            self._publish_stats(time.monotonic_ns())

    def _handle(self, message: Any, now: int) -> None:
        """Pass one message of the ring on to the scheduler."""
        scheduler = self._scheduler
        match message:
            case Result():
                scheduler.result(message, now)
                if self._step_log and scheduler.last_step:
                    waiting, running = len(scheduler.waiting), len(scheduler.residents.sequences)
                    self._step_log.add(scheduler.last_step, message, waiting, running)
            case Submit():
                scheduler.submit(message, now)
            case Abort(rids=rids):
                scheduler.abort(rids, now)
            case StopHit(rids=rids):
                scheduler.stop_hit(rids, now)
            case Inspect(rid=rid, request_id=request_id):
                self._report(rid, {"sequences": scheduler.inspect(request_id, now)})
            case FlushCache(rid=rid):
                self._report(rid, {"blocks": scheduler.flush_cache()})
            case Watch(rid=rid):
                self._report(rid, live_view(scheduler))

    def _report(self, rid: int, body: dict[str, Any]) -> None:
        self._process.peer(gateway_name(gateway_of(rid))).send(Report(rid, body))

    def _publish_stats(self, now: int) -> None:
        """Often enough for a dashboard, and always before a wait that may be long."""
        if now >= self._next_stats_ns or not self._scheduler.planner.in_flight:
            self._process.stats = self._scheduler.stats()
            self._next_stats_ns = now + STATS_INTERVAL_NS

    def _seconds_to_deadline(self) -> float | None:
        deadline = self._scheduler.next_deadline_ns
        # A millisecond more: the wait is rounded to milliseconds, and must not end just before the deadline.
        return None if deadline is None else max(0, deadline - time.monotonic_ns()) / 1e9 + 1e-3
