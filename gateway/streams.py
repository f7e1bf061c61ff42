"""What comes back from the ring for one HTTP request, between the fan-out that receives it and the task that answers.

The fan-out adds to a sequence and never waits. The answering task takes, whenever it gets to it, all that a sequence
brought since the last time as one piece: so the pieces of a reader that is too slow grow together by themselves.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import ApiError
from gateway.logprobs import Row
from gateway.request import Job
from gateway.timings import End
from ipc.codec import Ids
from ipc.messages import LENGTH, STOP, Head, Reading, Tail

MAX_UNSENT_BYTES = 1 << 20
LOGPROB_BYTES = 80  # one candidate of one token, as JSON


@dataclass(slots=True)
class Piece:
    """What one sequence brought since the last piece: text, the tokens it stands for, and the end if it came."""

    index: int  # of the choice
    text: str
    num_tokens: int
    token_ids: Ids  # empty unless the request wants them
    logprobs: list[Row]  # a row a token, empty unless the request wants them
    tail: Tail | None
    runs: list[tuple[str, int]] = field(default_factory=list)  # the same text, with the tokens that each run stands
    # for; empty unless the text is to be read


class Sequence:
    """One choice of one prompt, by its rid."""

    __slots__ = (
        "_logprobs",
        "_num_tokens",
        "_runs",
        "_stream",
        "_texts",
        "_token_ids",
        "head",
        "index",
        "last_ns",
        "num_tokens",
        "over",
        "readings",
        "tail",
        "tokenizer",
        "whole",
    )

    def __init__(self, stream: Stream, index: int) -> None:
        self.index = index
        self.head: Head | None = None
        self.tail: Tail | None = None
        self.tokenizer = 0  # epoch of the tokenizer's run that its request was sent to
        self.num_tokens = 0  # received so far
        self.readings: list[Reading] = []  # of its prompt, in order
        self.last_ns = 0  # the time of the step that its last text came from
        self.over = False  # its terminal event has come, whatever it was
        self.whole = stream.job.generates[0].output.whole  # its text comes once, at the end
        self._stream = stream
        self._texts: list[str] = []
        self._num_tokens = 0  # of those not yet taken
        self._token_ids = array("i")
        self._logprobs: list[Row] = []
        self._runs: list[tuple[str, int]] | None = None if stream.job.reading.is_plain else []

    @property
    def job(self) -> Job:
        """The request that it belongs to."""
        return self._stream.job

    @property
    def stream(self) -> Stream:
        """The response that this is a choice of."""
        return self._stream

    def fail(self, error: ApiError) -> None:
        """The request that this is a choice of cannot go on."""
        self._stream.fail(error)

    @property
    def wants_tokens(self) -> bool:
        """Whether token ids or log-probabilities are shown to the client."""
        return self._stream.wants_tokens

    @property
    def num_taken(self) -> int:
        """How many tokens the answering task has taken to the client."""
        return self.num_tokens - self._num_tokens

    def add_text(self, text: str, num_tokens: int) -> None:
        self._texts.append(text)
        if self._runs is not None:
            self._runs.append((text, num_tokens))
        self._num_tokens += num_tokens
        self.num_tokens += num_tokens
        self._stream.touched(self, len(text.encode()))

    def add_tokens(self, token_ids: Ids, logprobs: list[Row]) -> None:
        """The tokens behind the text that was added last."""
        self._token_ids += token_ids
        self._logprobs += logprobs
        self._stream.touched(self, LOGPROB_BYTES * sum(map(len, logprobs)))

    def end(self, tail: Tail) -> None:
        """The terminal event. A failure ends the whole request, and is not this choice's end as clients see it."""
        self.over = True
        if tail.refusal is not None:
            self._stream.fail(ApiError.of(tail.refusal))
        elif tail.reason in (STOP, LENGTH):
            # What has failed has been told so, or is about to be: it must not end well behind that.
            self.tail = tail if self._stream.failure is None else None
        else:
            self._stream.fail(ApiError(500, "the request was given up inside the server"))
        self._stream.ended(self)

    def take(self) -> Piece:
        """What has come since the last call."""
        piece = Piece(self.index, "".join(self._texts), self._num_tokens, self._token_ids, self._logprobs, self.tail)
        self._texts = []
        self._num_tokens = 0
        if self._runs is not None:
            piece.runs, self._runs = self._runs, []
        if piece.token_ids or piece.logprobs:
            self._token_ids = array("i")
            self._logprobs = []
        return piece


class Stream:
    """All sequences of one HTTP request, in the order of their choice indexes.

    `failure` is set when the request as a whole has failed: one of its sequences did, or the ring.
    """

    def __init__(self, job: Job, rids: list[int]) -> None:
        self.job = job
        self.rids = rids
        self.wants_tokens = job.wants_tokens
        self.sequences = [Sequence(self, index) for index in range(len(rids))]
        self.failure: ApiError | None = None
        self._unsent_bytes = 0  # of text: waiting here, or taken and not yet written out
        self._taken_bytes = 0
        self.on_overflow: Callable[[], None] | None = None  # what to do past MAX_UNSENT_BYTES
        self._unfinished = len(rids)
        self._touched: dict[Sequence, None] = {}  # in order
        self._waiter: asyncio.Future[None] | None = None
        self._waits_for_all = False

    @property
    def all_ended(self) -> bool:
        """Whether all sequences have ended."""
        return self._unfinished == 0

    @property
    def finished(self) -> bool:
        """Whether all sequences have ended and nothing is left to take."""
        return self._unfinished == 0 and not self._touched

    @property
    def unsent_bytes(self) -> int:
        """Text that has come and is not written out."""
        return self._unsent_bytes

    @property
    def ends(self) -> list[End]:
        """How the sequences began and ended, of those that have."""
        return [(each.head, each.tail) for each in self.sequences if each.head is not None and each.tail is not None]

    # -- the fan-out's side ---------------------------------------------------------------------------------------

    def touched(self, sequence: Sequence, size: int) -> None:
        """There is something to take from a sequence."""
        self._touched[sequence] = None
        self._unsent_bytes += size
        if self._unsent_bytes > MAX_UNSENT_BYTES and self.on_overflow is not None:
            self.on_overflow()
        if not self._waits_for_all:
            self._wake()

    def ended(self, sequence: Sequence) -> None:
        """A sequence brings no more."""
        self._unfinished -= 1
        self._touched[sequence] = None
        if self._unfinished == 0 or not self._waits_for_all:
            self._wake()

    def fail(self, error: ApiError) -> bool:
        """End the request with an error, unless it has its end already; the first one counts. Whether this was it."""
        if self.failure is not None or self._unfinished == 0:
            return False
        self.failure = error
        self._wake()
        return True

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- the answering task's side --------------------------------------------------------------------------------

    async def some(self) -> list[Piece]:
        """What has come since the last call, a piece a sequence; waits for it. Empty when the request has failed.

        To call it again is to say that what it gave before has been written out.
        """
        self._unsent_bytes -= self._taken_bytes
        self._taken_bytes = 0
        while not self._touched and self.failure is None:
            await self._wait()
        pieces = [sequence.take() for sequence in self._touched]
        self._touched.clear()
        self._taken_bytes = self._unsent_bytes
        return pieces

    async def all(self) -> list[Piece]:
        """Everything, a piece a sequence, once all have ended. Raises ApiError as soon as the request has failed."""
        self._waits_for_all = True
        while self._unfinished > 0 and self.failure is None:
            await self._wait()
        if self.failure is not None:
            raise self.failure
        return [sequence.take() for sequence in self.sequences]

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter
        self._waiter = None

    def usage(self) -> dict[str, Any]:
        """Tokens so far: each prompt counts once, every choice's output counts."""
        heads = [sequence.head for sequence in self.sequences[:: self.job.n] if sequence.head is not None]
        prompt_tokens = sum(head.prompt_tokens for head in heads)
        completion_tokens = sum(
            sequence.num_tokens if sequence.tail is None else sequence.tail.completion_tokens
            for sequence in self.sequences
        )
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(head.cached_tokens for head in heads)},
        }
