"""The scheduler in figures: what its process reports of itself, and where the sequences of a request are."""

from __future__ import annotations

from typing import Any

from scheduler_proc.life_cycle import State
from scheduler_proc.scheduler import Scheduler
from scheduler_proc.sequence import Sequence


def counts(scheduler: Scheduler) -> dict[str, int]:
    """How many sequences and steps are where, now."""
    residents, planner, waiting = scheduler.residents, scheduler.planner, scheduler.waiting
    num_sequences = len(scheduler.held())
    decoding = [sequence for sequence in residents.sequences if sequence.state is State.DECODE]
    return {
        "waiting": len(waiting),
        "waiting_tokens": waiting.num_tokens,
        "waiting_prefill": len(waiting),
        "held": num_sequences - len(waiting) - len(residents.sequences),
        "running": len(residents.sequences),
        "running_prefill": len(residents.sequences) - len(decoding),
        "running_decode": len(decoding),
        "ready_decode": sum(1 for sequence in decoding if sequence.last_step not in planner.in_flight),
        "sequences": num_sequences,
        "preparing": scheduler.grammars.num_waiting,
        "grammars": len(scheduler.grammars),
        "steps_in_flight": len(planner.in_flight),
        "lanes": scheduler.runner.lanes,
    }


def stats(scheduler: Scheduler) -> dict[str, Any]:
    """All figures of this moment, as plain data."""
    residents, pool, planner = scheduler.residents, scheduler.residents.pool, scheduler.planner
    return counts(scheduler) | {
        "steps": planner.next_step,
        "preemptions": planner.preemptions,
        "timeouts": scheduler.timeouts,
        "blocks_total": pool.num_blocks,
        "blocks_free": pool.num_free,
        "blocks_cached": pool.num_cached,
        "blocks_in_use": pool.num_in_use,
        "blocks_shared": pool.num_shared,
        "block_size": pool.block_size,
        "prefix_queries": residents.prefix_queries,
        "prefix_hits": residents.prefix_hits,
        "prefix_requests_hit": residents.prefix_requests_hit,
        "prefix_requests_missed": residents.prefix_requests_missed,
        "evictions": pool.evictions,
        "tally": scheduler.tally.export(),
    }


def inspect(scheduler: Scheduler, request_id: str, now: int) -> list[dict[str, Any]]:
    """Where the sequences of a request are: those that live, and those that ended lately."""
    living = [sequence for sequence in scheduler.sequences if sequence.request_id == request_id]
    in_flight, reports = scheduler.planner.in_flight, scheduler.reports

    def position(sequence: Sequence) -> int | None:
        return scheduler.waiting.position(sequence, now) if sequence.state is State.WAITING else None

    return reports.ended(request_id) + [
        reports.of(sequence) | {"in_step": sequence.last_step in in_flight, "queue_position": position(sequence)}
        for sequence in living
    ]
