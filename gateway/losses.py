"""What the gateway remembers of lost processes, to find out which of its requests went with them."""

from __future__ import annotations

from ipc.control_messages import Held, Lost
from ipc.names import number_of, room_of, share_of


class Losses:
    """Brings together the two messages that follow a loss: the supervisor's Lost and the scheduler's Held.

    They come on different ways, in either order. Only with both is it certain which requests are gone: after the Lost
    nothing more is sent to the dead run, and what the scheduler has not got by the Held it will never get.
    """

    def __init__(self, tokenizers: tuple[int, ...], detokenizers: int) -> None:
        self.tokenizers = list(tokenizers)  # of each, the epoch of the run that requests are sent to
        self._detokenizers = detokenizers
        self._over: set[int] = set()  # epochs of runs that are known to be over
        self._waiting: list[Held] = []  # for their Lost

    def on_lost(self, lost: Lost) -> list[Held]:
        """What can be acted upon now."""
        self._over.add(lost.epoch)
        if room_of(lost.process) == "tokenizer":
            self.tokenizers[number_of(lost.process)] = lost.successor
        ready = [held for held in self._waiting if held.epoch in self._over]
        self._waiting = [held for held in self._waiting if held.epoch not in self._over]
        return ready

    def on_held(self, held: Held) -> bool:
        """Whether it can be acted upon now."""
        if held.epoch in self._over:
            return True
        self._waiting.append(held)
        return False

    def concerns(self, held: Held, rid: int, tokenizer: int) -> bool:
        """Whether a sequence that was sent to this run of a tokenizer can have gone with the process of `held`, and
        `held` would name it if it had not."""
        went_through = room_of(held.process) != "tokenizer" or tokenizer == held.epoch
        return went_through and share_of(rid, self._detokenizers) == held.share
