"""Rows of the columns that log-probabilities travel in."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from ipc.codec import Ids
from ipc.messages import Logprobs


def select_rows(logprobs: Logprobs, rows: Iterable[int]) -> Logprobs:
    """Only the given rows, in the given order."""
    ends = list(accumulate(logprobs.counts))
    chosen = Logprobs(counts=[], ids=Ids("i"), values=[], pieces=[])
    for row in rows:
        start, end = ends[row] - logprobs.counts[row], ends[row]
        chosen.counts.append(logprobs.counts[row])
        chosen.ids += logprobs.ids[start:end]
        chosen.values += logprobs.values[start:end]
        chosen.pieces += logprobs.pieces[start:end]
    return chosen
