"""A step's Tokens, split for several detokenizers: nothing is lost, doubled, reordered or sent to the wrong one."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ipc.codec import Ids
from ipc.messages import LENGTH, Head, Logprobs, Output, Reading, Tail, Tokens
from ipc.names import share_of
from scheduler_proc.width import split

RIDS = st.integers(1, 1 << 62)


def rows_of(tokens: Tokens) -> list[Any]:
    rows, start = [], 0
    for row, (rid, token_id) in enumerate(zip(tokens.rids, tokens.token_ids, strict=True)):
        entries: Any = None
        if tokens.logprobs is not None:
            end = start + tokens.logprobs.counts[row]
            entries = (list(tokens.logprobs.ids[start:end]), tokens.logprobs.values[start:end])
            start = end
        rows.append((rid, token_id, entries))
    return rows


@st.composite
def steps(draw: st.DrawFn) -> Tokens:
    rids = draw(st.lists(RIDS, max_size=12))
    logprobs = None
    if draw(st.booleans()):
        counts = [draw(st.integers(0, 3)) for _ in rids]
        total = sum(counts)
        logprobs = Logprobs(counts, Ids("i", range(total)), [-0.5 * entry for entry in range(total)])
    heads = [Head(rid, Output(), 1, 0, 0, 0, 0, 0) for rid in draw(st.lists(RIDS, max_size=4))]
    tails = [Tail(rid, LENGTH, 1, 0, 0) for rid in draw(st.lists(RIDS, max_size=4))]
    readings = [Reading(rid, 0, Logprobs(), []) for rid in draw(st.lists(RIDS, max_size=4))]
    return Tokens(heads, rids, Ids("i", range(len(rids))), logprobs, tails, 17, readings)


@given(steps(), st.integers(1, 5))
def test_each_detokenizer_gets_exactly_what_is_its_own_in_order(tokens: Tokens, workers: int) -> None:
    parts = split(tokens, workers)
    for share in range(workers):
        part = parts.get(share, Tokens([], [], Ids("i"), None, [], 17))

        def own(things: list[Any], share: int = share) -> list[Any]:
            return [thing for thing in things if share_of(thing.rid, workers) == share]

        assert rows_of(part) == [row for row in rows_of(tokens) if share_of(row[0], workers) == share]
        assert part.heads == own(tokens.heads)
        assert part.tails == own(tokens.tails)
        assert part.readings == own(tokens.readings)
        assert part.time_ns == 17
