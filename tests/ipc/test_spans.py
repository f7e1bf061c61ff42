"""The recorder of spans, and how a recording travels."""

from __future__ import annotations

import threading
import time

from ipc.codec import decode, encode
from ipc.control_messages import SpanChunk
from ipc.profiling import CHUNK_BYTES, CHUNK_ROWS, chunks
from ipc.spans import CAPACITY, PLAN, TEXT, Recording, Spans


def test_spans_come_out_in_the_order_of_their_ends() -> None:
    spans = Spans()
    assert not spans.on
    spans.start()
    spans.put(PLAN, 1, 5, 7, 8)
    before = time.monotonic_ns()
    spans.add(TEXT, 2, 9)
    recording = spans.stop()
    assert not spans.on
    assert recording.rows[0] == (PLAN, 1, 5, 7, 8)
    kind, begin, end, id, arg = recording.rows[1]
    assert (kind, begin, id, arg) == (TEXT, 2, 9, 0)
    assert before <= end <= time.monotonic_ns()
    assert recording.dropped == 0


def test_the_last_spans_are_kept_when_there_are_too_many() -> None:
    spans = Spans()
    spans.start()
    for number in range(CAPACITY + 3):
        spans.put(TEXT, number, number, number)
    recording = spans.stop()
    assert recording.dropped == 3
    assert [row[3] for row in recording.rows] == list(range(3, CAPACITY + 3))


def test_a_new_recording_knows_nothing_of_the_one_before() -> None:
    spans = Spans()
    spans.start(step_limit=2)
    spans.put(TEXT, 1, 1, 1)
    spans.step_planned()
    assert not spans.limit_reached
    spans.step_planned()
    assert spans.limit_reached
    spans.stop()
    spans.start()
    assert not spans.limit_reached
    assert spans.stop().rows == []


def test_threads_do_not_take_each_others_rows() -> None:
    spans = Spans()
    spans.start()

    def record(thread: int) -> None:
        for number in range(5000):
            spans.put(TEXT, 0, 0, thread * 5000 + number)

    threads = [threading.Thread(target=record, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row[3] for row in spans.stop().rows) == list(range(20_000))


def test_a_recording_travels_in_frames_that_are_small_enough() -> None:
    rows = [(TEXT, number, number + 1, number, -1) for number in range(CHUNK_ROWS + 5)]
    detail = bytes(2 * CHUNK_BYTES + 1)
    sent = []
    for chunk in chunks("model", Recording(rows, 4), detail):
        frame = encode(chunk, 1)
        assert len(frame) < 16 << 20
        sent.append(decode(frame)[1])
    assert all(isinstance(chunk, SpanChunk) for chunk in sent)
    assert [chunk.last for chunk in sent] == [False, False, True]
    assert [begin for chunk in sent for begin in chunk.begins] == [row[1] for row in rows]
    assert b"".join(chunk.detail for chunk in sent) == detail
    assert {chunk.dropped for chunk in sent} == {4}


def test_a_process_that_recorded_nothing_says_so() -> None:
    [chunk] = chunks("detokenizer", Recording([], 0), b"")
    assert (chunk.last, chunk.kinds) == (True, [])
