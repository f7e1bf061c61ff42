"""What the scheduler counts and shows: it must agree with what it did."""

from __future__ import annotations

from typing import Any

from scheduler_proc import figures
from scheduler_proc.blocks import BlockPool
from scheduler_proc.live import MAX_CELLS, block_map, live_view
from tests.scheduler_proc.test_planning import Bench


def run(**options: Any) -> Bench:
    """Six prompts of five tokens, and twenty tokens for each of them."""
    bench = Bench(**options)
    for rid in range(1, 7):
        bench.send(rid, 5, max_tokens=20)
    while bench.plan() is not None or bench.plans:
        while bench.plan() is not None:
            pass
        bench.answer()
    return bench


def test_steps_tokens_and_ends_add_up() -> None:
    stats = figures.stats(run().scheduler)
    tally = stats["tally"]
    assert tally["generated_tokens"] == 6 * 20
    assert tally["step_tokens"]["prefill"] == 6 * 5
    assert sum(tally["step_tokens"].values()) == tally["tokens_a_step"]["sum"]
    assert sum(tally["step_sequences"].values()) == tally["sequences_a_step"]["sum"]
    assert sum(tally["tokens_a_step"]["counts"]) == stats["steps"]
    assert sum(tally["queue_waits"]["step"]["counts"]) == stats["steps"]
    assert sum(tally["queue_waits"]["prefill"]["counts"]) == 6
    assert sum(tally["ends"].values()) == 6
    assert tally["budget_tokens"] == stats["steps"] * 32
    assert tally["step_tokens"]["decode"] == 6 * 19  # the first token of each is its prefill's
    assert tally["wasted_tokens"] == 0  # it is known beforehand where they end


def test_preemptions_wait_twice() -> None:
    stats = figures.stats(run(num_blocks=12).scheduler)
    tally = stats["tally"]
    assert stats["preemptions"] > 0
    assert sum(tally["queue_waits"]["preempted"]["counts"]) == stats["preemptions"]
    assert tally["held_for_blocks"] >= stats["preemptions"]


def test_a_full_queue_is_counted() -> None:
    bench = Bench(max_num_queued_reqs=2)
    for rid in range(4):
        bench.send(rid, 4)
    assert figures.stats(bench.scheduler)["tally"]["queue_full"] == 2
    assert figures.stats(bench.scheduler)["tally"]["ends"]["error"] == 2


def test_a_view_shows_sequences_steps_and_blocks() -> None:
    bench = Bench()
    bench.send(1, 8)
    bench.send(2, 8)
    bench.plan()
    view = live_view(bench.scheduler)
    assert view["queues"] == {
        "waiting": 0, "held": 0, "prefill": 2, "decode": 0, "decode_ready": 0, "sequences": 2,
    }  # fmt: skip
    assert view["batch"]["in_flight"] == [
        {"step": 0, "prefills": 2, "decodes": 0, "prefill_tokens": 16, "decode_tokens": 0}
    ]
    assert view["batch"]["last"] is None
    assert [(item["id"], item["state"]) for item in view["sequences"]] == [
        ("request-1", "prefill"), ("request-2", "prefill"),
    ]  # fmt: skip
    assert view["blocks"]["cells"] == "2222" + "0" * 60
    bench.answer()
    assert live_view(bench.scheduler)["queues"]["decode"] == 2


def test_the_map_tells_free_cached_held_and_shared_blocks_apart() -> None:
    pool = BlockPool(6, 4)
    blocks = pool.allocate(3)
    for number, block in enumerate(blocks):
        pool.register(block, bytes([number]))
    pool.share(blocks[:1])
    pool.release(blocks[2:])
    assert block_map(pool)["cells"] == "321000"
    assert block_map(pool)["shared"] == 1
    pool.share(blocks[:1])
    pool.release(blocks[:1])
    pool.release(blocks[:1])
    assert (block_map(pool)["cells"], block_map(pool)["shared"]) == ("221000", 0)
    pool.check()


def test_the_map_of_many_blocks_stays_small() -> None:
    shown = block_map(BlockPool(10 * MAX_CELLS + 1, 4))
    assert shown["blocks_a_cell"] == 11
    assert len(shown["cells"]) <= MAX_CELLS
