"""The gateway's process: one event loop that joins the HTTP port and the ring."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvloop

from gateway.activity import Activity
from gateway.app import build_app
from gateway.auth import is_public, load_keys
from gateway.company import Company
from gateway.controls import Controls
from gateway.engine import Engine
from gateway.errors import ApiError
from gateway.metrics.collect import collect
from gateway.profiling.session import Profiler, Wanted
from gateway.ring import RingView
from gateway.schemas import MAX_TIMEOUT_MS
from gateway.server import Port
from gateway.tls import server_context
from gateway.tracing import RequestTracer
from ipc import faults
from ipc import log as process_log
from ipc.control_messages import (
    Beat,
    Counted,
    Drain,
    Drained,
    Held,
    Loading,
    Lost,
    ModelFiles,
    RingState,
    SetLogLevel,
    Shutdown,
    SpanChunk,
    StartProfile,
    StepLimit,
    StopProfile,
)
from ipc.messages import AskGateway, GatewayReport, LookUp, Report, Text
from ipc.names import first_rid, number_of
from ipc.process import FatalError, Process
from ipc.sockets import AsyncInbox
from ipc.spans import TEXT

MAX_BODY_MIB = 48  # a prompt travels in one message of the ring, and that may have 64 MiB
STATS_INTERVAL_S = 0.2
TICK_S = 1.0  # well below the least --execute-timeout
PROFILE_GRACE_S = 4.0  # for a profile that is running when the server ends
TRACER_GRACE_S = 2.0  # for the last spans to reach their collector
CUT_GRACE_S = 2.0  # for the last words of requests that are cut

log = logging.getLogger(__name__)


def serve(process: Process) -> None:
    """Serve until shutdown. Raises FatalError when the port cannot be had."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Gateway(process).run())


class Gateway:
    """The gateway's parts, and the life cycle that the supervisor's messages drive."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._ring = RingView(process.config.served_model_name)
        names = process.names("tokenizer")
        tokenizers = [process.peer(name) for name in names]
        self._engine = Engine(
            lambda index, message: tokenizers[index].send(message),
            process.peer("scheduler").send,
            self._ring.admit,
            first_rid(number_of(process.name), process.ring.epoch),
            tuple(process.run_of(name) for name in names),
            len(process.names("detokenizer")),
            process.config.max_num_queued_reqs + process.config.max_num_seqs,
            lambda: self._ring.stats("scheduler").get("retry_after_s", 1.0),
        )
        others = [name for name in process.names("gateway") if name != process.name]
        self._company = Company(process.name, others, self._send, self._engine.take_rids, self._ring.need)
        self._next_stats = 0.0
        self._profile_file: str = process.config.profile
        self._engine.observer.spans = process.spans
        self._profiler = Profiler(process, self._ring, self._engine.observer, process.config.profile_dir)
        self._stopped = asyncio.Event()
        self._drain: asyncio.Task[None] | None = None

    async def run(self) -> None:
        config = self._process.config
        if config.max_body_mib > MAX_BODY_MIB:
            raise FatalError(f"--max-body-mib is {config.max_body_mib}, but a body may have {MAX_BODY_MIB} at most")
        if not config.request_timeout <= MAX_TIMEOUT_MS / 1000:
            raise FatalError(
                f"--request-timeout is {config.request_timeout:g} s, but it may be {MAX_TIMEOUT_MS // 1000} s at most;"
                " 0 is no limit"
            )
        keys = load_keys(config.api_key, config.api_key_file)
        if config.otlp_traces_endpoint:
            self._engine.observer.tracer = RequestTracer(config.otlp_traces_endpoint)
        controls = Controls(self._ring, self._profiler, self._send, self._company)
        tls = server_context(config.ssl_certfile, config.ssl_keyfile, config.ssl_ca_certs)
        port = Port(build_app(self._engine, self._ring, config, keys, controls, self._company), config.root_path)
        if config.uds:
            url = await port.open_unix(config.uds, tls)
        else:
            url = await port.open(config.host, config.port, tls, shared=config.gateway_workers > 1)
        if is_public(config.host) and not config.uds and not keys and self._company.is_first:
            log.warning(
                "%s can be reached from other machines, and everybody who reaches it may use it:"
                " set --api-key-file or --api-key, or listen on 127.0.0.1",
                config.host,
            )
        inbox = AsyncInbox(self._process.inbox, asyncio.get_running_loop(), self._on_message)
        self._process.ready(url=url)
        activity = asyncio.create_task(self._log_activity())
        ticker = asyncio.get_running_loop().create_task(self._tick())
        await self._stopped.wait()
        activity.cancel()
        ticker.cancel()
        self._engine.fail_all(ApiError(503, "the server is shutting down"))
        await port.close()
        if self._engine.observer.tracer is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.to_thread(self._engine.observer.tracer.close), TRACER_GRACE_S)
        inbox.close()

    async def _tick(self) -> None:
        """Show the supervisor that the loop turns, also when nothing is to be done."""
        while True:
            self._process.progress += 1
            await asyncio.sleep(TICK_S)

    def _on_message(self, message: Any) -> None:
        """Take a message in. Whatever it holds, the loop lives on and the messages after it are taken."""
        self._process.progress += 1
        if faults.armed:
            faults.at("receive")
        try:
            self._handle(message)
        except Exception:
            log.exception("a %s could not be handled", type(message).__name__)
        self._publish_stats()

    async def _log_activity(self) -> None:
        """One gateway speaks for all."""
        if self._company.is_first:
            metrics = self._engine.observer.metrics
            await Activity(lambda: collect(self._ring, metrics, self._engine.in_flight())).run()

    def _publish_stats(self) -> None:
        """Often enough for the beats; those of the others see to it that this is called again."""
        now = time.monotonic()
        if now >= self._next_stats:
            self._process.stats = self._engine.in_flight() | {"metrics": self._engine.observer.metrics.export()}
            self._next_stats = now + STATS_INTERVAL_S

    def _handle(self, message: Any) -> None:
        spans = self._process.spans
        match message:
            case Text():
                begun = time.monotonic_ns() if spans.on else 0
                self._engine.on_text(message)
                if begun:
                    spans.add(TEXT, begun, message.time_ns, len(message.rids))
            case Lost():
                self._ring.lose(message.process)  # the RingState that says so may be a batch behind
                self._engine.on_lost(message)
                self._company.on_lost(message)
            case Held():
                self._engine.on_held(message)
            case LookUp() | Report():
                self._engine.on_answer(message)
            case AskGateway():
                self._company.on_question(message)
            case GatewayReport():
                self._company.on_answer(message)
            case RingState():
                self._ring.update(message)
                if self._ring.obstacle() is None:
                    self._send("supervisor", RingState(message.states, self._process.name))
                    self._profile_from_the_start()
            case ModelFiles() | Loading() | Beat() | Counted():
                self._ring.update(message)
            case SetLogLevel(level=level):
                process_log.set_level(level)
            case StartProfile():
                self._profiler.on_start(message)
            case StopProfile():
                self._profiler.on_stop(message)
            case SpanChunk():
                self._profiler.on_chunk(message)
            case StepLimit():
                self._profiler.on_step_limit()
            case Drain(timeout_s=timeout_s):
                self._start_drain(timeout_s)
            case Shutdown():
                self._process.running = False
                self._stopped.set()
            case _:
                log.warning("a %s is not for the gateway", type(message).__name__)

    def _profile_from_the_start(self) -> None:
        """What `--profile` asks for, once everybody is ready; one gateway sees to it."""
        file, self._profile_file = self._profile_file, ""
        if file and self._company.is_first:
            starting = self._profiler.start(Wanted(file=Path(file).resolve()))
            self._profile_start = asyncio.get_running_loop().create_task(starting)
            self._profile_start.add_done_callback(_say_why_not)

    def _start_drain(self, timeout_s: float) -> None:
        """Take no new requests; a later Drain replaces an earlier one's deadline."""
        self._ring.drain(timeout_s)
        if self._drain is not None:
            self._drain.cancel()
        self._drain = asyncio.get_running_loop().create_task(self._drain_within(timeout_s))

    async def _drain_within(self, timeout_s: float) -> None:
        aborted = 0
        if not await self._idle_within(timeout_s):
            aborted = self._engine.fail_all(ApiError(503, "the server is shutting down"))
            await self._idle_within(CUT_GRACE_S)
        await self._profiler.close(PROFILE_GRACE_S)
        self._send("supervisor", Drained(self._process.name, aborted))

    def _send(self, name: str, message: Any) -> None:
        self._process.peer(name).send(message)

    async def _idle_within(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._engine.idle()
        except TimeoutError:
            return False
        return True


def _say_why_not(starting: asyncio.Task[Any]) -> None:
    if not starting.cancelled() and (error := starting.exception()) is not None:
        log.error("--profile: %s", error)
