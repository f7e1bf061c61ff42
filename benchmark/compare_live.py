"""Simulated runs beside live ones of the same experiment.

Means of several runs each: live ones scatter by as much as the simulator may be off. Whether two groups of requests end
in one step or in two is decided by a fraction of a millisecond, and what began apart stays apart for long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.console import Console
from rich.table import Table

from benchmark.report import Figures

# How far the simulator may be off: throughput by this share, mean TTFT by this share or by so many seconds.
MAX_SHARE = 0.05
MAX_TTFT_S = 0.005


@dataclass(frozen=True, slots=True)
class Comparison:
    """Deviations are those of the simulation from the live run."""

    scenario: str
    runs: int  # of each kind
    live_req_s: float
    simulated_req_s: float
    req_s_deviation: float  # as a share
    live_ttft_s: float
    simulated_ttft_s: float
    ttft_deviation: float
    agrees: bool


class NothingToCompareError(RuntimeError):
    """A run had no success."""


def compare(live: Sequence[Figures], simulated: Sequence[Figures]) -> Comparison:
    """How throughput and mean TTFT agree, as means over the runs of each kind. Raises NothingToCompareError."""
    live_req_s, simulated_req_s = _mean_req_s(live), _mean_req_s(simulated)
    live_ttft_s, simulated_ttft_s = _mean_ttft_s(live), _mean_ttft_s(simulated)
    req_s_deviation = simulated_req_s / live_req_s - 1
    ttft_deviation = simulated_ttft_s / live_ttft_s - 1
    close_ttft = abs(ttft_deviation) <= MAX_SHARE or abs(simulated_ttft_s - live_ttft_s) <= MAX_TTFT_S
    return Comparison(
        scenario=live[0].scenario,
        runs=len(live),
        live_req_s=live_req_s,
        simulated_req_s=simulated_req_s,
        req_s_deviation=req_s_deviation,
        live_ttft_s=live_ttft_s,
        simulated_ttft_s=simulated_ttft_s,
        ttft_deviation=ttft_deviation,
        agrees=abs(req_s_deviation) <= MAX_SHARE and close_ttft,
    )


def show_comparison(console: Console, found: Comparison) -> None:
    title = f"{found.scenario}: simulated against live, means of {found.runs} runs each"
    table = Table(title=title, title_justify="left")
    for column in ("figure", "live", "simulated", "deviation"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    table.add_row(
        "req/s", f"{found.live_req_s:.2f}", f"{found.simulated_req_s:.2f}", f"{100 * found.req_s_deviation:+.1f} %"
    )
    table.add_row(
        "mean TTFT, ms", f"{1000 * found.live_ttft_s:.1f}", f"{1000 * found.simulated_ttft_s:.1f}",
        f"{100 * found.ttft_deviation:+.1f} %",
    )  # fmt: skip
    console.print(table)
    limits = (
        f"{100 * MAX_SHARE:.0f} % of throughput, {100 * MAX_SHARE:.0f} % or {1000 * MAX_TTFT_S:.0f} ms of mean TTFT"
    )
    console.print(f"{'within' if found.agrees else 'NOT within'} {limits}")


def _mean_req_s(runs: Sequence[Figures]) -> float:
    return fmean(run.client.req_s for run in runs)


def _mean_ttft_s(runs: Sequence[Figures]) -> float:
    spreads = [run.client.ttft for run in runs]
    means = [spread.mean for spread in spreads if spread is not None]
    if len(means) < len(spreads):
        raise NothingToCompareError(f"{runs[0].scenario}, {runs[0].kind}: a run had no success; look at its errors")
    return fmean(means)
