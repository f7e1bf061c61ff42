"""The Text messages that one step's tokens lead to, one for each gateway, built row by row."""

from __future__ import annotations

from array import array

from detok_proc.sequence import Sequence
from ipc.messages import Head, Logprobs, Reading, Tail, Text
from ipc.names import gateway_of


class Outgoing:
    """What leaves because of one Tokens message."""

    def __init__(self, time_ns: int) -> None:
        self.time_ns = time_ns
        self.texts: dict[int, Text] = {}  # by gateway index
        self.stopped: list[int] = []  # rids that have ended here, and must be ended by the scheduler

    def add_head(self, head: Head) -> None:
        self._text_for(head.rid).heads.append(head)

    def add_reading(self, reading: Reading) -> None:
        self._text_for(reading.rid).readings.append(reading)

    def add_row(self, rid: int, sequence: Sequence) -> None:
        """A row with all that the sequence has to send; it has nothing to send afterwards."""
        text = self._text_for(rid)
        text.rids.append(rid)
        text.texts.append(sequence.text)
        text.num_tokens.append(len(sequence.token_ids))
        if sequence.logprobs is not None or text.logprobs is not None:
            _add_logprobs(text, sequence)
        text.token_ids.extend(sequence.token_ids)
        sequence.clear()

    def add_tail(self, tail: Tail) -> None:
        self._text_for(tail.rid).tails.append(tail)

    def _text_for(self, rid: int) -> Text:
        gateway = gateway_of(rid)
        text = self.texts.get(gateway)
        if text is None:
            text = self.texts[gateway] = Text([], [], [], [], array("i"), None, [], self.time_ns)
        return text


def _add_logprobs(text: Text, sequence: Sequence) -> None:
    """A row of log-probabilities for each token of the sequence, empty for tokens that have none."""
    if text.logprobs is None:
        text.logprobs = Logprobs(counts=[0] * len(text.token_ids))
    rows = text.logprobs
    if sequence.logprobs is not None:
        rows.counts += sequence.logprobs.counts
        rows.ids += sequence.logprobs.ids
        rows.values += sequence.logprobs.values
        rows.pieces += sequence.logprobs.pieces
    rows.counts += [0] * (len(text.token_ids) + len(sequence.token_ids) - len(rows.counts))
