"""The progress bar of a benchmark that sends requests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextlib.contextmanager
def progress_bar(wanted: bool) -> Iterator[Progress]:
    """A bar that is redrawn rarely, as the client's CPU time may be part of what is measured; only on a terminal."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, refresh_per_second=2, transient=True, disable=not (wanted and console.is_terminal),
    ) as progress:  # fmt: skip
        yield progress
