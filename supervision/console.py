"""What the person at the terminal sees of the start."""

from __future__ import annotations

import logging
import time
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from ipc.control_messages import Loading, ModelFiles, Ready, RingState

log = logging.getLogger("supervisor")


class Console:
    """A progress bar, then where the server is. It is silent once the server has been ready."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._is_done = False
        self._model = ""
        self._url = ""
        self._blocks = ""
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
            console=RichConsole(stderr=True), transient=True,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: Any) -> None:
        """Take in a message that a process has sent to the supervisor."""
        if self._is_done:
            return
        match event:
            case ModelFiles(name=name):
                self._model = name
            case Loading(phase=phase, done=done, total=total):
                self._show(phase, done, total)
            case Ready(info=info):
                self._url = info.get("url", self._url)
                if "num_blocks" in info:
                    self._blocks = f"{info['num_blocks']} KV blocks of {info['block_size']} tokens"
            case RingState():
                self._progress.stop()
                seconds = time.monotonic() - self._started
                log.info("ready in %.1f s: %s at %s (%s)", seconds, self._model, self._url, self._blocks)
                self._is_done = True

    def _show(self, phase: str, done: int, total: int) -> None:
        if not self._progress.console.is_terminal:
            if phase not in self._tasks:
                log.info("%s", phase)
                self._tasks[phase] = TaskID(len(self._tasks))
            return
        self._progress.start()
        if phase not in self._tasks:
            self._tasks[phase] = self._progress.add_task(phase, total=None)
        self._progress.update(self._tasks[phase], completed=done, total=total or None)

    def close(self) -> None:
        self._progress.stop()
