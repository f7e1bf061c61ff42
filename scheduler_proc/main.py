"""The scheduler's process: messages in, plans and tokens out. The only file of this room that does I/O."""

from __future__ import annotations

import time
from typing import Any

from ipc.messages import Abort, Result, RunnerReady, StopHit, Submit
from ipc.process import Process
from scheduler_proc.scheduler import Scheduler


def serve(process: Process) -> None:
    """Wait for the runner, then schedule until shutdown."""
    scheduler: Scheduler | None = None
    model, detokenizer = process.peer("model"), process.peer("detokenizer")
    while process.running:
        for message in process.receive():
            if type(message) is RunnerReady:
                scheduler = Scheduler(message, process.config)
                process.ready(num_blocks=message.num_blocks, block_size=message.block_size)
            elif scheduler is not None:
                handle(scheduler, message)
        if scheduler is None:
            continue
        while (plan := scheduler.plan(time.monotonic_ns())) is not None:
            model.send(plan)
            process.progress += 1
        for tokens in scheduler.outgoing:
            detokenizer.send(tokens)
        scheduler.outgoing.clear()
        process.stats = scheduler.stats()


def handle(scheduler: Scheduler, message: Any) -> None:
    """Pass one message of the ring on to the scheduler."""
    now = time.monotonic_ns()
    match message:
        case Result():
            scheduler.result(message, now)
        case Submit():
            scheduler.submit(message, now)
        case Abort(rids=rids):
            scheduler.abort(rids, now)
        case StopHit(rids=rids):
            scheduler.stop_hit(rids, now)
