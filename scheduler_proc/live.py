"""What the scheduler shows of this moment to somebody who watches: sequences, steps in flight, the map of blocks."""

from __future__ import annotations

from itertools import islice
from typing import Any

from scheduler_proc.blocks import BlockPool
from scheduler_proc.figures import counts
from scheduler_proc.scheduler import Scheduler
from scheduler_proc.step import Step

MAX_SEQUENCES = 256
MAX_CELLS = 1024  # of the map


def live_view(scheduler: Scheduler) -> dict[str, Any]:
    """One snapshot. Its cost is bounded, however much there is: a fraction of a millisecond."""
    pool, planner, residents = scheduler.residents.pool, scheduler.planner, scheduler.residents
    numbers = counts(scheduler)
    return {
        "queues": {
            "waiting": numbers["waiting"],
            "held": numbers["held"],
            "prefill": numbers["running_prefill"],
            "decode": numbers["running_decode"],
            "decode_ready": numbers["ready_decode"],
            "sequences": numbers["sequences"],
        },
        "batch": {
            "budget": scheduler.config.max_num_batched_tokens,
            "slots": len(residents.free_slots) + len(residents.sequences),
            "lanes": scheduler.runner.lanes,
            "steps": planner.next_step,
            "in_flight": [describe(step) for step in planner.in_flight.values()],
            "last": describe(scheduler.last_step) if scheduler.last_step else None,
        },
        "blocks": block_map(pool),
        "sequences": [
            {
                "rid": sequence.rid,
                "id": sequence.request_id,
                "choice": sequence.choice,
                "state": sequence.state.value,
                "prompt_tokens": sequence.prompt_len,
                "cached_tokens": sequence.cached_tokens,
                "computed_tokens": sequence.num_computed,
                "output_tokens": sequence.num_output,
                "blocks": len(sequence.blocks),
                "preemptions": sequence.preemptions,
                "received_ns": sequence.received_ns,
                "tokenized_ns": sequence.tokenized_ns,
                "queued_ns": sequence.queued_ns,
                "scheduled_ns": sequence.scheduled_ns,
                "first_token_ns": sequence.first_token_ns,
            }
            for sequence in islice(scheduler.sequences, MAX_SEQUENCES)
        ],
    }


def describe(step: Step) -> dict[str, int]:
    """What a step holds."""
    tokens = step.size
    return {
        "step": step.number,
        "prefills": len(step.prefills),
        "decodes": len(step.decodes) + len(step.others) - len(step.prefills),
        "prefill_tokens": step.num_prefill_tokens,
        "decode_tokens": tokens - step.num_prefill_tokens,
    }


def block_map(pool: BlockPool) -> dict[str, Any]:
    """How many blocks are in which state, and a map: a digit for every block, or for every n-th if there are many.

    0 is free, 1 cached, 2 in use, 3 in use by several sequences. `blocks_a_cell` is how many blocks a digit stands for:
    it shows the state of the first of them.
    """
    stride = -(-pool.num_blocks // MAX_CELLS)
    return {
        "total": pool.num_blocks,
        "block_size": pool.block_size,
        "free": pool.num_free,
        "cached": pool.num_cached,
        "in_use": pool.num_in_use,
        "shared": pool.num_shared,
        "blocks_a_cell": stride,
        "cells": "".join(map(str, pool.states(stride))),
    }
