"""The supervisor of one ring: the sixth inbox, into which every process pushes its life signs.

It never takes part in serving. What happens when a process dies is written down in docs/architecture.md, "A process
dies"; here is the part that names the loss, tells everybody, and starts the successor.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import zmq

from ipc import log as process_log
from ipc.config import SECTIONS, RingConfig, section
from ipc.control_messages import (
    Beat,
    Drain,
    Drained,
    Fatal,
    Loading,
    Lost,
    ModelFiles,
    Ready,
    RingState,
    SetLogLevel,
    Shutdown,
)
from ipc.ledger import Ledger
from ipc.names import room_of, worker_name
from ipc.port import Claim
from ipc.process import EXIT_FATAL, FatalError
from ipc.sockets import Inbox, Outbox
from supervision.child import Child, how_it_ended

SHUTDOWN_GRACE_S = 5.0  # how long a process may take to leave its loop before it is killed
DRAIN_GRACE_S = 5.0  # how long after its own deadline the gateway may take to say that it has drained
LOOK_INTERVAL_S = 0.25  # how often the signs of life are looked at
COUNTS = {
    "gateway": "gateway_workers",
    "model": "tensor_parallel_size",
    "tokenizer": "tokenizer_workers",
    "detokenizer": "detokenizer_workers",
}  # the option that says how many processes a room has
EXIT_LOST = 1  # a process of the ring was lost, and not to be had back
SUPERVISOR_EPOCH = 1

log = logging.getLogger("supervisor")


class Supervisor:
    """Starts the processes of one ring and stays with them until they are gone.

    `run` blocks until the ring has ended and returns the exit code: 0 after `stop`, EXIT_FATAL when a process said at
    the start that it cannot work (its reason is in `fatal`), EXIT_LOST when one died during the start, or more than
    `--restart-limit` times in a row. `stop` may be called from any thread or from a signal handler; a second call cuts
    short what still runs.
    """

    def __init__(
        self, options: dict[str, Any], processes: Sequence[str], on_event: Callable[[Any], None] = lambda event: None
    ) -> None:
        """`processes` are the kinds to start. The inbox of a gateway that is not among them is the caller's."""
        self.options = options
        self.fatal = ""
        self.run_dir = tempfile.mkdtemp(prefix="quintet-")  # mode 0700
        self._on_event = on_event
        self._children = {name: Child(name) for room in processes for name in process_names(room, options)}
        self._runs: dict[str, int] = {}  # process name -> epoch of its run
        self._newest = SUPERVISOR_EPOCH
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._inbox = Inbox(self._context, self.run_dir, "supervisor", SUPERVISOR_EPOCH)
        self._runs["supervisor"] = SUPERVISOR_EPOCH
        for name in {"gateway": None, **self._children}:
            self._next_run(name)
        self._peers = {name: self._outbox(name) for name in self._runs if name != "supervisor"}
        self._gateways = [name for name in self._runs if room_of(name) == "gateway"]
        self._serving: set[str] = set()  # gateways that have said that they can serve
        self._draining: set[str] = set()  # gateways that still have something in flight
        self._ledger = Ledger() if len(self._gateways) > 1 else None  # for a gateway that takes another one's place
        self._files: ModelFiles | None = None
        self._port = options["port"]  # the one that the gateway got, as soon as it has one
        self._claim: Claim | None = None  # when several gateways share it
        self._was_ready = False
        self._stop_read, self._stop_write = os.pipe()
        os.set_blocking(self._stop_read, False)
        self._stop_lock = threading.RLock()  # a signal handler may come upon its own thread in `stop`
        self._stops = 0
        self._drain_deadline: float | None = None
        self._exit_code: int | None = None

    @property
    def ready(self) -> bool:
        return all(child.state == "ready" for child in self._children.values())

    def ring_for(self, name: str) -> RingConfig:
        """What a process of this name has to know of the ring."""
        level, form = self.options["log_level"], self.options["log_format"]
        return RingConfig(self.run_dir, self._runs[name], level, dict(self._runs), form)

    def stop(self) -> None:
        """Ask the ring to end: the first call drains, a second one aborts what is left."""
        with self._stop_lock:
            if self._stop_write >= 0:
                os.write(self._stop_write, b"x")

    def run(self) -> int:
        """Start every process and watch over them until the ring has ended."""
        try:
            if len(self._gateways) > 1:
                self._claim = Claim(self.options["host"], self._port)
                self._port = self._claim.port
            for child in self._children.values():
                self._start(child)
            self._publish_states()
            while self._exit_code is None:
                self._watch()
            return self._exit_code
        except FatalError as error:
            self.fatal = str(error)
            return EXIT_FATAL
        finally:
            self._end_children()
            self._clean_up()

    # -- watching --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Wait for the next thing to happen - a message, a death, a request to stop - and deal with it."""
        poller = zmq.Poller()
        poller.register(self._inbox.socket, zmq.POLLIN)
        poller.register(self._stop_read, zmq.POLLIN)
        for child in self._children.values():
            if child.pidfd >= 0:
                poller.register(child.pidfd, zmq.POLLIN)
        poller.poll(round(self._patience_s() * 1000))
        for message in self._inbox.take():
            self._handle(message)
        with contextlib.suppress(BlockingIOError):
            for _ in os.read(self._stop_read, 16):
                self._on_stop()
        for child in self._children.values():
            if (returncode := child.death()) is not None:
                self._on_death(child, returncode)
        now = time.monotonic()
        for child in self._children.values():
            if (ailment := child.ailment(now, self.options["execute_timeout"])) is not None:
                child.kill()
                self._on_loss(child, ailment)
        for child in self._children.values():
            if child.restart_at is not None and child.restart_at <= now and self._exit_code is None:
                self._start(child)
                self._publish_states()
        if self._drain_deadline is not None and now > self._drain_deadline:
            log.warning("the %s does not drain: stopped without it", ", ".join(sorted(self._draining)))
            self._exit_code = 0

    def _patience_s(self) -> float:
        """How long nothing needs to be looked at."""
        due = [child.restart_at for child in self._children.values() if child.restart_at is not None]
        return max(0.0, min([LOOK_INTERVAL_S, *(at - time.monotonic() + 1e-3 for at in due)]))

    def _handle(self, message: Any) -> None:
        match message:
            case Ready(process=name, info=info):
                self._on_ready(self._children[name], info)
            case Beat(process=name):
                if name in self._children:
                    self._children[name].on_beat(message, time.monotonic())
                    if self._ledger is not None:
                        self._ledger.update(message)
                self._tell_gateways(message)
            case Loading():
                self._tell_gateways(message)
            case RingState(gateway=name):
                self._serving |= {name} & {*self._gateways}
                if len(self._serving) < len(self._gateways):
                    return  # the last one says it for all
            case ModelFiles() if message != self._files:  # else the model was lost, and is back
                self._files = message
                for name in self._runs:
                    if room_of(name) in ("tokenizer", "detokenizer", "gateway"):
                        self._tell(name, message)
            case Fatal(process=name, message=reason):
                if self._was_ready:
                    log.error("the %s process cannot go on: %s", name, reason)
                else:
                    self.fatal = self.fatal or reason
                    self._exit_code = EXIT_FATAL
            case SetLogLevel(level=level):
                self.options["log_level"] = level  # for those that are started from now on
                process_log.set_level(level)
            case Drained(process=name):
                self._on_drained(name)
        self._on_event(message)

    def _on_ready(self, child: Child, info: dict[str, Any]) -> None:
        if "url" in info:
            self._port = urlsplit(info["url"]).port or self._port  # a Unix socket has none
        if child.losses and child.state != "ready":
            log.info("the %s process is back (%d)", child.name, child.losses)
        child.on_ready(time.monotonic())
        self._was_ready = self._was_ready or self.ready
        self._publish_states()

    # -- losses ----------------------------------------------------------------------------------------------------

    def _on_death(self, child: Child, returncode: int) -> None:
        if returncode == EXIT_FATAL and not self.fatal:
            for message in self._inbox.receive(1.0):  # its last words may still be on their way
                self._handle(message)
        self._on_loss(child, how_it_ended(returncode))

    def _on_loss(self, child: Child, how: str) -> None:
        """A process is gone: name it, have everybody forget that run, and see to the next one."""
        log.error("the %s process is lost (%s)", child.name, how)
        group = self._lost_with(child)
        now = time.monotonic()
        for member in group:
            member.kill()
            member.lose(now)
            self._announce(member.name)
        scheduler = self._children.get("scheduler")
        if scheduler is not None and scheduler.state == "ready" and room_of(child.name) == "model":
            scheduler.state = "starting"  # until it has been told anew what there is to schedule
        self._decide(child, group)
        self._publish_states()

    def _lost_with(self, child: Child) -> list[Child]:
        """A process that is lost, and those that cannot go on without it.

        The ranks of a model work in step. When the scheduler dies it may have sent a plan to some of them only.
        """
        ranks = [other for other in self._children.values() if room_of(other.name) == "model"]
        if child in ranks:
            return ranks
        return [child, *ranks] if room_of(child.name) == "scheduler" and len(ranks) > 1 else [child]

    def _decide(self, child: Child, group: list[Child]) -> None:
        """Whether the ring goes on."""
        if self._exit_code is not None:
            return
        limit = self.options["restart_limit"] if self._was_ready else 0
        if self._stops:
            for member in group:
                member.restart_at = None  # what runs to its end now gets there without it, or ends with an error
            self._on_drained(child.name)
        elif child.losses > limit:
            child.state = "failed"
            self._exit_code = EXIT_LOST
            if limit:
                log.error("the %s process was lost %d times in a row: --restart-limit", child.name, child.losses)
        else:
            assert child.restart_at is not None
            delay_s = child.restart_at - time.monotonic()
            log.info("the %s process starts again in %.1f s (%d of %d)", child.name, delay_s, child.losses, limit)

    def _announce(self, name: str) -> None:
        """Give a process that is gone its next epoch, and tell all others."""
        lost = Lost(name, self._runs[name], self._next_run(name))
        self._peers[name].redirect(lost.successor)
        if self._ledger is not None and name in self._gateways:
            self._tell(name, self._ledger.export())  # before any beat that comes from now on
        for other in self._children:
            if other != name:
                self._tell(other, lost)

    def _next_run(self, name: str) -> int:
        self._newest += 1
        self._runs[name] = self._newest
        self._inbox.replace(name, self._newest)
        return self._newest

    def _publish_states(self) -> None:
        self._tell_gateways(RingState({name: child.state for name, child in self._children.items()}))

    # -- stopping --------------------------------------------------------------------------------------------------

    def _on_stop(self) -> None:
        self._stops += 1
        children = self._children.values()
        self._draining = {child.name for child in children if child.name in self._gateways and child.state == "ready"}
        if self._stops > 1 or not self._draining:
            self._exit_code = 0
            return
        log.info("draining: running requests get %g s to finish", self.options["shutdown_timeout"])
        timeout_s = self.options["shutdown_timeout"]
        self._drain_deadline = time.monotonic() + timeout_s + DRAIN_GRACE_S
        self._tell_gateways(Drain(timeout_s))

    def _on_drained(self, name: str) -> None:
        """This gateway has nothing in flight any more; so has one that is lost."""
        if name in self._draining:
            self._draining.remove(name)
            if not self._draining:
                self._exit_code = 0

    # -- processes -------------------------------------------------------------------------------------------------

    def _start(self, child: Child) -> None:
        options = {**self.options, "port": self._port}
        child.start(self.ring_for(child.name), section(SECTIONS[room_of(child.name)], options), time.monotonic())
        if self._files is not None and room_of(child.name) in ("tokenizer", "detokenizer", "gateway"):
            self._tell(child.name, self._files)

    def _end_children(self) -> None:
        """Tell every process to leave, and kill what has not left in time."""
        for name, child in self._children.items():
            if child.state == "starting":
                child.kill()  # it may not read its inbox for a while yet, and there is nothing it could lose
            else:
                self._tell(name, Shutdown())
        deadline = time.monotonic() + SHUTDOWN_GRACE_S
        for name, child in self._children.items():
            if not child.wait(max(0.0, deadline - time.monotonic())):
                log.warning("the %s process does not leave: killed", name)
                child.kill()

    def _clean_up(self) -> None:
        for peer in self._peers.values():
            peer.close()
        self._inbox.close()
        self._context.term()
        if self._claim is not None:
            self._claim.release()
        with self._stop_lock:
            fds = [self._stop_read, self._stop_write]
            self._stop_write = -1  # the number may be another file's by the next call of `stop`
            for fd in fds:
                os.close(fd)
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def _tell_gateways(self, message: Any) -> None:
        for name in self._gateways:
            self._tell(name, message)

    def _tell(self, name: str, message: Any) -> None:
        self._peers[name].send(message)

    def _outbox(self, name: str) -> Outbox:
        return Outbox(self._context, self.run_dir, name, SUPERVISOR_EPOCH, self._runs[name])


def process_names(room: str, options: dict[str, Any]) -> list[str]:
    """The processes of a room: one, or as many as an option says."""
    count = options[COUNTS[room]] if room in COUNTS else 1
    return [worker_name(room, index) for index in range(count)]
