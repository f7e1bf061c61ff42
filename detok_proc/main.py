"""The detokenizer's process: tokens in, text out. The only file of this room that touches sockets."""

from __future__ import annotations

import logging

from detok_proc.detokenizer import Detokenizer
from detok_proc.vocabulary import load_vocabulary
from ipc.messages import ModelFiles, StopHit, Tokens, gateway_name
from ipc.process import Process

log = logging.getLogger(__name__)


def serve(process: Process) -> None:
    """Wait to be told which model it is, then turn tokens into text until shutdown."""
    detokenizer: Detokenizer | None = None
    scheduler = process.peer("scheduler")
    while process.running:
        for message in process.receive():
            if type(message) is ModelFiles:
                detokenizer = Detokenizer(load_vocabulary(message))
                process.ready()
            elif type(message) is Tokens and detokenizer is not None:
                outgoing = detokenizer.handle(message)
                for gateway, text in outgoing.texts.items():
                    process.peer(gateway_name(gateway)).send(text)
                if outgoing.stopped:
                    scheduler.send(StopHit(outgoing.stopped))
            else:
                log.warning("dropped a %s: not expected here, or too early", type(message).__name__)
        if detokenizer is not None:
            process.stats = detokenizer.stats()
