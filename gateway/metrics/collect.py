"""Gathers the figures of all processes as they are now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.metrics.figures import Figures
from gateway.metrics.requests import RequestMetrics
from gateway.ring import RingView
from ipc.ledger import add_all
from ipc.names import room_of


def collect(ring: RingView, metrics: RequestMetrics, in_flight: Mapping[str, int]) -> Figures:
    """`metrics` and `in_flight` are this gateway's own.

    Where it has company, all gateways are summed up as they last reported, this one too: then the same counts come out
    whichever of them is asked, and none falls from one answer to the next.
    """
    ledger = ring.ledger
    gateways = ring.gateways
    requests: Mapping[str, Any] = metrics.export()
    if len(gateways) > 1:
        requests = add_all(ledger.counted(name).get("metrics", {}) for name in gateways)
        in_flight = add_all({"requests": ledger.of(name).get("requests", 0)} for name in gateways)
    names = ledger.processes

    def of_room(room: str) -> Mapping[str, Any]:
        """What the workers of a kind have counted, all together."""
        workers = [name for name in names if room_of(name) == room]
        return ledger.counted(workers[0]) if len(workers) == 1 else add_all(ledger.counted(name) for name in workers)

    return Figures(
        model_name=ring.names[0] if ring.names else "",
        states=ring.states,
        processes={name: ledger.of(name).get("process", {}) for name in names},
        counted={name: ledger.counted(name).get("process", {}) for name in names},
        progress={name: ring.progress(name) for name in names},
        scheduler_now=ledger.of("scheduler"),
        scheduler=ledger.counted("scheduler"),
        runner=ledger.counted("model"),
        tokenizer=of_room("tokenizer"),
        detokenizer=of_room("detokenizer"),
        requests=requests,
        in_flight=in_flight,
    )
