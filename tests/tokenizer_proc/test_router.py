"""The order in which messages leave, and what is answered at once."""

from __future__ import annotations

from typing import Any

import pytest

from ipc.codec import Ids, Map
from ipc.messages import Abort, Detokenize, Generate, LookUp, Output, Sampling, StopHit, Submit, Tokenize
from ipc.names import RID_BITS
from tokenizer_proc.preparer import Answer, Question
from tokenizer_proc.router import MAX_INLINE_CHARS, MAX_INLINE_IDS, Router

SHORT, LONG = "short", "long " * MAX_INLINE_CHARS


def generate(rid: int, text: str | None = None, ids: Ids | None = None, n: int = 1) -> Generate:
    chat: Map | None = {"messages": []} if text is None and ids is None else None
    return Generate(rid, "name", n, text, ids, chat, Sampling(), Output(), 0, "", 1)


def answer(question: Question) -> Answer:
    if isinstance(question, Generate):
        return Submit(question.rid, "", question.n, Ids("i", [1, 2]), Sampling(), Output(), 0, "", 1, 2, None)
    return LookUp(question.rid, "", Ids("i"), None)


class Bench:
    """A router whose pool works when told to."""

    def __init__(self) -> None:
        self.in_pool: list[Question] = []
        self.sent: list[tuple[str, Any]] = []
        self.router = Router(answer, self.in_pool.append, lambda name, message: self.sent.append((name, message)))

    def finish(self, question: Question) -> None:
        self.in_pool.remove(question)
        self.router.handle(answer(question))

    def sent_briefly(self) -> list[Any]:
        """What went to the scheduler: the rid of a request, the list of an abort's rids."""
        assert all(name == "scheduler" for name, _ in self.sent)
        return [message.rids if isinstance(message, Abort) else message.rid for _, message in self.sent]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_short_requests_are_answered_at_once(bench: Bench) -> None:
    bench.router.handle(generate(1, SHORT))
    bench.router.handle(generate(2, ids=Ids("i", [5] * 100_000)))
    assert bench.sent_briefly() == [1, 2]
    assert bench.in_pool == []


def test_long_texts_and_chats_go_to_the_pool(bench: Bench) -> None:
    long, chat = generate(1, LONG), generate(2)
    bench.router.handle(long)
    bench.router.handle(chat)
    assert (bench.in_pool, bench.sent) == ([long, chat], [])
    bench.finish(chat)
    bench.finish(long)
    assert bench.sent_briefly() == [2, 1]


def test_an_abort_waits_for_its_own_request_only(bench: Bench) -> None:
    slow, other = generate(1), generate(2)
    bench.router.handle(slow)
    bench.router.handle(other)
    bench.router.handle(generate(3, SHORT))
    bench.router.handle(Abort([1]))
    bench.router.handle(Abort([3]))
    bench.finish(other)
    bench.router.handle(Abort([2]))
    assert bench.sent_briefly() == [3, [3], 2, [2]]
    bench.finish(slow)
    assert bench.sent_briefly() == [3, [3], 2, [2], 1, [1]]


def test_an_abort_of_several_is_parted(bench: Bench) -> None:
    slow = generate(1)
    bench.router.handle(slow)
    bench.router.handle(Abort([7, 1, 8]))
    assert bench.sent_briefly() == [[7, 8]]
    bench.finish(slow)
    assert bench.sent_briefly() == [[7, 8], 1, [1]]


def test_aborts_of_single_choices_wait_together(bench: Bench) -> None:
    slow = generate(10, n=3)
    bench.router.handle(slow)
    bench.router.handle(Abort([12]))
    bench.router.handle(Abort([11, 13]))
    bench.finish(slow)
    bench.router.handle(Abort([10]))
    assert bench.sent_briefly() == [[13], 10, [12, 11], [10]]


def test_nothing_is_remembered_of_what_has_left(bench: Bench) -> None:
    slow = generate(10, n=3)
    bench.router.handle(slow)
    assert bench.router.stats() == {"in_pool": 3, "requests": 1, "prompt_tokens": 0}
    bench.router.handle(Abort([11]))
    bench.finish(slow)
    assert bench.router.stats() == {"in_pool": 0, "requests": 1, "prompt_tokens": 2}


def test_look_ups_go_back_to_the_gateway_that_asked(bench: Bench) -> None:
    there = (2 << RID_BITS) + 5
    long = Tokenize(there + 1, LONG, None, True)
    bench.router.handle(Tokenize(4, SHORT, None, True))
    bench.router.handle(Detokenize(there, Ids("i", [1])))
    bench.router.handle(long)
    bench.router.handle(Tokenize(6, None, {"messages": []}, True))
    bench.router.handle(Detokenize(7, Ids("i", [1] * (MAX_INLINE_IDS + 1))))
    assert len(bench.in_pool) == 3
    bench.finish(long)
    assert [(name, message.rid) for name, message in bench.sent] == [
        ("gateway", 4),
        ("gateway.2", there),
        ("gateway.2", there + 1),
    ]


def test_other_messages_are_dropped(bench: Bench) -> None:
    bench.router.handle(StopHit([1]))
    assert bench.sent == []
