"""One sequence on its way to text, and how it may end there."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from detok_proc.decoder import Decoder
from detok_proc.stop import StopMatcher
from ipc.codec import Ids
from ipc.messages import ERROR, STOP, Logprobs, Refusal, Tail


@dataclass(slots=True)
class Sequence:
    """A sequence between its Head and its end. It keeps no more than what its decoder and stop strings hold back."""

    decoder: Decoder
    include_stop: bool
    whole: bool = False  # nothing is sent before the end
    stops: StopMatcher | None = None
    num_tokens: int = 0
    text: str = ""  # can be shown, and was not sent yet
    token_ids: list[int] = field(default_factory=list)  # not sent yet: those of `text` and those held back
    logprobs: Logprobs | None = None  # rows for the first of `token_ids`; None until one has a row

    def decode(self, token_id: int) -> str | None:
        """Add what this token brings to the text. Gives the stop string that the text met with it, if any."""
        text = self.decoder.push(token_id)
        if self.stops is None:
            self.text += text
            return None
        self.text += self.stops.push(text)
        return self.stops.hit

    def flush(self) -> str | None:
        """Add what was held back, now that no more tokens come. Gives the stop string that the text met, if any."""
        text = self.decoder.flush()
        if self.stops is None:
            self.text += text
            return None
        self.text += self.stops.push(text)
        if self.stops.hit is None:
            self.text += self.stops.flush()
        return self.stops.hit

    def add_logprobs(self, ids: Ids, values: list[float], pieces: list[bytes]) -> None:
        """Add the row of the newest token. Tokens before it that have none get an empty one."""
        if self.logprobs is None:
            self.logprobs = Logprobs()
        rows = self.logprobs
        rows.counts += [0] * (len(self.token_ids) - 1 - len(rows.counts))
        rows.counts.append(len(ids))
        rows.ids += ids
        rows.values += values
        rows.pieces += pieces

    def clear(self) -> None:
        """Everything in `text` and `token_ids` was sent."""
        self.text = ""
        self.token_ids = []
        self.logprobs = None


@dataclass(slots=True)
class Ending:
    """How a sequence ended here, kept until the scheduler's Tail has come."""

    sequence: Sequence  # gets no more tokens; what it has not sent yet goes with the Tail
    time_ns: int  # of the step that brought its last token
    stop_string: str | None
    refusal: Refusal | None  # why its text cannot be made, when it ended for that

    def complete(self, tail: Tail) -> Tail:
        """The scheduler's Tail, which may count tokens past the end and give another reason, as clients see it."""
        return replace(
            tail,
            reason=STOP if self.refusal is None else ERROR,
            completion_tokens=self.sequence.num_tokens,
            finished_ns=self.time_ns,
            stop_token=None,
            stop_string=self.stop_string,
            refusal=self.refusal,
        )
