"""The harness that every process of the ring runs in: its inbox, its ways out, its life signs, its end.

A room's `__main__` is `run("scheduler", SchedulerConfig, serve)`; `serve(process)` holds the loop. The supervisor
writes the configuration as one line of JSON to the child's standard input and keeps that pipe open: when it closes,
the parent is gone and the child leaves at once.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import setproctitle
import zmq

from ipc import faults
from ipc import log as process_log
from ipc.config import RingConfig, section
from ipc.control_messages import Beat, Fatal, Lost, Ready, SetLogLevel, Shutdown, StartProfile, StopProfile
from ipc.gauges import Gauges
from ipc.names import room_of
from ipc.profiling import Profiled
from ipc.sockets import Inbox, Outbox

BEAT_INTERVAL_S = 0.4
EXIT_FATAL = 2
CONTROL = (SetLogLevel, Shutdown, StartProfile, StopProfile)  # what this harness takes care of

log = logging.getLogger(__name__)


class FatalError(Exception):
    """This process cannot work. The text is the one line that the user sees; it says what to do."""


class Process:
    """One process of the ring, seen from inside."""

    def __init__(self, name: str, ring: RingConfig, config: Any) -> None:
        self.name = name
        self.ring = ring
        self.config = config
        self.running = True
        self.progress = 0
        self.working = True  # not merely waiting for messages
        self.stats: dict[str, Any] = {}  # replaced as a whole by the main loop, read by the beat thread
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.profiled = Profiled(name, self.outbox)
        self.spans = self.profiled.spans
        self._outboxes: list[Outbox] = []
        self._peers: dict[str, Outbox] = {}
        self.inbox = Inbox(self._context, ring.run_dir, name, ring.epoch, ring.runs, self._on_lost)

    def peer(self, name: str) -> Outbox:
        """The way into another process's inbox, by the name of that process."""
        if name not in self._peers:
            self._peers[name] = self.outbox(name)
        return self._peers[name]

    def outbox(self, name: str) -> Outbox:
        """A new way into an inbox, for a thread that needs one of its own."""
        outbox = Outbox(self._context, self.ring.run_dir, name, self.ring.epoch, self.run_of(name))
        self._outboxes.append(outbox)
        return outbox

    def names(self, room: str) -> list[str]:
        """The processes that do this: one, or several workers that share the work by rid."""
        return [name for name in self.inbox.runs if room_of(name) == room] or [room]

    def run_of(self, name: str) -> int:
        """The epoch of the run of a process, as far as this one knows."""
        return self.inbox.runs.get(name, self.ring.epoch)

    def ready(self, **info: Any) -> None:
        """Tell the supervisor that this process can work."""
        # What lives now lives for ever: keep it out of every later garbage collection.
        gc.collect()
        gc.freeze()
        self.peer("supervisor").send(Ready(self.name, info))

    def receive(self, timeout_s: float | None = None, working: bool = False) -> list[Any]:
        """Messages from the inbox, less those of CONTROL. Waits for ever unless told otherwise.

        `working` says that something is under way meanwhile, so that this is more than a wait.
        """
        self.working = working
        messages = self.inbox.receive(timeout_s)
        self.working = True
        self.progress += len(messages)
        if faults.armed and messages:
            faults.at("receive")
        if any(type(message) in CONTROL for message in messages):
            for message in messages:
                self._obey(message)
            messages = [message for message in messages if type(message) not in CONTROL]
        if self.spans.limit_reached:
            self.profiled.tell_limit()
        return messages

    def _obey(self, message: Any) -> None:
        match message:
            case Shutdown():
                self.running = False
            case SetLogLevel(level=level):
                process_log.set_level(level)
            case StartProfile():
                self.profiled.start(message)
            case StopProfile():
                self.profiled.stop(message)

    def beat_forever(self, stop: threading.Event) -> None:
        """Send life signs until told to stop; runs in a side thread, so a long step does not silence them."""
        supervisor = self.outbox("supervisor")
        gauges = Gauges(self.spans)
        while not stop.wait(BEAT_INTERVAL_S):
            figures = gauges.read(self.progress) | self._traffic()
            supervisor.send(Beat(self.name, self.progress, self.stats | {"process": figures}, self.working))
        gauges.close()
        supervisor.close()

    def _traffic(self) -> dict[str, int]:
        """Messages since the start; how many waited at the last look into the inbox, and at most since a beat."""
        inbox = self.inbox
        peak, inbox.peak = inbox.peak, inbox.depth
        return {
            "messages_in": inbox.received,
            "messages_out": sum(outbox.sent for outbox in self._outboxes),
            "inbox_depth": inbox.depth,
            "inbox_peak": max(peak, inbox.depth),
            "bad_frames": inbox.bad_frames,
            "stale_frames": inbox.stale_frames,
        }

    def _on_lost(self, lost: Lost) -> None:
        if lost.process in self._peers:
            self._peers[lost.process].redirect(lost.successor)

    def close(self) -> None:
        for outbox in self._outboxes:  # one that is left open would keep the context from ending
            outbox.close()
        self.inbox.close()
        self._context.term()


def run(room: str, section_class: type, serve: Callable[[Process], None]) -> NoReturn:
    """Be a process of this room: read the configuration and its own name, serve until shutdown, exit.

    Exit code 0 after a shutdown, EXIT_FATAL after a FatalError, 1 after a crash (its traceback is logged).
    """
    setproctitle.setproctitle(f"quintet: {room}")
    settings = json.loads(sys.stdin.readline())
    name = settings["name"]
    setproctitle.setproctitle(f"quintet: {name.replace('.', ' ')}")
    faults.arm(name)
    ring = section(RingConfig, settings["ring"])
    process_log.set_up(name, ring.log_level, ring.log_format)
    # A terminal or a service manager signals the whole group; the supervisor alone decides what that means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    process = Process(name, ring, section(section_class, settings["config"]))
    stop_beats = threading.Event()
    threading.Thread(target=_leave_with_parent, args=(ring.run_dir,), name="lifeline", daemon=True).start()
    beats = threading.Thread(target=process.beat_forever, args=(stop_beats,), name="beat", daemon=True)
    beats.start()
    code = 0
    try:
        serve(process)
    except FatalError as error:
        process.peer("supervisor").send(Fatal(name, str(error)))
        code = EXIT_FATAL
    except Exception:
        log.exception("crashed")
        code = 1
    stop_beats.set()
    beats.join()
    process.close()
    # Not sys.exit: a library's thread must not be able to keep a finished process alive.
    logging.shutdown()
    os._exit(code)


def _leave_with_parent(run_dir: str) -> None:
    """Block until the supervisor's end of standard input closes, then end this process at once.

    A supervisor that was killed could not tidy up, so its children do.
    """
    while os.read(sys.stdin.fileno(), 4096):
        pass
    shutil.rmtree(run_dir, ignore_errors=True)
    os._exit(1)
