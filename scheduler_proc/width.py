"""One step's Tokens for several detokenizers: each gets the rows, Heads and Tails of the sequences that it has."""

from __future__ import annotations

from ipc.codec import Ids
from ipc.messages import Logprobs, Tokens
from ipc.names import share_of


def split(tokens: Tokens, workers: int) -> dict[int, Tokens]:
    """A message for each detokenizer that has something in it, by its index.

    Rows, Heads and Tails stay in their order, so that a sequence is told by its own detokenizer as it was by one alone.
    """
    parts: dict[int, Tokens] = {}

    def part_of(rid: int) -> Tokens:
        share = share_of(rid, workers)
        if share not in parts:
            logprobs = None if tokens.logprobs is None else Logprobs()
            parts[share] = Tokens([], [], Ids("i"), logprobs, [], tokens.time_ns)
        return parts[share]

    for head in tokens.heads:
        part_of(head.rid).heads.append(head)
    start = 0
    for row, (rid, token_id) in enumerate(zip(tokens.rids, tokens.token_ids, strict=True)):
        part = part_of(rid)
        part.rids.append(rid)
        part.token_ids.append(token_id)
        if tokens.logprobs is not None and part.logprobs is not None:
            start = _move_row(tokens.logprobs, row, start, part.logprobs)
    for reading in tokens.readings:
        part_of(reading.rid).readings.append(reading)
    for tail in tokens.tails:
        part_of(tail.rid).tails.append(tail)
    return parts


def _move_row(source: Logprobs, row: int, start: int, target: Logprobs) -> int:
    """Append a row, whose entries begin at `start`, to another table; where the next row's entries begin."""
    end = start + source.counts[row]
    target.counts.append(source.counts[row])
    target.ids.extend(source.ids[start:end])
    target.values.extend(source.values[start:end])
    target.pieces.extend(source.pieces[start:end])
    return end
