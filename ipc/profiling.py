"""A process's part in a profile: it starts and stops to record when a gateway says so, and sends what there is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from ipc.control_messages import SpanChunk, StartProfile, StepLimit, StopProfile
from ipc.sockets import Outbox
from ipc.spans import Recording, Spans

CHUNK_ROWS = 50_000
CHUNK_BYTES = 8 << 20  # of the detail; a frame may have 64 MiB

log = logging.getLogger(__name__)


class Detail(Protocol):
    """What a process may record beside spans: the torch profiler."""

    def start(self, message: StartProfile) -> None:
        """Begin; called on the main thread."""
        ...

    def stop(self) -> Callable[[], bytes]:
        """End; called on the main thread. What it gives makes one JSON document, and may take long: on another one."""
        ...


class Profiled:
    """The state of a process's recording."""

    def __init__(self, name: str, outbox: Callable[[str], Outbox]) -> None:
        """`outbox` makes a way into an inbox, for the thread that asks."""
        self.spans = Spans()
        self.detail: Detail | None = None
        self._name = name
        self._outbox = outbox
        self._reply_to = ""
        self._with_detail = False

    def start(self, message: StartProfile) -> None:
        """Record from now on."""
        self._reply_to = message.reply_to
        self.spans.start(message.steps)
        self._with_detail = message.torch and self.detail is not None
        if self._with_detail and self.detail is not None:
            try:
                self.detail.start(message)
            except Exception:
                log.exception("the torch profiler does not start: only spans are recorded")
                self._with_detail = False

    def stop(self, message: StopProfile) -> None:
        """Record no more. What there is leaves from a thread, so that this process goes on meanwhile."""
        recording = self.spans.stop() if self.spans.on else Recording([], 0)
        document: Callable[[], bytes] = bytes
        if self._with_detail and self.detail is not None:
            self._with_detail = False
            try:
                document = self.detail.stop()
            except Exception:
                log.exception("the torch profiler does not stop: its events are missing")
        arguments = (message.reply_to, recording, document)
        threading.Thread(target=self._send, args=arguments, name="profile", daemon=True).start()

    def tell_limit(self) -> None:
        """Say, once, that there were enough steps."""
        self.spans.limit_reached = False
        outbox = self._outbox(self._reply_to)
        outbox.send(StepLimit())
        outbox.close()

    def _send(self, reply_to: str, recording: Recording, document: Callable[[], bytes]) -> None:
        try:
            detail = document()
        except Exception:
            log.exception("what the torch profiler recorded cannot be read: it is missing")
            detail = b""
        outbox = self._outbox(reply_to)
        for chunk in chunks(self._name, recording, detail):
            outbox.send(chunk)
        outbox.close()


def chunks(process: str, recording: Recording, detail: bytes) -> Iterator[SpanChunk]:
    """A recording in messages that are small enough; one at least."""
    rows = recording.rows
    pieces = max(-(-len(rows) // CHUNK_ROWS), -(-len(detail) // CHUNK_BYTES), 1)
    for piece in range(pieces):
        part = rows[piece * CHUNK_ROWS : (piece + 1) * CHUNK_ROWS]
        kinds, begins, ends, ids, args = (list(column) for column in zip(*part, strict=True)) if part else ([],) * 5
        yield SpanChunk(
            process=process, kinds=kinds, begins=begins, ends=ends, ids=ids, args=args,
            detail=detail[piece * CHUNK_BYTES : (piece + 1) * CHUNK_BYTES], dropped=recording.dropped,
            last=piece == pieces - 1,
        )  # fmt: skip
