"""The readers of all choices of one request."""

from __future__ import annotations

from gateway.parsers.parts import Content, Part
from gateway.parsers.reader import Reader
from gateway.request import Job
from gateway.streams import Piece, Stream


class Readers:
    def __init__(self, job: Job, stream: Stream) -> None:
        self._is_plain = job.reading.is_plain
        self._readers = [Reader(job.reading) for _ in stream.sequences]

    def parts(self, piece: Piece) -> list[Part]:
        """What a piece of one choice brings."""
        if self._is_plain:
            return [Content(piece.text)] if piece.text else []
        reader = self._readers[piece.index]
        parts = reader.read(piece.runs)
        return parts if piece.tail is None else parts + reader.finish()

    def has_calls(self, index: int) -> bool:
        """Whether a choice has called a tool so far."""
        return self._readers[index].num_calls > 0

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of all choices' reasoning so far."""
        return sum(reader.reasoning_tokens for reader in self._readers)
