"""The results of all levels: a table, one file a level as `vllm bench serve` writes it, JSON, CSV, a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmark.plot import check_matplotlib, save
from benchmark.report import BUSY_CLIENT_CORES
from benchmark.serving.metrics import DEFINITIONS

Result = Mapping[str, Any]  # of one level: see `metrics.level_metrics`

# A client that was later than this when a request was due did not keep its arrival process.
LATE_CLIENT_MS = 50.0


def level_name(result: Result) -> str:
    """What sets a level apart: its requests in flight, its arrival rate, or both."""
    parts = []
    if result.get("ramp_up_strategy"):
        parts.append(f"{result['ramp_up_start_rps']:g} to {result['ramp_up_end_rps']:g}/s")
    elif result["request_rate"] != "inf":
        parts.append(f"{result['request_rate']:g}/s")
    if result["max_concurrency"]:
        parts.append(str(result["max_concurrency"]))
    return ", at most ".join(parts) or "all at once"


def show(console: Console, results: Sequence[Result], metrics: Sequence[str], percentiles: Sequence[float]) -> None:
    """Print a row for each level in two tables, throughput and latency, and what the figures mean."""
    first = results[0]
    console.print(_throughput_table(results))
    console.print(_latency_table(results, metrics, percentiles))
    console.print(f"Prompts are counted {first['token_count']}.", highlight=False)
    for name in (*metrics, "output tokens", "duration", "percentiles"):
        console.print(f"  {name}: {DEFINITIONS[name]}", highlight=False)
    for result in results:
        _warn(console, result)


def _throughput_table(results: Sequence[Result]) -> Table:
    first = results[0]
    table = Table(title=f"{first['model_id']}, {first['endpoint']}: {first['prompts']}", title_justify="left")
    has_goodput = first["request_goodput"] is not None
    columns = ["level", "ok", "failed", "req/s", "output\ntok/s", "all\ntok/s", "client\ncores"]
    for column in [*columns, "good\nreq/s"] if has_goodput else columns:
        table.add_column(column, justify="right")
    for result in results:
        cells = [level_name(result), str(result["completed"]), str(result["failed"])]
        cells += [f"{result['request_throughput']:.2f}"]
        cells += [f"{result[f'{kind}_throughput']:.1f}" for kind in ("output", "total_token")]
        cells += [f"{result['client_cores']:.2f}"]
        table.add_row(*cells, *([f"{result['request_goodput']:.2f}"] if has_goodput else []))
    return table


def _latency_table(results: Sequence[Result], metrics: Sequence[str], percentiles: Sequence[float]) -> Table:
    table = Table(title="milliseconds", title_justify="left")
    table.add_column("level", justify="right")
    keys = []
    for name in metrics:
        for kind in ("median", *(f"p{percent:g}" for percent in percentiles)):
            table.add_column(f"{name.replace('_', ' ')}\n{kind}", justify="right")
            keys.append(f"{kind}_{name}_ms")
    for result in results:
        table.add_row(level_name(result), *(f"{result[key]:.1f}" for key in keys))
    return table


def _warn(console: Console, result: Result) -> None:
    """Whatever makes a level's figures doubtful."""
    name = level_name(result)
    for error, count in result["error_counts"].items():
        console.print(f"[red]{name}: {count} failed:[/red] {error}", highlight=False)
    if result["client_cores"] > BUSY_CLIENT_CORES:
        console.print(f"{name}: the client took {result['client_cores']:.2f} of a core: it may be what was measured")
    if result["client_lag_ms"] > LATE_CLIENT_MS:
        console.print(f"{name}: the client was up to {result['client_lag_ms']:.0f} ms late when requests were due")
    if result["inexact_prompts"]:
        console.print(f"{name}: {result['inexact_prompts']} prompts could not be cut to the length that was drawn")
    # All chats of a model begin with its template: only what is more than that was there before.
    if result["cached_share"] > (0.5 if result["backend"] == "openai-chat" else 0.01):
        share = f"{result['cached_share']:.0%}"
        console.print(f"{name}: {share} of the prompt tokens were in the server's prefix cache: an old --seed?")


def show_server(console: Console, server: Mapping[str, Any], results: Sequence[Result]) -> None:
    """What a server of one's own took: its start, its share of the cores in every level, its memory."""
    table = Table(
        title=f"ready after {server['startup_s']:.1f} s; share of a core, and memory of its own", title_justify="left"
    )
    table.add_column("process")
    for result in results:
        table.add_column(level_name(result), justify="right")
    table.add_column("MiB", justify="right")
    for name, size in server["memory_mib"].items():
        table.add_row(name, *(f"{result['server_cores'][name]:.3f}" for result in results), f"{size:.0f}")
    console.print(table)


def file_name(result: Result) -> str:
    """What `vllm bench serve` calls the file of one run."""
    label = result["label"] or result["backend"]
    model = str(result["model_id"]).rpartition("/")[2]
    level = f"-concurrency{result['max_concurrency']}" if result["max_concurrency"] else ""
    rate = f"{result['request_rate']}qps"
    if result.get("ramp_up_strategy"):
        ramp = f"{result['ramp_up_start_rps']:g}qps-{result['ramp_up_end_rps']:g}qps"
        rate = f"ramp-up-{result['ramp_up_strategy']}-{ramp}"
    return f"{label}-{rate}{level}-{model}-{result['date']}.json"


def rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The plain figures of every level, for CSV."""
    return [{name: value for name, value in result.items() if not isinstance(value, dict | list)} for result in results]


def draw(path: Path, results: Sequence[Result], metrics: Sequence[str]) -> None:
    """Throughput, and the median of every metric, over the levels. Raises NoPlotError."""
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    throughput, latency = figure.subplots(2, 1, sharex=True)
    figure.suptitle(f"{results[0]['model_id']}: {results[0]['prompts']}")
    names = [level_name(result) for result in results]
    throughput.plot(names, [result["output_throughput"] for result in results], "o-")
    throughput.set_ylabel("output tokens a second")
    throughput.set_ylim(bottom=0)
    for name in metrics:
        latency.plot(names, [result[f"median_{name}_ms"] for result in results], "o-", label=name)
    latency.set_ylabel("median, ms")
    latency.set_yscale("log")
    latency.set_xlabel("requests in flight, or arrivals")
    latency.legend()
    save(figure, path)
