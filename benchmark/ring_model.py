"""The ring under virtual time: the scheduler and the mock runner are the real ones, everything round them is a cost.

Client, gateway, tokenizer and detokenizer do nothing here but take their time (`benchmark.overheads`). What passes
between the processes is what the scheduler and the figures need. Every process works as the live one does: the
scheduler takes in all that has arrived and then plans as many steps as the runner has room for, the others take one
message after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmark.client import Measured
from benchmark.overheads import Cost, Overheads
from benchmark.presets import MAX_TOKENS
from benchmark.step_log import Step
from benchmark.virtual_time import Action, Cores, EventLoop, Process, Work
from gateway.timings import timings
from ipc import mock_vocabulary
from ipc.codec import Ids
from ipc.config import ModelConfig, SchedulerConfig, section
from ipc.messages import REASON_NAMES, Head, Output, Plan, Result, Sampling, Submit, Tail, Tokens
from model_proc.mock import MockRunner, describe_mock
from scheduler_proc import figures
from scheduler_proc.kv_events import KvEvent
from scheduler_proc.scheduler import Scheduler

# The gateway writes and the client reads side by side: a step's text goes from one to the other in parts of this many
# rows.
PART = 10
# The scheduler's loop wakes this long after a deadline.
DEADLINE_SLACK_NS = 1_000_000
# What a request costs the gateway, in shares: to read it from its connection, to check it and send it on, to open the
# response and to close it. An event loop reads from all connections that have something before it goes on with any
# request, so a burst of requests comes out of it late and together. From a profile of a gateway under short requests.
READ, SEND_ON, OPEN, CLOSE = 0.14, 0.52, 0.18, 0.16
# And the client: to send it, and to take in its end.
SEND, END = 0.40, 0.60
# Something to look at, for the model's process (a step is due) or the scheduler's (a deadline has passed).
WAKE = None


@dataclass(slots=True)
class Request:
    """One request on its way, and what the client has seen of it. Times are in ns; 0 means not yet."""

    prompt: str
    cache_salt: str
    timeout_ms: int  # 0 is never
    done: Callable[[Measured], None]  # called when the client has the answer, or knows that there is none
    max_tokens: int = MAX_TOKENS
    ignore_eos: bool = False
    priority: int = 0
    tenant: str = ""
    head: Head | None = None
    token_ids: list[int] = field(default_factory=list)  # of the answer, if the ring keeps them
    measured: Measured = field(default_factory=lambda: Measured(sent=0.0))
    is_read: bool = False  # by the gateway
    is_answered: bool = False  # the gateway has some of its text
    sent_ns: int = 0
    received_ns: int = 0  # by the gateway
    first_ns: int = 0  # text came
    last_ns: int = 0
    gaps_ns: list[int] = field(default_factory=list)  # between pieces of text


@dataclass(frozen=True, slots=True)
class WorkCost:
    """What a process's work costs, in ns; see `benchmark.overheads.Cost`."""

    request: int
    step: int
    token: int

    @classmethod
    def of(cls, cost: Cost) -> WorkCost:
        return cls(*(round(1000 * us) for us in (cost.request_us, cost.step_us, cost.token_us)))


@dataclass(slots=True)
class Part:
    """A part of what one step brought, on its way from the detokenizer to the client."""

    rows: list[Request]  # a row for each piece of text
    ends: list[tuple[Request, Tail]]
    opens: int  # requests whose responses begin
    starts_message: bool  # the others belong to the same message


@dataclass(frozen=True, slots=True)
class Machine:
    """Where processes run: rings with the same one share its cores, and those with the same loop their time."""

    loop: EventLoop
    cores: Cores

    @classmethod
    def of(cls, overheads: Overheads, seed: int, loop: EventLoop | None = None) -> Machine:
        """One of the kind that the overheads were measured on; `seed` is that of its chance."""
        loop = loop or EventLoop()
        return cls(loop, Cores(loop, overheads.cores, [round(1000 * us) for us in overheads.spread_us], seed))


class Ring:
    """All processes of one ring, and its client. `loop.run()` lets them work until there is nothing to do."""

    def __init__(
        self, options: Mapping[str, Any], overheads: Overheads, stream: bool, keep_text: bool = False, seed: int = 0,
        machine: Machine | None = None, on_kv_events: Callable[[list[KvEvent]], None] | None = None,
    ) -> None:  # fmt: skip
        """`options` are all options of launch.py; its model is the mock, whatever they say. `seed` is that of chance
        in the machine, which is one of its own unless one is given. `on_kv_events` is called with what each step of the
        scheduler does to its cache.

        Raises PolicyError when the configured policy does not exist.
        """
        machine = machine or Machine.of(overheads, seed)
        self.loop, cores = machine.loop, machine.cores
        self.steps: list[Step] = []
        config = section(ModelConfig, options)
        self._runner = MockRunner(config, describe_mock(config), clock=lambda: self.loop.now)
        self.scheduler = Scheduler(self._runner.load(), section(SchedulerConfig, options))
        self._on_kv_events = on_kv_events
        self._kv_events = self.scheduler.record_kv_events() if on_kv_events else []
        self._stream = stream
        self._keeps_text = keep_text
        self._costs = {name: WorkCost.of(cost) for name, cost in overheads.costs(stream).items()}
        self._requests: dict[int, Request] = {}
        self._next_rid = 1
        self._prompt_ids: dict[str, Ids] = {}
        self._step_watch_ns: int | None = None  # when the model's process looks at its runner
        self._deadline_watch_ns: int | None = None  # when the scheduler's process looks at its deadlines

        def process(work: Work, takes_all: bool = False) -> Process:
            return Process(self.loop, cores, work, round(1000 * overheads.hop_us), takes_all)

        self._client = process(self._work_of_client)
        self._gateway = process(self._work_of_gateway)
        self._tokenizer = process(self._work_of_tokenizer)
        self._scheduling = process(self._work_of_scheduler, takes_all=True)
        self._model = process(self._work_of_model)
        self._detokenizer = process(self._work_of_detokenizer)

    def send(self, request: Request) -> None:
        """Have the client send a request."""
        self._client.main.put(request)

    def stats(self) -> dict[str, Any]:
        """The scheduler's figures of this moment."""
        return figures.stats(self.scheduler)

    def busy_s(self) -> dict[str, float]:
        """Seconds that each process has worked."""
        processes = {
            "client": self._client, "gateway": self._gateway, "tokenizer": self._tokenizer,
            "scheduler": self._scheduling, "model": self._model, "detokenizer": self._detokenizer,
        }  # fmt: skip
        return {name: process.main.busy_ns / 1e9 for name, process in processes.items()}

    # -- client and gateway, both ways ---------------------------------------------------------------------------------

    def _work_of_client(self, messages: list[Any], now: int) -> tuple[int, Action]:
        (message,) = messages
        if type(message) is Request:
            message.sent_ns = now
            message.measured.sent = now / 1e9
            cost_ns = round(SEND * self._costs["client"].request)
            return cost_ns, lambda: self._client.send_directly(self._gateway, message)
        return self._read(message, now)

    def _work_of_gateway(self, messages: list[Any], now: int) -> tuple[int, Action]:
        (message,) = messages
        cost = self._costs["gateway"]
        if type(message) is Request:
            if not message.is_read:
                message.is_read = True
                return round(READ * cost.request), lambda: self._gateway.main.put(message)
            message.received_ns = now
            return round(SEND_ON * cost.request), lambda: self._gateway.send(self._tokenizer, [message])
        cost_ns = cost.token * len(message.rows) + cost.step * message.starts_message
        cost_ns += round(cost.request * (OPEN * message.opens + CLOSE * len(message.ends)))
        if not (message.rows or message.ends):
            return cost_ns, lambda: None  # it only said that sequences have begun
        return cost_ns, lambda: self._gateway.send_directly(self._client, message)

    def _read(self, part: Part, now: int) -> tuple[int, Action]:
        """The client reads what the gateway wrote: its text, piece for piece, and the ends."""
        token_ns = self._costs["client"].token
        at = now
        for request in part.rows:
            at += token_ns
            if request.last_ns:
                request.gaps_ns.append(at - request.last_ns)
            else:
                request.first_ns = at
            request.last_ns = at
        end_ns = round(END * self._costs["client"].request) * len(part.ends)

        def done() -> None:
            for request, tail in part.ends:
                if tail.refusal is None:
                    _report(request, tail)
                else:
                    request.measured.error = f"{tail.refusal.status}: {tail.refusal.message}"
                request.done(request.measured)

        return at - now + end_ns, done

    # -- the way in ----------------------------------------------------------------------------------------------------

    def _work_of_tokenizer(self, messages: list[Any], now: int) -> tuple[int, Action]:
        (request,) = messages
        rid = self._next_rid
        self._next_rid += 1
        self._requests[rid] = request
        if request.prompt not in self._prompt_ids:
            self._prompt_ids[request.prompt] = mock_vocabulary.encode(request.prompt)
        submit = Submit(
            rid=rid,
            request_id="",
            n=1,
            token_ids=self._prompt_ids[request.prompt],
            sampling=Sampling(max_tokens=request.max_tokens, ignore_eos=request.ignore_eos),
            output=Output(),
            priority=request.priority,
            tenant=request.tenant,
            cache_salt=request.cache_salt,
            received_ns=request.received_ns,
            tokenized_ns=now,
            refusal=None,
            deadline_ns=request.received_ns + request.timeout_ms * 1_000_000 if request.timeout_ms else 0,
        )
        return self._costs["tokenizer"].request, lambda: self._tokenizer.send(self._scheduling, [submit])

    # -- scheduler and model -------------------------------------------------------------------------------------------

    def _work_of_scheduler(self, messages: list[Any], now: int) -> tuple[int, Action]:
        scheduler, cost, cost_ns = self.scheduler, self._costs["scheduler"], 0
        for message in messages:
            if type(message) is Result:
                scheduler.result(message, now)
                self._log_step(message)
                cost_ns += cost.step + cost.token * len(message.slots)
            elif type(message) is Submit:
                scheduler.submit(message, now)
                cost_ns += cost.request
            else:
                self._deadline_watch_ns = None
        scheduler.expire(now)
        plans = []
        while (plan := scheduler.plan(now)) is not None:
            plans.append(plan)
        outgoing = scheduler.outgoing[:]
        scheduler.outgoing.clear()
        scheduler.log.entries.clear()
        kv_events = self._kv_events[:]
        self._kv_events.clear()

        def done() -> None:
            if kv_events and self._on_kv_events is not None:
                self._on_kv_events(kv_events)
            if plans:
                self._scheduling.send(self._model, plans)
            if outgoing:
                self._scheduling.send(self._detokenizer, outgoing)
            self._watch_deadlines()

        return cost_ns, done

    def _watch_deadlines(self) -> None:
        deadline_ns = self.scheduler.next_deadline_ns
        if deadline_ns is not None and self._deadline_watch_ns is None:
            self._deadline_watch_ns = deadline_ns + DEADLINE_SLACK_NS
            self.loop.at(self._deadline_watch_ns, lambda: self._scheduling.main.put(WAKE))

    def _work_of_model(self, messages: list[Any], now: int) -> tuple[int, Action]:
        """Launch a plan, or send the results that are due. Each is half of what a step costs."""
        (message,) = messages
        cost = self._costs["model"]
        results: list[Result] = []
        if type(message) is Plan:
            self._runner.launch(message)
            cost_ns = (cost.step + cost.token * len(message.slots)) // 2
        else:
            self._step_watch_ns = None
            while self._runner.is_done():
                results.append(self._runner.collect())
            cost_ns = sum(cost.step + cost.token * len(result.slots) for result in results) // 2

        def done() -> None:
            if results:
                self._model.send(self._scheduling, results)
            self._watch_steps()

        return cost_ns, done

    def _watch_steps(self) -> None:
        due_ns = self._runner.next_done_ns
        if due_ns is not None and (self._step_watch_ns is None or due_ns < self._step_watch_ns):
            self._step_watch_ns = due_ns
            self.loop.at(due_ns, lambda: self._model.main.put(WAKE))

    def _log_step(self, result: Result) -> None:
        step = self.scheduler.last_step
        assert step is not None  # it is that of the result
        self.steps.append(
            Step(
                planned_s=step.planned_ns / 1e9,
                started_s=result.started_ns / 1e9,
                finished_s=result.finished_ns / 1e9,
                decodes=len(step.decodes) + len(step.others) - len(step.prefills),
                prefills=len(step.prefills),
                waiting=len(self.scheduler.waiting),
                running=len(self.scheduler.residents.sequences),
            )
        )

    # -- the way out ---------------------------------------------------------------------------------------------------

    def _work_of_detokenizer(self, messages: list[Any], now: int) -> tuple[int, Action]:
        (tokens,) = messages
        parts = self._parts(tokens)
        cost = self._costs["detokenizer"]
        cost_ns = cost.step + cost.token * len(tokens.rids) + cost.request * len(tokens.heads)

        def done() -> None:
            if parts:
                self._detokenizer.send(self._gateway, parts)

        return cost_ns, done

    def _parts(self, tokens: Tokens) -> list[Part]:
        """What the gateway gets of a message: its rows with text, and the ends behind their last rows.

        A unary response has one row, at its end, with all its text.
        """
        requests, silent = self._requests, mock_vocabulary.SILENT_ID
        for head in tokens.heads:
            requests[head.rid].head = head
        rows = [requests[rid] for rid in tokens.rids]
        if self._keeps_text:
            for request, token_id in zip(rows, tokens.token_ids, strict=True):
                request.token_ids.append(token_id)
        ends = [(requests.pop(tail.rid), tail) for tail in tokens.tails]
        if not self._stream:
            rows = [request for request, _ in ends]
        elif silent in tokens.token_ids:
            rows = [row for row, token_id in zip(rows, tokens.token_ids, strict=True) if token_id != silent]
        if not (rows or ends or tokens.heads):
            return []
        parts = [Part(rows[first : first + PART], [], 0, first == 0) for first in range(0, max(len(rows), 1), PART)]
        for part in parts:
            part.opens = sum(1 for request in part.rows if not request.is_answered)
            for request in part.rows:
                request.is_answered = True
        part_of = {id(request): part for part in parts for request in part.rows} if ends else {}
        for request, tail in ends:
            part_of.get(id(request), parts[-1]).ends.append((request, tail))
        return parts


def _report(request: Request, tail: Tail) -> None:
    """Fill in what the client measured and was told of an answer that it has."""
    measured, head = request.measured, request.head
    assert head is not None  # it opens every sequence
    measured.ttft = (request.first_ns - request.sent_ns) / 1e9
    measured.latency = (request.last_ns - request.sent_ns) / 1e9
    measured.itls = [gap_ns / 1e9 for gap_ns in request.gaps_ns]
    measured.finish_reason = REASON_NAMES[tail.reason]
    measured.prompt_tokens = head.prompt_tokens
    measured.cached_tokens = head.cached_tokens
    measured.completion_tokens = tail.completion_tokens
    measured.timings = timings([(head, tail)], head.prompt_tokens, head.cached_tokens, tail.completion_tokens)
    measured.text = mock_vocabulary.decode(request.token_ids)
