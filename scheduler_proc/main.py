"""The scheduler's process: messages in, plans and tokens out. With `kv_publisher` the only file here that does I/O."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, closing
from typing import Any

from ipc.config import SchedulerConfig
from ipc.control_messages import Held, Lost, RunnerReady
from ipc.messages import Abort, FlushCache, Inspect, Plan, Prepared, Report, Result, StopHit, Submit, Watch
from ipc.names import EPOCH_MASK, epoch_of, gateway_name, gateway_of, model_name, number_of, room_of, share_of
from ipc.process import FatalError, Process
from ipc.spans import ADMIT, PLAN, RESULT, SEND, SUBMIT
from scheduler_proc import losses
from scheduler_proc.figures import inspect, stats
from scheduler_proc.grammars import Grammars
from scheduler_proc.kv_events import KvEvent
from scheduler_proc.kv_publisher import KvPublisher
from scheduler_proc.life_cycle import Event
from scheduler_proc.live import live_view
from scheduler_proc.policies import PolicyError
from scheduler_proc.scheduler import Scheduler
from scheduler_proc.step_log import StepLog
from scheduler_proc.width import split

STATS_INTERVAL_NS = 100_000_000

log = logging.getLogger(__name__)


def serve(process: Process) -> None:
    """Schedule until shutdown, from when the runner says what there is to schedule."""
    with ExitStack() as stack:
        step_log = open_step_log(process.config, stack)
        publisher = open_publisher(process.config, stack)
        Loop(process, step_log, publisher).run()


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


def open_publisher(config: SchedulerConfig, stack: ExitStack) -> KvPublisher | None:
    return stack.enter_context(closing(KvPublisher(config))) if config.kv_events_endpoint else None


class Loop:
    """The loop of this process: all messages that are there, then as many steps as the runner has room for.

    Without a runner, before it is loaded and while it is lost, there is no scheduler, and what comes waits. (Most of it
    is requests that their gateway has ended, and their Aborts behind them.)
    """

    def __init__(self, process: Process, step_log: StepLog | None, publisher: KvPublisher | None) -> None:
        self._process = process
        self._scheduler: Scheduler | None = None
        self._step_log = step_log
        self._detokenizers = process.names("detokenizer")
        self._sent = [0] * len(self._detokenizers)  # how many Tokens each of their runs has been sent
        self._publisher = publisher
        self._kv_events: list[KvEvent] = []  # of the scheduler, for the publisher
        self._early: list[Any] = []  # messages that wait for a runner
        self._runs = 0  # of the runner: each has a scheduler of its own, which counts from 0
        self._next_stats_ns = 0

    def run(self) -> None:
        process = self._process
        while process.running:
            for message in process.receive(self._seconds_to_deadline()):
                match message:
                    case RunnerReady():
                        self._take_over(message)
                    case Lost():
                        self._on_lost(message, time.monotonic_ns())
                    case _ if self._scheduler is None:
                        self._early.append(message)
                    case _:
                        self._handle(self._scheduler, message, time.monotonic_ns())
            if self._scheduler is not None:
                self._step(self._scheduler)

    def _take_over(self, runner: RunnerReady) -> None:
        """There is a runner, with nothing in it."""
        self._scheduler = scheduler = make_scheduler(runner, self._process.config)
        self._runs += 1
        if self._publisher is not None:
            self._kv_events = scheduler.record_kv_events()
        # No scheduler before this one has given out such numbers: what comes late for one of those is ignored.
        scheduler.grammars = Grammars(first_number=time.monotonic_ns())
        scheduler.log.every_token = scheduler.log.enabled and log.isEnabledFor(logging.DEBUG)
        early, self._early = self._early, []
        for message in early:
            self._handle(scheduler, message, time.monotonic_ns())
        self._publish_stats(scheduler, time.monotonic_ns())
        self._process.ready(num_blocks=runner.num_blocks, block_size=runner.block_size)

    def _step(self, scheduler: Scheduler) -> None:
        process, spans = self._process, self._process.spans
        ranks = [process.peer(model_name(rank)) for rank in range(process.config.tensor_parallel_size)]
        scheduler.expire(time.monotonic_ns())
        for prepare in scheduler.grammars.outgoing:
            ranks[0].send(prepare)  # it samples for all
        scheduler.grammars.outgoing.clear()
        while (plan := scheduler.plan(begun := time.monotonic_ns())) is not None:
            for rank in ranks:
                rank.send(plan)
            process.progress += 1
            if spans.on:
                self._record_plan(plan, begun)
        self._send_out(scheduler)
        self._publish_stats(scheduler, time.monotonic_ns())

    def _send_out(self, scheduler: Scheduler) -> None:
        """What goes to the detokenizer, to those who follow the cache, and to the log."""
        spans, workers = self._process.spans, len(self._detokenizers)
        for tokens in scheduler.outgoing:
            begun = time.monotonic_ns() if spans.on else 0
            for share, part in ({0: tokens} if workers == 1 else split(tokens, workers)).items():
                part.number = self._sent[share]
                self._sent[share] += 1
                self._process.peer(self._detokenizers[share]).send(part)
            if begun:
                spans.add(SEND, begun, tokens.time_ns, len(tokens.rids))
        scheduler.outgoing.clear()
        if self._kv_events and self._publisher is not None:
            self._publisher.publish(self._kv_events)
            self._kv_events.clear()
        for transition in scheduler.log.entries:
            log.log(logging.DEBUG if transition.event is Event.DECODED else logging.INFO, "%s", transition)
        scheduler.log.entries.clear()

    def _on_lost(self, lost: Lost, now: int) -> None:
        """Another process is lost, and has a successor: end the sequences that cannot go on without it."""
        scheduler = self._scheduler
        if lost.process in self._detokenizers:
            self._sent[number_of(lost.process)] = 0
        if scheduler is not None:
            scheduler.fail(losses.ended_by(lost, scheduler.held(), len(self._detokenizers)), losses.refusal(lost), now)
            self._send_out(scheduler)
        held = list(scheduler.held()) if scheduler is not None else losses.submitted(self._early)
        room = room_of(lost.process)
        if room == "model":
            self._scheduler = None
        elif room == "tokenizer":
            for share, name in enumerate(self._detokenizers):
                self._process.peer(name).send(Held(lost.process, lost.epoch, share, self._shared(held, share)))
        elif room == "detokenizer":
            share = number_of(lost.process)
            for name in self._process.names("gateway"):
                self._process.peer(name).send(Held(lost.process, lost.epoch, share, self._shared(held, share)))

    def _shared(self, rids: list[int], share: int) -> list[int]:
        """Those of the sequences that this detokenizer makes the text of."""
        workers = len(self._detokenizers)
        return [rid for rid in rids if share_of(rid, workers) == share]

    def _handle(self, scheduler: Scheduler, message: Any, now: int) -> None:
        """Pass one message of the ring on to the scheduler."""
        spans = self._process.spans
        match message:
            case Result():
                if scheduler.misses_result(message.step):
                    # Whether its tokens were sampled is not known any more.
                    raise RuntimeError(f"the result of the step before {message.step} is missing")
                scheduler.result(message, now)
                if spans.on:
                    spans.add(RESULT, now, message.step, len(message.slots))
                if self._step_log and scheduler.last_step:
                    waiting, running = len(scheduler.waiting), len(scheduler.residents.sequences)
                    self._step_log.add(scheduler.last_step, message, waiting, running)
            case Submit(rid=rid):
                if not self._is_orphan(rid):
                    scheduler.submit(message, now)
                if spans.on:
                    spans.add(SUBMIT, now, rid, len(message.token_ids))
            case Prepared():
                scheduler.prepared(message, now)
            case Abort(rids=rids):
                scheduler.abort(rids, now)
            case StopHit(rids=rids):
                scheduler.stop_hit(rids, now)
            case Inspect(rid=rid, request_id=request_id):
                self._report(rid, {"sequences": inspect(scheduler, request_id, now)})
            case FlushCache(rid=rid):
                self._report(rid, {"blocks": scheduler.flush_cache()})
            case Watch(rid=rid):
                self._report(rid, live_view(scheduler))

    def _is_orphan(self, rid: int) -> bool:
        """Whether the run of the gateway that asked for this is over."""
        return epoch_of(rid) != self._process.run_of(gateway_name(gateway_of(rid))) & EPOCH_MASK

    def _record_plan(self, plan: Plan, begun: int) -> None:
        spans = self._process.spans
        for admit in plan.admit:
            spans.put(ADMIT, begun, begun, admit.rid, plan.step)
        spans.add(PLAN, begun, plan.step, sum(plan.num_tokens))
        spans.step_planned()

    def _report(self, rid: int, body: dict[str, Any]) -> None:
        self._process.peer(gateway_name(gateway_of(rid))).send(Report(rid, body))

    def _publish_stats(self, scheduler: Scheduler, now: int) -> None:
        """Often enough for a dashboard, and always before a wait that may be long."""
        if now >= self._next_stats_ns or not scheduler.planner.in_flight:
            figures = {
                "runs": self._runs,
                "retry_after_s": scheduler.retry_after_s(now),
                "kv_event_batches": self._publisher.num_published if self._publisher else 0,
            }
            self._process.stats = stats(scheduler) | figures
            self._next_stats_ns = now + STATS_INTERVAL_NS

    def _seconds_to_deadline(self) -> float | None:
        deadline = None if self._scheduler is None else self._scheduler.next_deadline_ns
        # A millisecond more: the wait is rounded to milliseconds, and must not end just before the deadline.
        return None if deadline is None else max(0, deadline - time.monotonic_ns()) / 1e9 + 1e-3
