"""The state of all sequences on their way to text: Tokens in, Text and stop hits out. No I/O, no clock."""

from __future__ import annotations

import logging
from itertools import accumulate
from typing import Any

from detok_proc.outgoing import Outgoing
from detok_proc.sequence import Ending, Sequence
from detok_proc.stop import StopMatcher
from detok_proc.vocabulary import Vocabulary
from ipc import faults
from ipc.messages import Head, Logprobs, Refusal, Tail, Tokens

log = logging.getLogger(__name__)


class Detokenizer:
    """All sequences that have begun and not ended.

    A sequence may come to its end here: its text meets a stop string, or cannot be made. Then the scheduler is told,
    later tokens are ignored, and the Tail that the scheduler sends, for this or for any other reason, is completed with
    what happened here. So every sequence ends with one Tail, and it always knows what the scheduler knows.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._sequences: dict[int, Sequence] = {}
        self._endings: dict[int, Ending] = {}  # of sequences that have ended here and wait for their Tail
        self._num_tokens = 0
        self._num_failed = 0

    def stats(self) -> dict[str, Any]:
        """Figures of this process: sequences without their Tail now; tokens, and sequences that failed, in its life."""
        return {
            "sequences": len(self._sequences) + len(self._endings),
            "tokens": self._num_tokens,
            "failed": self._num_failed,
        }

    def handle(self, tokens: Tokens) -> Outgoing:
        """Take in what one step brought. Rows and tails of sequences that are not open are ignored.

        The text before a stop string leaves with its step. A stop string ends its sequence before a Tail of the same
        message can. A sequence whose text cannot be made fails, and the others go on.
        """
        out = Outgoing(tokens.time_ns)
        for head in tokens.heads:
            out.add_head(head)
            self._open(head, out)
        for reading in tokens.readings:
            reading.logprobs.pieces = [self._vocabulary.piece(token_id) for token_id in reading.logprobs.ids]
            out.add_reading(reading)
        touched = self._take_rows(tokens, out)
        for tail in tokens.tails:
            touched.pop(tail.rid, None)
            self._close(tail, out)
        for rid, sequence in touched.items():
            if sequence.text and not sequence.whole:
                out.add_row(rid, sequence)
        # The scheduler has ended the others itself, with this message.
        out.stopped = [rid for rid in out.stopped if rid in self._endings]
        return out

    def clear(self) -> None:
        """Forget all sequences: the scheduler that would have ended them is lost."""
        self._sequences.clear()
        self._endings.clear()

    def _open(self, head: Head, out: Outgoing) -> None:
        output = head.output
        decoder = self._vocabulary.new_decoder(output.skip_special_tokens)
        sequence = self._sequences[head.rid] = Sequence(decoder, output.include_stop, output.whole)
        try:
            if output.stop:
                sequence.stops = StopMatcher(output.stop, output.include_stop)
        except Exception:
            self._fail(head.rid, out)

    def _take_rows(self, tokens: Tokens, out: Outgoing) -> dict[int, Sequence]:
        """Decode all rows. Gives the sequences that got any, by rid."""
        self._num_tokens += len(tokens.rids)
        sequences = self._sequences
        silent = self._silent_ends(tokens.tails)
        logprobs = tokens.logprobs
        ends = list(accumulate(logprobs.counts)) if logprobs is not None else []
        touched: dict[int, Sequence] = {}
        for row, (rid, token_id) in enumerate(zip(tokens.rids, tokens.token_ids, strict=True)):
            sequence = sequences.get(rid)
            if sequence is None:
                continue
            touched[rid] = sequence
            sequence.token_ids.append(token_id)
            sequence.num_tokens += 1
            hit = None
            try:
                if logprobs is not None and logprobs.counts[row]:
                    self._add_logprobs(sequence, logprobs, ends[row] - logprobs.counts[row], ends[row])
                if faults.armed:
                    faults.at("text")
                if not silent or silent.get(rid) != token_id:
                    hit = sequence.decode(token_id)
            except Exception:
                self._fail(rid, out)
            if hit is not None:
                self._stop(rid, hit, out)
        return touched

    def _silent_ends(self, tails: list[Tail]) -> dict[int, int]:
        """The tokens, by rid, that end a sequence with this message and that the client must not see."""
        silent = {}
        for tail in tails:
            token_id, sequence = tail.stop_token, self._sequences.get(tail.rid)
            if token_id is None or sequence is None or sequence.include_stop or self._vocabulary.shows_end(token_id):
                continue
            silent[tail.rid] = token_id
        return silent

    def _add_logprobs(self, sequence: Sequence, logprobs: Logprobs, start: int, end: int) -> None:
        ids = logprobs.ids[start:end]
        sequence.add_logprobs(ids, logprobs.values[start:end], [self._vocabulary.piece(item) for item in ids])

    def _close(self, tail: Tail, out: Outgoing) -> None:
        """End a sequence as the scheduler says, unless it has ended here before, or does so with its last text."""
        rid = tail.rid
        sequence = self._sequences.get(rid)
        if sequence is not None:
            try:
                hit = sequence.flush()
            except Exception:
                self._fail(rid, out)
            else:
                if hit is not None:
                    self._stop(rid, hit, out)
        if (ending := self._endings.pop(rid, None)) is not None:
            sequence, tail = ending.sequence, ending.complete(tail)
        elif sequence is not None:
            del self._sequences[rid]
        else:
            return
        if sequence.token_ids:
            out.add_row(rid, sequence)
        out.add_tail(tail)

    def _stop(self, rid: int, stop_string: str, out: Outgoing) -> None:
        """A sequence has met a stop string."""
        self._endings[rid] = Ending(self._sequences.pop(rid), out.time_ns, stop_string, None)
        out.stopped.append(rid)

    def _fail(self, rid: int, out: Outgoing) -> None:
        """A sequence cannot go on because of the exception that is being handled."""
        log.exception("sequence %d cannot be turned into text", rid)
        self._num_failed += 1
        refusal = Refusal(500, "server_error", "the output of this request could not be turned into text")
        self._endings[rid] = Ending(self._sequences.pop(rid), out.time_ns, None, refusal)
        out.stopped.append(rid)
