"""A server of one's own: started for a benchmark or a test, stopped behind it."""

from __future__ import annotations

import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

LAUNCH = Path(__file__).resolve().parent.parent / "launch.py"
READY = re.compile(r"ready in ([0-9.]+) s: .* at (http\S+)")


class ServerError(RuntimeError):
    """The server did not start; the text is what it said."""


class Server:
    """`launch.py` in a process of its own, on a free port unless told otherwise.

    with Server(model="mock", max_num_seqs=8) as server:
        requests.get(server.url + "/ready")
    """

    def __init__(
        self,
        arguments: Sequence[str] = (),
        start_timeout_s: float = 300.0,
        env: Mapping[str, str] | None = None,
        launch: Path = LAUNCH,
        **options: Any,
    ) -> None:
        """`arguments` are handed to launch.py as they are, before the options given by name.

        `launch` is another checkout's launch.py, to compare with.
        """
        self.arguments = ["--port=0", *arguments]
        for name, value in options.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                self.arguments.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                self.arguments.append(f"--{flag}={value}")
        self.url = ""
        self.startup_s = 0.0
        self.log: list[str] = []
        self._timeout_s = start_timeout_s
        self._env = env
        self._launch = launch

    def __enter__(self) -> Server:
        self.process = subprocess.Popen(
            [sys.executable, str(self._launch), *self.arguments], stderr=subprocess.PIPE, text=True, env=self._env
        )
        lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read_log, args=(lines,), daemon=True)
        self._reader.start()
        try:
            while (line := lines.get(timeout=self._timeout_s)) is not None:
                if match := READY.search(line):
                    self.startup_s, self.url = float(match[1]), match[2]
                    return self
        except queue.Empty:
            self.kill()
            raise ServerError(f"not ready after {self._timeout_s} s: {''.join(self.log)}") from None
        self.process.wait()
        raise ServerError("".join(self.log))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 60.0) -> int:
        """Send a signal, wait for the end, and return the exit code. No signal is sent to what has ended already."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def processes(self) -> dict[str, psutil.Process]:
        """The processes of the ring by name ("gateway", "model", ...), and the supervisor."""
        supervisor = psutil.Process(self.process.pid)
        ring = {"supervisor": supervisor}
        for child in supervisor.children(recursive=True):
            try:
                title = (child.cmdline() or [""])[0]
            except psutil.NoSuchProcess:  # it has died since it was listed
                continue
            if title.startswith("quintet: "):
                ring[title.removeprefix("quintet: ").strip()] = child
        return ring

    def _read_log(self, lines: queue.Queue[str | None]) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            lines.put(line)
        lines.put(None)
