"""One process of the ring, seen from the supervisor: its runs one after another, and the signs of life of this one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ipc.config import RingConfig
from ipc.control_messages import Beat
from ipc.names import room_of

HOME = Path(__file__).resolve().parent.parent
PACKAGES = {
    "gateway": "gateway",
    "tokenizer": "tokenizer_proc",
    "scheduler": "scheduler_proc",
    "model": "model_proc",
    "detokenizer": "detok_proc",
}
SILENCE_S = 1.5  # without a beat for so long, a process is looked at: it may have been stopped
HEALTHY_S = 10.0  # after so long a life the losses before it are forgotten
KILL_PATIENCE_S = 0.5  # for a killed process to be gone
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 5.0  # before a restart; doubled with every loss in a row


def module_command(module: str) -> list[str]:
    """How a module of ours is run as a program."""
    return [sys.executable, "-P", "-m", module]  # -P: not what the current folder calls so


def module_environment() -> dict[str, str]:
    """And in which environment: it finds ours wherever it is started from."""
    path = os.pathsep.join(filter(None, [str(HOME), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


class Child:
    """A process and its state: "starting", "ready", "lost" (to be started again), or "failed" (it will not be).

    Times are seconds on the monotonic clock, and given by the caller.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.epoch = 0
        self.state = "starting"
        self.losses = 0  # in a row
        self.restart_at: float | None = None
        self.pidfd = -1  # becomes readable when the process dies; -1 when there is none
        self._process: subprocess.Popen[bytes] | None = None
        self._ready_at = 0.0
        self._beat_at = 0.0
        self._progress = -1
        self._progress_at = 0.0

    def start(self, ring: RingConfig, config: Any, now: float) -> None:
        """Begin a run."""
        process = subprocess.Popen(
            module_command(PACKAGES[room_of(self.name)]),
            stdin=subprocess.PIPE,
            env=module_environment(),
            process_group=0,  # Ctrl-C is for the supervisor alone
        )
        self._process = process
        self.pidfd = os.pidfd_open(process.pid)
        self.state = "starting"
        self.restart_at = None
        self._beat_at = now
        self._progress = -1
        settings = {"name": self.name, "ring": asdict(ring), "config": asdict(config)}
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died already, and its descriptor says so
            process.stdin.write(json.dumps(settings).encode() + b"\n")
            process.stdin.flush()  # and left open: the child lives as long as this pipe

    # -- signs of life -------------------------------------------------------------------------------------------------

    def on_ready(self, now: float) -> None:
        self.state = "ready"
        self._ready_at = now
        self._progress = -1

    def on_beat(self, beat: Beat, now: float) -> None:
        self._beat_at = now
        if beat.progress != self._progress or not beat.working:
            self._progress = beat.progress
            self._progress_at = now

    def ailment(self, now: float, execute_timeout_s: float) -> str | None:
        """What is wrong with a process that has not died, if anything.

        Being busy is not. A step may take a minute, and a library may keep the beat's thread from running meanwhile;
        so silence alone proves nothing: the kernel is asked whether the process has been stopped. Only one that is
        at work on something and gets nowhere for very long is given up.
        """
        if self.pidfd < 0:
            return None
        if now - self._beat_at > SILENCE_S and self._is_stopped():
            return f"stopped: no sign of life for {now - self._beat_at:.1f} s"
        if self.state == "ready" and self._progress >= 0:
            silence = now - max(self._progress_at, self._ready_at)
            if silence > execute_timeout_s:
                return f"without progress for {silence:.0f} s"
        return None

    def _is_stopped(self) -> bool:
        assert self._process is not None
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] == "T"

    # -- its end -------------------------------------------------------------------------------------------------------

    def death(self) -> int | None:
        """The exit code of a process that has died; asked once, it is then buried."""
        if self.pidfd < 0 or self._process is None or self._process.poll() is None:
            return None
        self._bury()
        return self._process.returncode

    def lose(self, now: float) -> None:
        """This run is over. Another one is due after a delay that grows with every loss in a row."""
        if self.state == "ready" and now - self._ready_at > HEALTHY_S:
            self.losses = 0
        self.losses += 1
        self.state = "lost"
        self.restart_at = now + min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (self.losses - 1))

    def kill(self) -> None:
        """End it now, whatever it does: a stopped process dies of this too."""
        if self._process is not None and self.pidfd >= 0:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it: it dies when that lets go
                self._process.wait(KILL_PATIENCE_S)
            self._bury()

    def wait(self, timeout_s: float) -> bool:
        """Wait for a process that was told to leave; whether it has."""
        if self._process is not None and self.pidfd >= 0:
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return False
            self._bury()
        return True

    def _bury(self) -> None:
        os.close(self.pidfd)
        self.pidfd = -1
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


def how_it_ended(returncode: int) -> str:
    return signal.Signals(-returncode).name if returncode < 0 else f"exit code {returncode}"
