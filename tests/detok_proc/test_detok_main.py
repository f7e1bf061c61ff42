"""The detokenizer's loop over real sockets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from detok_proc.main import Loop, serve
from ipc import mock_vocabulary
from ipc.codec import Ids
from ipc.config import DetokenizerConfig, RingConfig
from ipc.control_messages import Held, Lost, ModelFiles, Ready, Shutdown
from ipc.messages import STOP, Head, Output, StopHit, Tail, Text, Tokens
from ipc.names import RID_BITS
from ipc.process import Process
from ipc.sockets import Inbox, Outbox

EPOCH = 3
MOCK = ModelFiles("mock", "", "", 100, mock_vocabulary.VOCAB_SIZE, {})


class Ring:
    """A detokenizer in a thread, and its neighbours' inboxes."""

    def __init__(self, run_dir: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        names = ("supervisor", "scheduler", "gateway", "gateway.2")
        self.inboxes = {name: Inbox(self.context, str(run_dir), name, EPOCH) for name in names}
        self.process = Process("detokenizer", RingConfig(str(run_dir), EPOCH, "info"), DetokenizerConfig())
        self.outbox = Outbox(self.context, str(run_dir), "detokenizer", EPOCH)
        self.thread = threading.Thread(target=serve, args=(self.process,), daemon=True)
        self.thread.start()

    def receive(self, name: str) -> list[object]:
        return self.inboxes[name].receive(timeout_s=20)

    def shut_down(self) -> None:
        self.outbox.send(Shutdown())
        self.thread.join(timeout=20)

    def close(self) -> None:
        self.shut_down()
        self.process.close()
        self.outbox.close()
        for inbox in self.inboxes.values():
            inbox.close()
        self.context.term()


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    ring = Ring(tmp_path)
    yield ring
    ring.close()


def test_ready_after_the_model_is_known_then_text_and_stop_hits(ring: Ring) -> None:
    ring.outbox.send(MOCK)
    assert ring.receive("supervisor") == [Ready("detokenizer", {})]
    there = 2 << RID_BITS
    heads = [Head(rid, Output(stop=stop), 1, 0, 1, 1, 1, 1) for rid, stop in ((1, []), (there, ["request "]))]
    ring.outbox.send(Tokens(heads, [1, there], Ids("i", [1, 2]), None, [], 50))
    [text] = ring.receive("gateway")
    assert isinstance(text, Text)
    assert (text.rids, text.texts, text.time_ns) == ([1], ["A "], 50)
    [other] = ring.receive("gateway.2")
    assert isinstance(other, Text)
    assert ([head.rid for head in other.heads], other.tails) == ([there], [])
    assert ring.receive("scheduler") == [StopHit([there])]
    ring.outbox.send(Tokens([], [], Ids("i"), None, [Tail(there, STOP, 1, 50, 55)], 55, number=1))
    [other] = ring.receive("gateway.2")
    assert isinstance(other, Text)
    assert [(tail.stop_string, tail.finished_ns) for tail in other.tails] == [("request ", 50)]
    ring.outbox.send(Tokens([], [1], Ids("i", [3]), None, [], 60, number=2))
    ring.receive("gateway")
    assert ring.process.stats["sequences"] == 1


def test_missing_tokens_end_the_process(tmp_path: Path) -> None:
    """Its successor begins anew, and the sequences that it had end with an error."""
    process = Process("detokenizer", RingConfig(str(tmp_path), EPOCH, "info"), DetokenizerConfig())
    loop = Loop(process)
    loop.handle(MOCK)
    loop.handle(Tokens([Head(1, Output(), 1, 0, 1, 1, 1, 1)], [1], Ids("i", [1]), None, [], 50))
    with pytest.raises(RuntimeError, match="tokens 1 are missing, 2 came instead"):
        loop.handle(Tokens([], [1], Ids("i", [3]), None, [], 60, number=2))
    process.close()


def test_what_comes_before_the_model_is_known_waits_for_it(ring: Ring) -> None:
    """A detokenizer that is back: the scheduler has gone on meanwhile."""
    ring.outbox.send(Tokens([Head(1, Output(), 1, 0, 1, 1, 1, 1)], [1], Ids("i", [1]), None, [], 50))
    ring.outbox.send(MOCK)
    [text] = ring.receive("gateway")
    assert isinstance(text, Text)
    assert text.texts == ["A "]


def test_after_the_loss_of_the_scheduler_nothing_of_its_sequences_is_left(ring: Ring) -> None:
    ring.outbox.send(MOCK)
    ring.outbox.send(Tokens([Head(1, Output(), 1, 0, 1, 1, 1, 1)], [1], Ids("i", [1]), None, [], 50))
    ring.receive("gateway")
    ring.outbox.send(Lost("scheduler", 8, 9))
    ring.outbox.send(Held("tokenizer", 8, 0, [5]))  # handed on behind everything before it
    assert ring.receive("gateway") == [Held("tokenizer", 8, 0, [5])]
    assert ring.process.stats["sequences"] == 0


def test_shutdown_before_the_model_is_known(ring: Ring) -> None:
    ring.shut_down()
    assert not ring.thread.is_alive()
