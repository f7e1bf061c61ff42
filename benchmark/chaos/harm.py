"""What is done to the server: each kind in turn, so that a long run has seen all of them about equally often."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import zmq

from benchmark.chaos.clients import Load
from benchmark.server import Server

FLOOD = 1500
LEAVERS = 100
IDLE_CONNECTIONS = 200
RING = ("gateway", "tokenizer", "scheduler", "model", "detokenizer")

GENTLE = ["flood", "leave", "noise", "idle connections"]  # what no process should die of
FAULTS = [*(f"{how} {name}" for name in RING for how in ("kill", "stop")), *GENTLE]


class Harm:
    """Does one thing after the other to a server, and remembers what."""

    def __init__(self, server: Server, load: Load, seed: int, kinds: list[str]) -> None:
        self.kinds = kinds
        self.done: list[str] = []
        self._server = server
        self._load = load
        self._random = random.Random(seed)
        self._left: list[str] = []

    async def next(self) -> str:
        """Do the next thing. Returns its name."""
        if not self._left:
            self._left = self.kinds.copy()
            self._random.shuffle(self._left)
        what = self._left.pop()
        self.done.append(what)
        how, _, name = what.partition(" ")
        deeds: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "flood": lambda: self._load.flood(FLOOD),
            "leave": lambda: self._load.leave_at_once(LEAVERS),
            "noise": self._send_noise,
            "idle": self._open_idle_connections,
        }
        if how in deeds:
            await deeds[how]()
        else:
            self._signal(name, signal.SIGKILL if how == "kill" else signal.SIGSTOP)
        return what

    def _signal(self, name: str, number: int) -> None:
        try:
            workers = [process for each, process in self._server.processes().items() if each.split()[0] == name]
            process = self._random.choice(workers)
        except (psutil.Error, IndexError):
            return  # it is being restarted
        if name == "gateway":
            # A stopped one is killed a moment later.
            self._load.gateway_lost += [time.monotonic() + later for later in (0.0, 2.0)]
        process.send_signal(number)

    async def _send_noise(self) -> None:
        """Frames that are no messages, to every inbox, from a process that does not belong there."""
        await asyncio.get_running_loop().run_in_executor(None, send_noise, folder_of_sockets(self._server))

    async def _open_idle_connections(self) -> None:
        """Connections that say nothing, or half a head, and are closed after a while."""
        host, port = self._server.url.removeprefix("http://").split(":")
        opened = await asyncio.gather(
            *(asyncio.open_connection(host, int(port)) for _ in range(IDLE_CONNECTIONS)), return_exceptions=True
        )
        writers = [pair[1] for pair in opened if not isinstance(pair, BaseException)]
        for writer in writers[::2]:
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n")
        await asyncio.sleep(2.0)
        for writer in writers:
            writer.close()


def folder_of_sockets(server: Server) -> Path:
    """The private folder of a ring, from one of its processes."""
    for process in server.processes().values():
        try:
            paths = [str(connection.laddr) for connection in process.net_connections("unix")]
        except psutil.Error:
            continue
        for path in paths:
            if "quintet-" in path:
                return Path(path).parent
    raise RuntimeError("no process of the ring has a socket")


def send_noise(folder: Path) -> None:
    """Bad frames into every inbox of a folder."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    for path in folder.iterdir():
        socket = context.socket(zmq.PUSH)
        socket.linger = 1000
        socket.connect(f"ipc://{path}")
        for frame in (b"", b"noise", os.urandom(100_000), b"\x93\x01\x01\xc0", b"\x91" * 100_000):
            socket.send(frame)
        socket.close()
    context.term()
