"""The bounds of the queue, and what a refused client is told about when to come again."""

from __future__ import annotations

import pytest

from ipc.codec import Ids
from ipc.config import SchedulerConfig, section
from ipc.control_messages import RunnerReady
from ipc.messages import Output, Sampling, Submit
from ipc.options import complete
from scheduler_proc.admission import Admission
from scheduler_proc.drain_rate import DrainRate
from scheduler_proc.tally import Tally

S = 1_000_000_000
RUNNER = RunnerReady(num_blocks=10, block_size=16, max_model_len=160, max_num_seqs=4, eos_token_ids=Ids("i", [0]))


def admission(**options: int) -> Admission:
    return Admission(section(SchedulerConfig, complete(options)), RUNNER, Tally())


def submit(tokens: int, n: int = 1) -> Submit:
    return Submit(1, "", n, Ids("i", [1] * tokens), Sampling(max_tokens=1), Output(), 0, "", 0, 0, None)


@pytest.mark.parametrize(
    ("options", "queued", "queued_tokens", "tokens", "status"),
    [
        ({"max_num_queued_reqs": 3}, 2, 20, 10, None),
        ({"max_num_queued_reqs": 3}, 3, 30, 10, 429),
        ({"max_num_queued_tokens": 100}, 9, 90, 10, None),
        ({"max_num_queued_tokens": 100}, 9, 91, 10, 429),
        ({"max_num_queued_tokens": 100}, 0, 0, 101, None),  # it waits for nobody
        ({}, 9, 16 * 160 - 10, 10, None),
        ({}, 9, 16 * 160 - 9, 10, 429),
        ({}, 0, 0, 160, 400),
    ],
)
def test_bounds(options: dict[str, int], queued: int, queued_tokens: int, tokens: int, status: int | None) -> None:
    refusal = admission(**options).refusal(submit(tokens), queued, queued_tokens, 5 * S)
    assert (refusal.status if refusal else None) == status
    if status == 429:
        assert refusal is not None
        assert 1000 <= refusal.retry_after_ms <= 120_000


def test_the_answer_is_how_long_those_in_front_take() -> None:
    rate = DrainRate()
    for tenth in range(100):  # ten requests of 30 tokens a second
        rate.left(30, 100 * S + tenth * S // 10)
    now = 110 * S
    assert rate.retry_after_s(200, 200 * 30, now) == pytest.approx(20, rel=0.1)
    assert rate.retry_after_s(200, 200 * 60, now) == pytest.approx(40, rel=0.1)
    assert rate.retry_after_s(1, 30, now) == 1.0
    assert rate.retry_after_s(1_000_000, 30_000_000, now) == 120.0


def test_a_rate_that_is_not_known() -> None:
    rate = DrainRate()
    assert rate.retry_after_s(5, 50, 3 * S) == 10.0
    rate.left(10, 4 * S)
    assert rate.retry_after_s(8, 80, 4 * S) == 4.0  # one in the half second that was looked at
    assert rate.retry_after_s(8, 80, 60 * S) == 10.0, "that was long ago"
