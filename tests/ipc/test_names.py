"""Which of several workers has a request."""

from __future__ import annotations

import pytest

from ipc.names import first_rid, share_of


@pytest.mark.parametrize("workers", [2, 3, 4, 7])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8, 128])
def test_requests_are_spread_evenly_whatever_their_number_of_choices(workers: int, stride: int) -> None:
    first, count = first_rid(1, 9), 4000
    counts = [0] * workers
    for index in range(count):
        counts[share_of(first + index * stride, workers)] += 1
    assert all(abs(share - count / workers) < 0.2 * count / workers for share in counts)


def test_one_worker_has_everything() -> None:
    assert {share_of(rid, 1) for rid in range(1000)} == {0}
