"""How a step's attention is cut and grouped, before any kernel runs."""

from __future__ import annotations

import numpy as np
import pytest

from model_proc.attention.decode_parts import MIN_PART, cut_parts, max_parts
from model_proc.attention.dense_prefill import group_prompts

NUM_SMS = 132


@pytest.mark.parametrize("kv_heads", [1, 8])
@pytest.mark.parametrize("batch", [1, 3, 64, 256])
@pytest.mark.parametrize("longest", [1, 65, 1000, 40000])
def test_parts_cover_every_cached_token_once(longest: int, batch: int, kv_heads: int) -> None:
    contexts = np.random.default_rng(batch).integers(1, longest, size=batch, endpoint=True)
    sequences, numbers, length = cut_parts(contexts, kv_heads, NUM_SMS)
    assert length % MIN_PART == 0
    assert len(sequences) <= max_parts(batch, kv_heads, NUM_SMS)
    for index, context in enumerate(contexts):
        mine = numbers[sequences == index]
        assert mine.tolist() == list(range(max(1, -(-(int(context) - 1) // length))))
    places = {int(index): np.flatnonzero(sequences == index) for index in range(batch)}
    assert all(np.ptp(place) == len(place) - 1 for place in places.values()), "a sequence's parts stand side by side"
    assert (np.diff(contexts[sequences]) <= 0).all(), "the longest first"


def test_a_graph_of_any_size_has_room_for_the_parts_of_fewer_sequences() -> None:
    sizes = [max_parts(batch, 8, NUM_SMS) for batch in range(1, 300)]
    assert sizes == sorted(sizes)


def test_whole_prompts_are_grouped_by_padded_length() -> None:
    lengths = np.array([1024, 0, 2048, 1000, 30, 1024, 1100, 2040, 9000])
    groups, places = group_prompts(lengths)
    assert {(group.count, group.length) for group in groups} == {(2, 1024), (1, 1024), (2, 2048)}
    assert [index for index, _ in places] == [0, 3, 5, 2, 7]  # 1100 would be padded by half, 9000 is too long
    rows = sorted((row, 2048 if lengths[index] > 1024 else 1024) for index, row in places)
    assert [row for row, _ in rows] == [0, *np.cumsum([length for _, length in rows])[:-1]]
    for group in groups:
        assert group.start in dict(rows)
