"""The detokenizer's process: tokens in, text out. The only file of this room that touches sockets."""

from __future__ import annotations

import logging
import time
from typing import Any

from detok_proc.detokenizer import Detokenizer
from detok_proc.vocabulary import load_vocabulary
from ipc.control_messages import Held, Lost, ModelFiles
from ipc.messages import StopHit, Text, Tokens
from ipc.names import gateway_name
from ipc.process import Process
from ipc.spans import DETOKENIZE

log = logging.getLogger(__name__)


def serve(process: Process) -> None:
    """Wait to be told which model it is, then turn tokens into text until shutdown."""
    loop = Loop(process)
    while process.running:
        for message in process.receive():
            loop.handle(message)


class Loop:
    """What this process does with a message. What comes before the model is known waits until it is."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._detokenizer: Detokenizer | None = None
        self._early: list[Any] = []
        self._next_tokens = 0  # number of the Tokens that must come next
        self._sent: dict[str, int] = {}  # how many Texts each gateway's run has been sent

    def handle(self, message: Any) -> None:
        if type(message) is ModelFiles:
            self._detokenizer = Detokenizer(load_vocabulary(message))
            self._process.ready()
            early, self._early = self._early, []
            for each in early:
                self._handle(self._detokenizer, each)
        elif self._detokenizer is None:
            self._early.append(message)
        else:
            self._handle(self._detokenizer, message)

    def _handle(self, detokenizer: Detokenizer, message: Any) -> None:
        process, spans = self._process, self._process.spans
        match message:
            case Tokens():
                if message.number != self._next_tokens:
                    # Texts would lack words, and some never end: only a new start helps.
                    raise RuntimeError(f"tokens {self._next_tokens} are missing, {message.number} came instead")
                self._next_tokens += 1
                begun = time.monotonic_ns() if spans.on else 0
                outgoing = detokenizer.handle(message)
                for gateway, text in outgoing.texts.items():
                    self._send(gateway_name(gateway), text)
                if outgoing.stopped:
                    process.peer("scheduler").send(StopHit(outgoing.stopped))
                if begun:
                    spans.add(DETOKENIZE, begun, message.time_ns, len(message.rids))
            case Held():  # behind the Tails of what the scheduler holds no more
                for name in process.names("gateway"):
                    process.peer(name).send(message)
            case Lost(process="scheduler"):
                detokenizer.clear()  # their gateways end them
                self._next_tokens = 0
            case Lost():  # the scheduler ends what has to end
                self._sent.pop(message.process, None)
            case _:
                log.warning("dropped a %s: not expected here", type(message).__name__)
        process.stats = detokenizer.stats()

    def _send(self, gateway: str, text: Text) -> None:
        text.number = self._sent.get(gateway, 0)
        self._sent[gateway] = text.number + 1
        self._process.peer(gateway).send(text)
