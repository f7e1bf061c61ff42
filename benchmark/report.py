"""The figures of one run of a scenario, and the ways in which they are shown: a table, JSON, CSV, Markdown.

Throughput never stands alone: lanes and caps are beside it, and how it compares with the seed and with the bounds.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmark.bounds import KNOWN, Caps, Ratios, ratios
from benchmark.experiment import Experiment
from benchmark.load import Run
from benchmark.server_figures import ServerFigures
from benchmark.summary import ClientFigures, Spread, summarize

# A client that is this busy measures itself.
BUSY_CLIENT_CORES = 0.8
WIDE_COLUMNS = 120


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that is known about one run."""

    kind: str  # "live" or "simulated"
    scenario: str
    concurrency: int  # of a closed loop; 0 in an open one
    rate: float  # arrivals a second in an open loop; 0 in a closed one
    timeout_ms: int
    stream: bool
    seed: int
    launch: tuple[str, ...]
    profile: str
    policy: str
    prefill_order: str
    caps: Caps
    client: ClientFigures
    server: ServerFigures
    ratios: Ratios | None  # None for other workloads than those of the bounds, and for several replicas
    replicas: int = 1
    router: str = ""  # in front of several
    think_s: float = 0.0  # mean pause between the turns of a conversation


def figures(kind: str, experiment: Experiment, run: Run, server: ServerFigures) -> Figures:
    """Put together what one run brought."""
    scenario, options, client = experiment.scenario, experiment.options, summarize(run)
    concurrency = 0 if scenario.rate else scenario.concurrency
    return Figures(
        kind=kind,
        scenario=scenario.name,
        concurrency=concurrency,
        rate=scenario.rate,
        timeout_ms=scenario.timeout_ms,
        stream=experiment.stream,
        seed=experiment.seed,
        launch=experiment.launch,
        profile=experiment.profile,
        policy=options["scheduling_policy"],
        prefill_order=options["prefill_order"],
        caps=experiment.caps,
        client=client,
        server=server,
        ratios=ratios(
            scenario.name, scenario.num_requests, concurrency, experiment.profile, experiment.caps, client.req_s
        )
        if experiment.replicas.count == 1
        else None,
        replicas=experiment.replicas.count,
        router=experiment.replicas.router,
        think_s=scenario.think_s,
    )


# -- on the screen -----------------------------------------------------------------------------------------------------


def show(console: Console, shown: Figures) -> None:
    """Print the table of one run."""
    client, server = shown.client, shown.server
    table = Table(title=f"{shown.scenario}, {shown.kind}: {shown.caps}", title_justify="left", show_header=False)
    table.add_column("what", no_wrap=True)
    table.add_column("figure")
    load = f"{shown.rate:g} arrivals/s" if shown.rate else f"{shown.concurrency} at a time"
    load += f", {shown.think_s:g} s of thought between turns" if shown.think_s else ""
    way = "streamed" if shown.stream else "unary"
    table.add_row("load", f"{client.requests} requests, {load}, {way}, deadline {shown.timeout_ms} ms")
    if shown.replicas > 1:
        table.add_row("replicas", f"{shown.replicas}, {shown.router} routing")
    table.add_row("policy", f"{shown.policy}, {shown.prefill_order}, profile {shown.profile}")
    table.add_row("succeeded / failed", f"{client.succeeded} / {client.failed}")
    table.add_row("throughput", f"{client.req_s:.2f} req/s, {client.output_tok_s:.0f} tok/s over {client.wall_s:.2f} s")
    if shown.ratios is not None:
        table.add_row("beside the seed", _beside_the_seed(shown))
        table.add_row("beside the ideal", _beside_the_ideal(shown.ratios))
    table.add_section()
    for name, spread in (("latency", client.latency), ("TTFT", client.ttft), ("TBT", client.tbt)):
        if spread is not None:
            table.add_row(f"{name} ms", _milliseconds(spread))
    if client.stages_ms:
        stages = ", ".join(f"{name.removesuffix('_ms')} {mean:.1f}" for name, mean in client.stages_ms.items())
        table.add_row("stages, mean ms", stages)
    table.add_section()
    if server.steps:
        _add_server(table, server)
    else:  # several servers behind one address, which were not asked
        table.add_row("prefix cache", f"{client.cached_tokens} of {client.prompt_tokens} prompt tokens saved")
    if server.cores:
        table.add_row("cores, each process", ", ".join(f"{name} {share:.2f}" for name, share in server.cores.items()))
        table.add_row("cores, client", f"{client.client_cores:.2f}")
    console.print(table)
    for error, count in client.errors.items():
        console.print(f"[red]{count} failed:[/red] {error}", markup=True, highlight=False)
    if client.client_cores > BUSY_CLIENT_CORES:
        console.print(f"The client itself took {client.client_cores:.2f} of a core: it may be what limits the figures.")


def _add_server(table: Table, server: ServerFigures) -> None:
    each = ""
    if server.mean_batch is not None and server.mean_step_ms is not None:
        each = f", on average of {server.mean_batch:.2f} sequences and {server.mean_step_ms:.2f} ms"
    table.add_row("steps", f"{server.steps}{each}")
    table.add_row("prefix cache", f"{server.prefix_hits} of {server.prefix_queries} prompt tokens saved")
    table.add_row("blocks", ", ".join(f"{name} {count}" for name, count in server.blocks.items()))
    table.add_row("preemptions / evictions", f"{server.preemptions} / {server.evictions}")


def _milliseconds(spread: Spread) -> str:
    mean, p50, p90, p99 = (f"{1000 * value:.1f}" for value in (spread.mean, spread.p50, spread.p90, spread.p99))
    return f"mean {mean}, p50 {p50}, p90 {p90}, p99 {p99}"


def _beside_the_seed(shown: Figures) -> str:
    assert shown.ratios is not None
    seed = KNOWN[shown.scenario]
    ttft_ms = 1000 * seed.seed_ttft_s
    return f"{shown.ratios.times_seed:.1f} x its {seed.seed_req_s} req/s (its mean TTFT: {ttft_ms:.0f} ms)"


def _beside_the_ideal(ratio: Ratios) -> str:
    text = f"{ratio.percent_of_one_lane:.1f} % of one lane's, {ratio.percent_of_unlimited:.1f} % of unlimited lanes'"
    if ratio.percent_of_capped is not None:
        text += f", {ratio.percent_of_capped:.1f} % of one lane's under these caps"
    return text


# -- in files ----------------------------------------------------------------------------------------------------------


def row(shown: Figures) -> dict[str, str | int | float | None]:
    """The main figures on one line, for CSV and Markdown. Times are in milliseconds."""
    client, server, ratio = shown.client, shown.server, shown.ratios
    capped = ratio.percent_of_capped if ratio is not None else None
    return {
        "kind": shown.kind,
        "scenario": shown.scenario,
        "replicas": shown.replicas,
        "router": shown.router,
        "policy": shown.policy,
        "prefill_order": shown.prefill_order,
        "lanes": shown.caps.lanes,
        "max_num_seqs": shown.caps.max_num_seqs,
        "max_num_step_seqs": shown.caps.max_num_step_seqs,
        "max_num_batched_tokens": shown.caps.max_num_batched_tokens,
        "concurrency": shown.concurrency,
        "rate": shown.rate,
        "requests": client.requests,
        "failed": client.failed,
        "req_s": round(client.req_s, 2),
        "times_seed": _rounded(ratio.times_seed, 1) if ratio else None,
        "percent_of_one_lane": _rounded(ratio.percent_of_one_lane, 1) if ratio else None,
        "percent_of_unlimited": _rounded(ratio.percent_of_unlimited, 1) if ratio else None,
        "percent_of_capped": _rounded(capped, 1),
        "latency_ms": _mean_ms(client.latency),
        "latency_p99_ms": _p99_ms(client.latency),
        "ttft_ms": _mean_ms(client.ttft),
        "ttft_p99_ms": _p99_ms(client.ttft),
        "tbt_ms": _mean_ms(client.tbt),
        "steps": server.steps,
        "mean_batch": _rounded(server.mean_batch, 2),
        "tokens_saved": server.prefix_hits,
        "preemptions": server.preemptions,
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _mean_ms(spread: Spread | None) -> float | None:
    return None if spread is None else round(1000 * spread.mean, 2)


def _p99_ms(spread: Spread | None) -> float | None:
    return None if spread is None else round(1000 * spread.p99, 2)


def wide_console() -> Console:
    """For tables of many columns: a terminal that is too narrow breaks lines, but loses no figure."""
    return Console(width=max(Console().width, WIDE_COLUMNS))


def write_json(path: Path, content: Any) -> None:
    """Write figures as JSON, the same bytes for the same figures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows that have the same columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_markdown(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows that have the same columns as a table."""
    lines = [list(map(str, rows[0])), ["---"] * len(rows[0])]
    lines += [["" if value is None else str(value) for value in values.values()] for values in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))


def write(shown: Figures, json_path: Path | None, csv_path: Path | None, markdown_path: Path | None) -> None:
    """Write one run's figures to the files that were asked for."""
    if json_path:
        write_json(json_path, asdict(shown))
    if csv_path:
        write_csv(csv_path, [row(shown)])
    if markdown_path:
        write_markdown(markdown_path, [row(shown)])
