"""The entry point: parse the options, start the five processes, watch over them, drain and stop them.

    python launch.py --model smollm2-135m --port 8000

The supervisor is the sixth inbox of the ring. Every process pushes its life signs into it, and it pushes commands into
theirs; it never takes part in serving. `quintet.LLM` runs the same supervisor in a thread, with the caller in the
gateway's place.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import zmq
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from setproctitle import setproctitle

from ipc import log as process_log
from ipc.config import SECTIONS, RingConfig, section
from ipc.messages import (
    Beat,
    Drain,
    Drained,
    Fatal,
    Loading,
    ModelFiles,
    Ready,
    RingState,
    Shutdown,
    model_name,
    room_of,
)
from ipc.options import OptionError, from_command_line
from ipc.process import EXIT_FATAL
from ipc.sockets import Inbox, Outbox

PACKAGES = {
    "gateway": "gateway",
    "tokenizer": "tokenizer_proc",
    "scheduler": "scheduler_proc",
    "model": "model_proc",
    "detokenizer": "detok_proc",
}
SHUTDOWN_GRACE_S = 5.0  # how long a process may take to leave its loop before it is killed
DRAIN_GRACE_S = 5.0  # how long after its own deadline the gateway may take to say that it has drained
EXIT_LOST = 1  # a process of the ring was lost

log = logging.getLogger("supervisor")


class Supervisor:
    """Starts the processes of one ring and stays with them until they are gone.

    `run` blocks until the ring has ended and returns the exit code: 0 after `stop`, EXIT_FATAL when a process said
    that it cannot work (its reason is in `fatal`), EXIT_LOST when one died. `stop` may be called from any thread or
    from a signal handler; a second call cuts short what still runs.
    """

    def __init__(
        self, options: dict[str, Any], processes: Sequence[str], on_event: Callable[[Any], None] = lambda event: None
    ) -> None:
        self.options = options
        self.fatal = ""
        self.run_dir = tempfile.mkdtemp(prefix="quintet-")  # mode 0700
        self.ring = RingConfig(run_dir=self.run_dir, epoch=1, log_level=options["log_level"])
        self._on_event = on_event
        self._names = [name for room in processes for name in process_names(room, options)]
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._pidfds: dict[str, int] = {}  # descriptors that become readable when the process dies
        self._states = dict.fromkeys(self._names, "starting")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._inbox = Inbox(self._context, self.run_dir, "supervisor", self.ring.epoch)
        self._peers = {name: self._outbox(name) for name in {*PACKAGES, *self._names}}
        self._stop_read, self._stop_write = os.pipe()
        os.set_blocking(self._stop_read, False)
        self._stop_lock = threading.RLock()  # a signal handler may come upon its own thread in `stop`
        self._stops = 0
        self._drain_deadline: float | None = None
        self._exit_code: int | None = None

    @property
    def ready(self) -> bool:
        return all(state == "ready" for state in self._states.values())

    def stop(self) -> None:
        """Ask the ring to end: the first call drains, a second one aborts what is left."""
        with self._stop_lock:
            if self._stop_write >= 0:
                os.write(self._stop_write, b"x")

    def run(self) -> int:
        """Start every process and watch over them until the ring has ended."""
        try:
            for name in self._names:
                self._start(name)
            self._publish_states()
            while self._exit_code is None:
                self._watch()
            return self._exit_code
        finally:
            self._end_children()
            self._clean_up()

    # -- watching --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Wait for the next thing to happen - a message, a death, a request to stop - and deal with it."""
        poller = zmq.Poller()
        poller.register(self._inbox.socket, zmq.POLLIN)
        poller.register(self._stop_read, zmq.POLLIN)
        for pidfd in self._pidfds.values():
            poller.register(pidfd, zmq.POLLIN)
        if not poller.poll(None if self._drain_deadline is None else 1000) and self._drain_is_late():
            log.warning("the gateway does not drain: stopped without it")
            self._exit_code = 0
        for message in self._inbox.take():
            self._handle(message)
        with contextlib.suppress(BlockingIOError):
            for _ in os.read(self._stop_read, 16):
                self._on_stop()
        for name, child in self._children.items():
            if name in self._pidfds and child.poll() is not None:
                self._on_death(name, child.returncode)

    def _handle(self, message: Any) -> None:
        match message:
            case Ready(process=name):
                self._states[name] = "ready"
                self._publish_states()
            case Beat() | Loading():
                self._tell("gateway", message)
            case ModelFiles():
                for name in ("tokenizer", "detokenizer", "gateway"):
                    self._tell(name, message)
            case Fatal(process=name, message=reason):
                self.fatal = self.fatal or reason
                self._exit_code = EXIT_FATAL
            case Drained():
                self._exit_code = 0
        self._on_event(message)

    def _on_death(self, name: str, returncode: int) -> None:
        if returncode == EXIT_FATAL and not self.fatal:
            for message in self._inbox.receive(1.0):  # its last words may still be on their way
                self._handle(message)
        how = signal.Signals(-returncode).name if returncode < 0 else f"exit code {returncode}"
        os.close(self._pidfds.pop(name))
        self._states[name] = "lost"
        self._publish_states()
        if self._exit_code is None:
            log.error("the %s process is lost (%s)", name, how)
            self._exit_code = EXIT_LOST

    def _on_stop(self) -> None:
        self._stops += 1
        if self._stops > 1 or "gateway" not in self._children or self._states["gateway"] != "ready":
            self._exit_code = 0
            return
        log.info("draining: running requests get %g s to finish", self.options["shutdown_timeout"])
        timeout_s = self.options["shutdown_timeout"]
        self._drain_deadline = time.monotonic() + timeout_s + DRAIN_GRACE_S
        self._tell("gateway", Drain(timeout_s))

    def _drain_is_late(self) -> bool:
        return self._drain_deadline is not None and time.monotonic() > self._drain_deadline

    def _publish_states(self) -> None:
        self._tell("gateway", RingState(dict(self._states)))

    # -- processes -------------------------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        home = str(Path(__file__).resolve().parent)
        path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", PACKAGES[room_of(name)]],  # -P: not what the current folder calls by our names
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            process_group=0,  # Ctrl-C is for the supervisor alone
        )
        self._children[name] = child
        self._pidfds[name] = os.pidfd_open(child.pid)
        config = asdict(section(SECTIONS[room_of(name)], self.options))
        settings = {"name": name, "ring": asdict(self.ring), "config": config}
        assert child.stdin is not None
        child.stdin.write(json.dumps(settings).encode() + b"\n")
        child.stdin.flush()  # and left open: the child lives as long as this pipe

    def _end_children(self) -> None:
        """Tell every process to leave, and kill what has not left in time."""
        for name, child in self._children.items():
            if self._states[name] == "starting":
                child.kill()  # it may not read its inbox for a while yet, and there is nothing it could lose
            else:
                self._tell(name, Shutdown())
        deadline = time.monotonic() + SHUTDOWN_GRACE_S
        for name, child in self._children.items():
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("the %s process does not leave: killed", name)
                child.kill()
                child.wait()
            assert child.stdin is not None
            child.stdin.close()

    def _clean_up(self) -> None:
        for peer in self._peers.values():
            peer.close()
        self._inbox.close()
        self._context.term()
        with self._stop_lock:
            fds = [*self._pidfds.values(), self._stop_read, self._stop_write]
            self._pidfds.clear()
            self._stop_write = -1  # the number may be another file's by the next call of `stop`
            for fd in fds:
                os.close(fd)
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def _tell(self, name: str, message: Any) -> None:
        self._peers[name].send(message)

    def _outbox(self, name: str) -> Outbox:
        return Outbox(self._context, self.run_dir, name, self.ring.epoch)


def process_names(room: str, options: dict[str, Any]) -> list[str]:
    """The processes of a room: one, or one a rank of the model."""
    return [model_name(rank) for rank in range(options["tensor_parallel_size"])] if room == "model" else [room]


class Console:
    """What the person at the terminal sees of the start: a progress bar, then where the server is."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._model = ""
        self._url = ""
        self._blocks = ""
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
            console=RichConsole(stderr=True), transient=True,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: Any) -> None:
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until it is told to stop. Returns the exit code."""
    setproctitle("quintet")
    try:
        options = from_command_line(sys.argv[1:] if argv is None else argv)
    except OptionError as error:
        print(f"quintet: {error}", file=sys.stderr)
        return EXIT_FATAL
    process_log.set_up("supervisor", options["log_level"])
    console = Console()
    supervisor = Supervisor(options, list(PACKAGES), console)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: supervisor.stop())
    code = supervisor.run()
    console.close()
    if supervisor.fatal:
        print(f"quintet: {supervisor.fatal}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
