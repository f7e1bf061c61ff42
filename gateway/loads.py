"""The figures of `GET /v1/loads` that have a name of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def runtime_stats(scheduler: Mapping[str, Any], in_flight: Mapping[str, int]) -> dict[str, int]:
    """How full the server is, from the scheduler's last figures and from what the gateway has in flight.

    name                 what it counts                                           mini-llm-serve's GetRuntimeStats
    prefill_queue_len    sequences that wait for their first step                 the same
    decode_queue_len     sequences that decode, and are in no step now            the same
    running_queue_len    sequences with a place in the running batch              -
    inflight_requests    HTTP requests for generation, not yet answered           the same
    inflight_batches     steps planned whose result has not come                  the same
    busy_lanes           steps that the runner may be working on (of its lanes)   busy_executors
    idle_lanes           the other lanes; a GPU has one, the mock --mock-lanes    idle_executors

    A scheduler that is still starting has no figures: they count as 0.
    """
    steps, lanes = scheduler.get("steps_in_flight", 0), scheduler.get("lanes", 0)
    busy = min(steps, lanes)
    return {
        "prefill_queue_len": scheduler.get("waiting_prefill", 0),
        "decode_queue_len": scheduler.get("ready_decode", 0),
        "running_queue_len": scheduler.get("running", 0),
        "inflight_requests": in_flight["requests"],
        "inflight_batches": steps,
        "busy_lanes": busy,
        "idle_lanes": lanes - busy,
    }
