"""One picture of a run: the queue, what the batches were made of, and latency, over time.

It needs matplotlib, an optional extra, and no display. The scheduler's side comes from its `--step-log`, the client's
side from what it measured; both are on the machine's monotonic clock, or both on a simulation's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.client import Measured
from benchmark.step_log import Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class NoPlotError(RuntimeError):
    """There can be no picture; the text says what is missing and the remedy."""


def check_matplotlib() -> None:
    """Raise NoPlotError when matplotlib is not installed: better now than after a long run."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise NoPlotError('--plot needs matplotlib: pip install "quintet[plot]", or pip install matplotlib') from None


def draw(path: Path, title: str, steps: Sequence[Step], measured: Sequence[Measured], started: float) -> None:
    """Write the picture; the suffix of `path` chooses the format. `started` is zero on the time axis, in seconds.

    Raises NoPlotError for a suffix that matplotlib does not know.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    queue, batch, latency = figure.subplots(3, 1, sharex=True)
    figure.suptitle(title)
    _draw_steps(queue, batch, steps, started)
    _draw_latency(latency, [one for one in measured if one.succeeded], started)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure; the suffix of `path` chooses the format. Raises NoPlotError for one that is not known."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path)
    except ValueError as error:
        raise NoPlotError(f"--plot {path}: {error}") from None


def _draw_steps(queue: Axes, batch: Axes, steps: Sequence[Step], started: float) -> None:
    times = [step.planned_s - started for step in steps]
    queue.plot(times, [step.waiting for step in steps], label="waiting")
    queue.plot(times, [step.running for step in steps], label="running")
    queue.set_ylabel("sequences")
    queue.legend(loc="upper left", bbox_to_anchor=(1, 1))
    decodes = [step.decodes for step in steps]
    batch.fill_between(times, decodes, step="post", label="decodes", alpha=0.6)
    both = [step.size for step in steps]
    batch.fill_between(times, decodes, both, step="post", label="prefills", alpha=0.6)
    batch.set_ylabel("rows in a step")
    batch.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _draw_latency(axes: Axes, measured: Sequence[Measured], started: float) -> None:
    times = [one.sent - started for one in measured]
    axes.plot(times, [one.latency for one in measured], ".", markersize=3, label="latency")
    axes.plot(times, [one.ttft for one in measured], ".", markersize=3, label="TTFT")
    axes.set_ylabel("seconds")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds from the first request; a request stands where it was sent")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
