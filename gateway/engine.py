"""The ring as the HTTP layer sees it: requests go in, streams of text come out, look-ups are answered.

This is the fan-out. Its `on_` methods are called by the inbox as messages arrive; they never wait. Every sequence is
known here from `submit` to its one terminal event, or until the client's handler is done with it; whatever arrives for
any other rid is late, and ignored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gateway.errors import ApiError
from gateway.logprobs import Row, rows_of
from gateway.streams import Sequence, Stream
from ipc.codec import Ids
from ipc.messages import Abort, Detokenize, Generate, LookUp, Text, Tokenize


class Engine:
    """`send` puts a message into the tokenizer's inbox."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        self._send = send
        self._next_rid = 1  # below the gateway's index, which is 0: there is one gateway
        self._live: dict[int, Sequence] = {}
        self._streams: set[Stream] = set()
        self._look_ups: dict[int, asyncio.Future[LookUp]] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    # -- the HTTP layer's side ------------------------------------------------------------------------------------

    @contextmanager
    def submit(self, generates: list[Generate], wants_tokens: bool) -> Iterator[Stream]:
        """Send requests into the ring and hold them for the length of the block.

        The rids of `generates`, all with the same n, are given out here. What has not ended when the block is left,
        for whatever reason, is aborted.
        """
        rids: list[int] = []
        for generate in generates:
            generate.rid = self._take_rids(generate.n)
            rids.extend(range(generate.rid, generate.rid + generate.n))
        stream = Stream(rids, generates[0].n, wants_tokens)
        self._live.update(zip(rids, stream.sequences, strict=True))
        self._streams.add(stream)
        self._idle.clear()
        try:
            for generate in generates:
                self._send(generate)
            yield stream
        finally:
            self._forget(stream)

    async def tokenize(self, text: str | None, chat: dict[str, Any] | None, add_special_tokens: bool) -> Ids:
        """The token ids of a text or of a conversation. Raises ApiError."""
        answer = await self._look_up(Tokenize(self._take_rids(1), text, chat, add_special_tokens))
        return answer.token_ids

    async def detokenize(self, token_ids: Ids) -> str:
        """The text of token ids. Raises ApiError."""
        answer = await self._look_up(Detokenize(self._take_rids(1), token_ids))
        return answer.text

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()

    def in_flight(self) -> dict[str, int]:
        """HTTP requests for generation, their sequences that have not ended, and look-ups."""
        return {"requests": len(self._streams), "sequences": len(self._live), "look_ups": len(self._look_ups)}

    # -- the ring's side ------------------------------------------------------------------------------------------

    def on_text(self, text: Text) -> None:
        live = self._live
        for head in text.heads:
            if (sequence := live.get(head.rid)) is not None:
                sequence.head = head
        rows: list[Row] = [] if text.logprobs is None else rows_of(text.logprobs)
        start = 0
        for rid, piece, count in zip(text.rids, text.texts, text.num_tokens, strict=True):
            end = start + count
            if (sequence := live.get(rid)) is not None:
                sequence.add_text(piece, count)
                if sequence.wants_tokens:
                    sequence.add_tokens(text.token_ids[start:end], rows[start:end])
            start = end
        for tail in text.tails:
            if (sequence := live.pop(tail.rid, None)) is not None:
                sequence.end(tail)

    def on_look_up(self, answer: LookUp) -> None:
        future = self._look_ups.get(answer.rid)
        if future is not None and not future.done():
            future.set_result(answer)

    def fail_all(self, error: ApiError) -> int:
        """End everything in flight with an error; how many requests that were."""
        for stream in self._streams:
            stream.fail(error)
        for future in self._look_ups.values():
            if not future.done():
                future.set_exception(error)
        return len(self._streams)

    # -------------------------------------------------------------------------------------------------------------

    def _take_rids(self, count: int) -> int:
        first = self._next_rid
        self._next_rid += count
        return first

    def _forget(self, stream: Stream) -> None:
        unfinished = [rid for rid in stream.rids if self._live.pop(rid, None) is not None]
        if unfinished:
            self._send(Abort(unfinished))
        self._streams.discard(stream)
        if not self._streams:
            self._idle.set()

    async def _look_up(self, question: Tokenize | Detokenize) -> LookUp:
        future: asyncio.Future[LookUp] = asyncio.get_running_loop().create_future()
        self._look_ups[question.rid] = future
        try:
            self._send(question)
            answer = await future
        finally:
            del self._look_ups[question.rid]
        if answer.refusal is not None:
            raise ApiError.of(answer.refusal)
        return answer
