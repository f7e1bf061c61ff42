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
# And that of several replicas, of whose front door it knows nothing: throughput and prompt tokens saved by this share.
MAX_SHARE_OF_REPLICAS = 0.10


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
    live_saved: float  # prompt tokens from the cache, as clients are told
    simulated_saved: float
    saved_deviation: float
    limits: str  # what `agrees` means
    agrees: bool


class NothingToCompareError(RuntimeError):
    """A run had no success."""


def compare(live: Sequence[Figures], simulated: Sequence[Figures]) -> Comparison:
    """How throughput, mean TTFT and saved prompt tokens agree, as means over the runs of each kind.

    Raises NothingToCompareError.
    """
    live_req_s, simulated_req_s = _mean_req_s(live), _mean_req_s(simulated)
    live_ttft_s, simulated_ttft_s = _mean_ttft_s(live), _mean_ttft_s(simulated)
    live_saved, simulated_saved = _mean_saved(live), _mean_saved(simulated)
    req_s_deviation = simulated_req_s / live_req_s - 1
    ttft_deviation = simulated_ttft_s / live_ttft_s - 1
    saved_deviation = simulated_saved / live_saved - 1 if live_saved else float(simulated_saved > 0)
    if live[0].replicas > 1:
        limits = f"{100 * MAX_SHARE_OF_REPLICAS:.0f} % of throughput and of saved prompt tokens"
        agrees = max(abs(req_s_deviation), abs(saved_deviation)) <= MAX_SHARE_OF_REPLICAS
    else:
        share = f"{100 * MAX_SHARE:.0f} %"
        limits = f"{share} of throughput, {share} or {1000 * MAX_TTFT_S:.0f} ms of mean TTFT"
        close_ttft = abs(ttft_deviation) <= MAX_SHARE or abs(simulated_ttft_s - live_ttft_s) <= MAX_TTFT_S
        agrees = abs(req_s_deviation) <= MAX_SHARE and close_ttft
    return Comparison(
        scenario=live[0].scenario,
        runs=len(live),
        live_req_s=live_req_s,
        simulated_req_s=simulated_req_s,
        req_s_deviation=req_s_deviation,
        live_ttft_s=live_ttft_s,
        simulated_ttft_s=simulated_ttft_s,
        ttft_deviation=ttft_deviation,
        live_saved=live_saved,
        simulated_saved=simulated_saved,
        saved_deviation=saved_deviation,
        limits=limits,
        agrees=agrees,
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
    table.add_row(
        "prompt tokens saved", f"{found.live_saved:.0f}", f"{found.simulated_saved:.0f}",
        f"{100 * found.saved_deviation:+.1f} %",
    )  # fmt: skip
    console.print(table)
    console.print(f"{'within' if found.agrees else 'NOT within'} {found.limits}")


def _mean_saved(runs: Sequence[Figures]) -> float:
    return fmean(run.client.cached_tokens for run in runs)


def _mean_req_s(runs: Sequence[Figures]) -> float:
    return fmean(run.client.req_s for run in runs)


def _mean_ttft_s(runs: Sequence[Figures]) -> float:
    spreads = [run.client.ttft for run in runs]
    means = [spread.mean for spread in spreads if spread is not None]
    if len(means) < len(spreads):
        raise NothingToCompareError(f"{runs[0].scenario}, {runs[0].kind}: a run had no success; look at its errors")
    return fmean(means)
