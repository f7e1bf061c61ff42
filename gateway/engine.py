"""The ring as the HTTP layer sees it: requests go in, streams of text come out, questions are answered.

This is the fan-out. Its `on_` methods are called by the inbox as messages arrive; they never wait. Every sequence is
known here from `submit` to its one terminal event, or until the client's handler is done with it; whatever arrives for
any other rid is late, and ignored.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from gateway.admission import Admission
from gateway.errors import ApiError
from gateway.logprobs import Row, rows_of
from gateway.losses import Losses
from gateway.observer import Observer
from gateway.questions import Questions
from gateway.request import Job
from gateway.streams import Sequence, Stream
from ipc.codec import Ids, Map
from ipc.control_messages import Held, Lost
from ipc.messages import Abort, Detokenize, FlushCache, Inspect, LookUp, Report, Text, Tokenize, Watch
from ipc.names import gateway_of, number_of, room_of, share_of, worker_name

# The scheduler ends a request at its deadline. A request that it has not got by then, or whose end does not come back,
# is ended here after this time more.
DEADLINE_GRACE_S = 0.5
REPORT_PATIENCE_S = 5.0  # how long the scheduler may take for an answer: a few steps

log = logging.getLogger(__name__)


class Engine:
    """`send` puts a message into the inbox of the tokenizer of an index, `send_scheduler` into the scheduler's.

    `admit` raises ApiError when no request can be served now. `rids` is where this run's rids begin, `tokenizers` has
    the epoch of each tokenizer's run, `detokenizers` says how many there are. Beyond `most_under_way` sequences
    requests are refused, for `retry_after_s`.
    """

    def __init__(
        self,
        send: Callable[[int, Any], None],
        send_scheduler: Callable[[Any], None],
        admit: Callable[[], object] = lambda: None,
        rids: int = 1,
        tokenizers: tuple[int, ...] = (0,),
        detokenizers: int = 1,
        most_under_way: int = 1 << 30,
        retry_after_s: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self.observer = Observer()
        self._send_tokenizer = send
        self._tokenizers = len(tokenizers)
        self._detokenizers = detokenizers
        self._send_scheduler = send_scheduler
        self._admit = admit
        self._next_rid = rids
        self._gateway = gateway_of(rids)
        self._losses = Losses(tokenizers, detokenizers)
        self._admission = Admission(most_under_way, self.observer.metrics.refuse)
        self._retry_after_s = retry_after_s
        self._live: dict[int, Sequence] = {}
        self._streams: set[Stream] = set()
        self._questions = Questions()
        self._next_text = [0] * detokenizers  # numbers of the Texts that must come next
        self._idle = asyncio.Event()
        self._idle.set()

    # -- the HTTP layer's side ------------------------------------------------------------------------------------

    @contextmanager
    def submit(self, job: Job) -> Iterator[Stream]:
        """Send a job's requests into the ring and hold them for the length of the block.

        Their rids are given out here. What has not ended when the block is left, for whatever reason, is aborted.
        Raises ApiError when the ring cannot serve: it may have lost a process since the request was let in.
        """
        self._admit()
        rids: list[int] = []
        for generate in job.generates:
            generate.rid = self.take_rids(generate.n)
            rids.extend(range(generate.rid, generate.rid + generate.n))
        self._admission.enter(rids, self._retry_after_s())
        stream = Stream(job, rids)
        tokenizers = [self._tokenizer_of(generate.rid) for generate in job.generates for _ in range(generate.n)]
        for sequence, tokenizer in zip(stream.sequences, tokenizers, strict=True):
            sequence.tokenizer = self._losses.tokenizers[tokenizer]
        self._live.update(zip(rids, stream.sequences, strict=True))
        self._streams.add(stream)
        self._idle.clear()
        safety_net = self._spread_safety_net(stream)
        try:
            for generate in job.generates:
                self._send_tokenizer(self._tokenizer_of(generate.rid), generate)
            self.observer.submitted(job)
            yield stream
        finally:
            if safety_net is not None:
                safety_net.cancel()
            self._forget(stream)

    def check_room(self) -> None:
        """Raise ApiError 429 when a request would certainly be refused: nothing of it need be read to know that."""
        self._admission.check(self._retry_after_s())

    def find(self, request_id: str) -> Stream | None:
        """The stream of the request that is called so; of several, the newest."""
        named = [stream for stream in self._streams if stream.job.request_id == request_id]
        return max(named, key=lambda stream: stream.job.received_ns, default=None)

    async def tokenize(self, text: str | None, chat: dict[str, Any] | None, add_special_tokens: bool) -> Ids:
        """The token ids of a text or of a conversation. Raises ApiError."""
        return (await self.tokens(text, chat, add_special_tokens)).token_ids

    async def tokens(
        self, text: str | None, chat: dict[str, Any] | None, add_special_tokens: bool, wants_names: bool = False
    ) -> LookUp:
        """The same, with the names that the tokens have in the vocabulary if they are wanted. Raises ApiError."""
        return await self._look_up(Tokenize(self.take_rids(), text, chat, add_special_tokens, wants_names))

    async def detokenize(self, token_ids: Ids) -> str:
        """The text of token ids. Raises ApiError."""
        answer = await self._look_up(Detokenize(self.take_rids(), token_ids))
        return answer.text

    async def inspect(self, request_id: str) -> list[Map]:
        """What the scheduler knows of the sequences of a request; empty when it knows none. Raises ApiError 503."""
        report = await self._ask_scheduler(Inspect(self.take_rids(), request_id))
        return report.body.get("sequences", [])

    async def flush_cache(self) -> int:
        """Have the scheduler forget all cached prefixes; how many blocks became free. Raises ApiError 503."""
        report = await self._ask_scheduler(FlushCache(self.take_rids()))
        return report.body["blocks"]

    async def watch(self) -> Map:
        """What is going on in the scheduler. Raises ApiError 503."""
        report = await self._ask_scheduler(Watch(self.take_rids()))
        return report.body

    def take_rids(self, count: int = 1) -> int:
        """The first of so many rids that nobody else has, one behind the other."""
        first = self._next_rid
        self._next_rid += count
        return first

    @property
    def streams(self) -> Iterable[Stream]:
        """The requests in flight."""
        return self._streams

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()

    def in_flight(self) -> dict[str, int]:
        """HTTP requests for generation, their sequences that have not ended, and questions."""
        return {"requests": len(self._streams), "sequences": len(self._live), "look_ups": len(self._questions)}

    # -- the ring's side ------------------------------------------------------------------------------------------

    def on_text(self, text: Text) -> None:
        self._count(text)
        live = self._live
        for head in text.heads:
            if (sequence := live.get(head.rid)) is not None:
                sequence.head = head
                self._admission.leave(head.rid)
        for reading in text.readings:
            if (sequence := live.get(reading.rid)) is not None:
                sequence.readings.append(reading)
        rows: list[Row] = [] if text.logprobs is None else rows_of(text.logprobs)
        touched: list[Sequence] = []
        start = 0
        for rid, piece, count in zip(text.rids, text.texts, text.num_tokens, strict=True):
            end = start + count
            if (sequence := live.get(rid)) is not None:
                touched.append(sequence)
                sequence.add_text(piece, count)
                if sequence.wants_tokens:
                    sequence.add_tokens(text.token_ids[start:end], rows[start:end])
            start = end
        self.observer.text(touched, text.time_ns)
        for tail in text.tails:
            if (sequence := live.pop(tail.rid, None)) is not None:
                sequence.end(tail)
                self.observer.ended(sequence, tail)

    def on_answer(self, answer: LookUp | Report) -> None:
        self._questions.on_answer(answer)

    def on_lost(self, lost: Lost) -> None:
        """A process of the ring is gone: end at once what certainly went with it."""
        error = ApiError(503, f"the server has lost a process ({lost.process}), and restarts it")
        match room_of(lost.process):
            case "scheduler" | "model":
                self.fail_all(error)
            case "tokenizer":
                self._questions.fail(error, lost.process)
            case "detokenizer":
                share = number_of(lost.process)
                self._next_text[share] = 0
                for sequence in self._of_detokenizer(share):
                    if sequence.head is not None:
                        sequence.fail(error)
        for held in self._losses.on_lost(lost):
            self._end_all_but(held)

    def on_held(self, held: Held) -> None:
        """The scheduler says what is left after a loss; the loss itself may not be known here yet."""
        if self._losses.on_held(held):
            self._end_all_but(held)

    def fail_all(self, error: ApiError) -> int:
        """End everything in flight with an error; how many requests that were."""
        failed = sum(stream.fail(error) for stream in self._streams)
        self._questions.fail(error)
        return failed

    # -------------------------------------------------------------------------------------------------------------

    def _count(self, text: Text) -> None:
        """Fail what a detokenizer has in hand when one of its messages is missing: any of it may lack words."""
        rid = text.rids[0] if text.rids else (text.heads or text.tails or text.readings)[0].rid
        share = share_of(rid, self._detokenizers)
        if text.number != self._next_text[share]:
            log.error("text %d is missing, %d came instead", self._next_text[share], text.number)
            for sequence in self._of_detokenizer(share):
                sequence.fail(ApiError(500, "a part of the answer was lost inside the server; send the request again"))
        self._next_text[share] = text.number + 1

    def _of_detokenizer(self, share: int) -> list[Sequence]:
        """The sequences whose text a detokenizer makes."""
        return [sequence for rid, sequence in self._live.items() if share_of(rid, self._detokenizers) == share]

    def _end_all_but(self, held: Held) -> None:
        """End the sequences that a lost process took with it, and tell the scheduler which of the others nobody wants:
        their Abort may have been lost as well."""
        error = ApiError(503, f"the server has lost a process ({held.process}), and restarts it")
        rids = set(held.rids)
        for rid, sequence in list(self._live.items()):
            if rid not in rids and self._losses.concerns(held, rid, sequence.tokenizer):
                sequence.fail(error)
        unwanted = [rid for rid in held.rids if gateway_of(rid) == self._gateway and rid not in self._live]
        if unwanted:
            self._send_scheduler(Abort(unwanted))

    def _tokenizer_of(self, rid: int) -> int:
        """The index of the tokenizer that has the request, or the question, of this rid."""
        return share_of(rid, self._tokenizers)

    def _abort(self, stream: Stream, rids: Iterable[int]) -> None:
        """Tell those who have the requests of a stream that these sequences are not wanted: behind the requests."""
        unwanted = set(rids)
        batches: dict[int, list[int]] = {}
        for generate in stream.job.generates:
            of_it = [rid for rid in range(generate.rid, generate.rid + generate.n) if rid in unwanted]
            if of_it:
                batches.setdefault(self._tokenizer_of(generate.rid), []).extend(of_it)
        for tokenizer, batch in batches.items():
            self._send_tokenizer(tokenizer, Abort(batch))

    def _forget(self, stream: Stream) -> None:
        unfinished = [rid for rid in stream.rids if self._live.pop(rid, None) is not None]
        for rid in unfinished:
            self._admission.leave(rid)
        if unfinished:
            self._abort(stream, unfinished)
        self.observer.closed(stream)
        self._streams.discard(stream)
        if not self._streams:
            self._idle.set()

    def _spread_safety_net(self, stream: Stream) -> asyncio.TimerHandle | None:
        """Have a stream fail that is still without its end well after its deadline."""
        if not stream.job.deadline_ns:
            return None
        left_s = (stream.job.deadline_ns - time.monotonic_ns()) / 1e9
        return asyncio.get_running_loop().call_later(max(0.0, left_s) + DEADLINE_GRACE_S, _time_out, stream)

    async def _look_up(self, question: Tokenize | Detokenize) -> LookUp:
        tokenizer = self._tokenizer_of(question.rid)
        send = partial(self._send_tokenizer, tokenizer)
        answer: LookUp = await self._questions.ask(worker_name("tokenizer", tokenizer), send, question)
        if answer.refusal is not None:
            raise ApiError.of(answer.refusal)
        return answer

    async def _ask_scheduler(self, question: Inspect | FlushCache | Watch) -> Report:
        report: Report = await self._questions.ask("scheduler", self._send_scheduler, question, REPORT_PATIENCE_S)
        return report


def _time_out(stream: Stream) -> None:
    if not stream.all_ended:
        log.warning("request %s: no end has come for its deadline, so it is ended here", stream.job.request_id)
        stream.fail(ApiError(504, "the request was not finished within its time limit"))
