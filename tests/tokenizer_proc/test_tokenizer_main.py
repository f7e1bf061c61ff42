"""The tokenizer's loop over real sockets, with a template that takes its time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from ipc import mock_vocabulary
from ipc.config import RingConfig, TokenizerConfig
from ipc.control_messages import ModelFiles, Ready, Shutdown
from ipc.messages import Abort, Detokenize, Generate, LookUp, Output, Sampling, Submit, Tokenize
from ipc.process import FatalError, Process
from ipc.sockets import Inbox, Outbox
from tokenizer_proc.main import serve
from tokenizer_proc.pool import Pool

EPOCH = 3
MOCK = ModelFiles("mock", "", "", mock_vocabulary.MAX_MODEL_LEN, mock_vocabulary.VOCAB_SIZE, {})


class Ring:
    """A tokenizer in a thread, and its neighbours' inboxes."""

    def __init__(self, run_dir: Path, chat_template: str = "") -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        names = ("supervisor", "scheduler", "gateway")
        self.inboxes = {name: Inbox(self.context, str(run_dir), name, EPOCH) for name in names}
        config = TokenizerConfig(tokenizer_threads=1, chat_template=chat_template)
        self.process = Process("tokenizer", RingConfig(str(run_dir), EPOCH, "info"), config)
        self.outbox = Outbox(self.context, str(run_dir), "tokenizer", EPOCH)
        self.failure: Exception | None = None
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        try:
            serve(self.process)
        except FatalError as error:
            self.failure = error

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


def generate(rid: int, text: str | None, chat: dict[str, object] | None = None) -> Generate:
    return Generate(rid, "name", 1, text, None, chat, Sampling(), Output(), 0, "", 1)


def test_requests_and_look_ups(ring: Ring) -> None:
    ring.outbox.send(MOCK)
    assert ring.receive("supervisor") == [Ready("tokenizer", {})]
    ring.outbox.send(generate(1, "Hello you"))
    [submit] = ring.receive("scheduler")
    assert isinstance(submit, Submit)
    assert submit.token_ids == mock_vocabulary.encode("Hello you")
    ring.outbox.send(generate(2, None, {"messages": [{"role": "user", "content": "Hi"}]}))
    [submit] = ring.receive("scheduler")
    assert isinstance(submit, Submit)
    assert submit.token_ids == mock_vocabulary.encode("user: Hi\nassistant:")
    ring.outbox.send(Tokenize(3, "x" * 1000, None, True))
    [answer] = ring.receive("gateway")
    assert answer == LookUp(3, "", mock_vocabulary.encode("x" * 1000), None)
    ring.outbox.send(Detokenize(4, mock_vocabulary.encode("Hell")))
    assert ring.receive("gateway") == [LookUp(4, "Hell", mock_vocabulary.encode("")[:0], None)]


def test_a_slow_template_delays_nobody_elses_abort(tmp_path: Path) -> None:
    template = tmp_path / "slow.jinja"
    template.write_text("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    ring = Ring(tmp_path, str(template))
    ring.outbox.send(MOCK)
    ring.receive("supervisor")
    ring.outbox.send(generate(1, None, {"messages": [{"role": "user", "content": "Hi"}]}))
    ring.outbox.send(Abort([1]))
    ring.outbox.send(Abort([2]))
    # The template would run for hours. It is the time limit that ends it, and the shutdown does not wait for that.
    sent = ring.receive("scheduler")
    ring.close()
    assert sent == [Abort([2])]
    assert not ring.thread.is_alive()


def test_shutdown_before_the_model_is_known(ring: Ring) -> None:
    ring.shut_down()
    assert not ring.thread.is_alive()


def test_a_tokenizer_that_cannot_be_read_is_fatal(ring: Ring, tmp_path: Path) -> None:
    ring.outbox.send(ModelFiles("name", str(tmp_path), str(tmp_path), 100, 100, {}))
    ring.thread.join(timeout=20)
    assert isinstance(ring.failure, FatalError)
    assert str(tmp_path / "tokenizer.json") in str(ring.failure)


class TestPool:
    def test_threads_work_at_the_same_time(self, tmp_path: Path) -> None:
        """Two questions that wait for each other."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        inbox = Inbox(context, str(tmp_path), "tokenizer", EPOCH)
        barrier = threading.Barrier(2, timeout=20)

        def answer(question: Abort) -> Abort:
            barrier.wait()
            return question

        pool = Pool(2, answer, Outbox(context, str(tmp_path), "tokenizer", EPOCH))
        pool.ask(Abort([1]))
        pool.ask(Abort([2]))
        answers = inbox.receive(timeout_s=20)
        while len(answers) < 2:
            answers += inbox.receive(timeout_s=20)
        assert sorted(message.rids for message in answers) == [[1], [2]]
        pool.close()
        inbox.close()
        context.term()

    def test_closing_does_not_wait_for_a_thread_at_work(self, tmp_path: Path) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        inbox = Inbox(context, str(tmp_path), "tokenizer", EPOCH)
        at_work, go_on, done = threading.Event(), threading.Event(), threading.Event()

        def answer(question: Abort) -> Abort:
            at_work.set()
            go_on.wait(timeout=20)
            done.set()
            return question

        pool = Pool(1, answer, Outbox(context, str(tmp_path), "tokenizer", EPOCH))
        pool.ask(Abort([1]))
        assert at_work.wait(timeout=20)
        pool.close()
        inbox.close()
        context.term()  # returns only when every socket is closed
        assert not done.is_set()
        go_on.set()
        assert done.wait(timeout=20)
