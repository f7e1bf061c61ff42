"""The life of a profile: started, stopped, put together, written. One at a time in a ring."""

from __future__ import annotations

import asyncio
import gzip
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gateway.errors import ApiError
from gateway.observer import Observer
from gateway.profiling.parts import Part
from gateway.profiling.trace import trace_events
from gateway.ring import RingView
from ipc.control_messages import SpanChunk, StartProfile, StopProfile
from ipc.names import room_of
from ipc.process import Process
from ipc.profiling import chunks
from ipc.spans import Recording

PATIENCE_S = 10.0  # for the parts of the processes
TORCH_PATIENCE_S = 120.0  # what the torch profiler has recorded takes long to be written down

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to profile."""

    processes: tuple[str, ...] = ()  # kinds such as "model"; none is all
    seconds: float = 0.0  # how long; 0 is until it is stopped
    steps: int = 0  # or how many steps of the model
    torch: bool = True  # the torch profiler, where there is torch
    stacks: bool = False
    shapes: bool = False
    file: Path | None = None  # where to; None makes a name in the server's folder
    prefix: str = ""  # of that name


class Profiler:
    """Asks the processes for their parts, and writes the trace. Of several gateways the first one has it do so; the
    others have parts in it."""

    def __init__(self, process: Process, ring: RingView, observer: Observer, folder: str) -> None:
        self._process = process
        self._ring = ring
        self._observer = observer
        self._folder = Path(folder)
        self._active = False
        self._torch = False
        self._path = Path()
        self._timer: asyncio.TimerHandle | None = None
        self._finishing: asyncio.Task[dict[str, Any]] | None = None
        self._result: dict[str, Any] | None = None  # of a profile that ended by itself, until somebody asks
        self._parts: dict[str, Part] = {}
        self._missing: set[str] = set()
        self._all_here = asyncio.Event()

    # -- what is asked for ---------------------------------------------------------------------------------------------

    async def start(self, wanted: Wanted) -> dict[str, Any]:
        """Let the processes record. Raises ApiError: 409 when they do so already, 500 when nothing can be written."""
        if self._active:
            raise ApiError(409, "a profile is running already; end it with POST /stop_profile")
        path = wanted.file or self._new_path(wanted.prefix)
        self._active = True  # before the first wait: nobody else gets past here
        try:
            await asyncio.to_thread(_check_writable, path)
        except OSError as error:
            self._active = False
            raise _cannot_write(path, error) from error
        self._result = None
        self._path, self._torch = path, wanted.torch
        recorded = []
        for name, state in self._ring.states.items():
            if state == "ready" and (not wanted.processes or room_of(name) in wanted.processes):
                recorded.append(name)
                message = StartProfile(self._process.name, wanted.steps, wanted.torch, wanted.stacks, wanted.shapes)
                self._send(name, message)
        if wanted.seconds:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(wanted.seconds, self._finish_by_itself)
        return {"status": "profiling", "trace": str(path), "processes": recorded}

    async def stop(self) -> dict[str, Any]:
        """End the profile and write it: where it is, and how large. Raises ApiError 409 and 500."""
        if self._finishing is not None:
            return await asyncio.shield(self._finishing)
        if self._result is not None:
            result, self._result = self._result, None
            return result
        if not self._active:
            raise ApiError(409, "no profile is running; begin one with POST /start_profile")
        self._finishing = asyncio.create_task(self._finish())
        return await asyncio.shield(self._finishing)

    async def close(self, patience_s: float) -> None:
        """End a profile that is still running, because the server does; what cannot be written in time is lost."""
        if self._active:
            try:
                async with asyncio.timeout(patience_s):
                    result = await self.stop()
                log.info("profile: %s (%d bytes)", result["trace"], result["bytes"])
            except (ApiError, TimeoutError) as error:
                log.error("the profile is lost: %s", error or "it took too long to write")

    # -- what the ring brings ------------------------------------------------------------------------------------------

    def on_start(self, message: StartProfile) -> None:
        """A profile has begun, and this gateway has a part in it."""
        self._process.profiled.start(message)
        self._observer.record(True)

    def on_stop(self, message: StopProfile) -> None:
        """It has ended: send what was recorded here."""
        requests = self._observer.record(False)
        recording = self._process.spans.stop() if self._process.spans.on else Recording([], 0)
        detail = orjson.dumps({"requests": requests}) if requests else b""
        for chunk in chunks(self._process.name, recording, detail):
            if message.reply_to == self._process.name:
                self.on_chunk(chunk)
            else:
                self._process.peer(message.reply_to).send(chunk)

    def on_chunk(self, chunk: SpanChunk) -> None:
        """A part of what a process has recorded."""
        if chunk.process in self._missing:
            self._parts.setdefault(chunk.process, Part()).add(chunk)
            if chunk.last:
                self._missing.discard(chunk.process)
                if not self._missing:
                    self._all_here.set()

    def on_step_limit(self) -> None:
        """As many steps were planned as were asked for."""
        self._finish_by_itself()

    # ------------------------------------------------------------------------------------------------------------------

    def _finish_by_itself(self) -> None:
        if self._active and self._finishing is None:
            self._finishing = asyncio.create_task(self._finish())
            self._finishing.add_done_callback(self._keep_result)

    def _keep_result(self, task: asyncio.Task[dict[str, Any]]) -> None:
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            log.error("the profile is lost: %s", error)
        else:
            self._result = task.result()
            log.info("profile: %s (%d bytes)", self._result["trace"], self._result["bytes"])

    async def _finish(self) -> dict[str, Any]:
        try:
            return await self._collect_and_write()
        finally:
            self._forget()

    async def _collect_and_write(self) -> dict[str, Any]:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ready = [name for name, state in self._ring.states.items() if state == "ready"]
        self._parts, self._missing = {}, set(ready)
        self._all_here.clear()
        for name in ready:
            self._send(name, StopProfile(self._process.name))
        try:
            async with asyncio.timeout(TORCH_PATIENCE_S if self._torch else PATIENCE_S):
                await self._all_here.wait()
        except TimeoutError:
            log.warning("profile: nothing has come from %s", ", ".join(sorted(self._missing)))
        parts = {name: part for name, part in sorted(self._parts.items()) if part.rows or part.detail}
        missing, self._parts = sorted(self._missing), {}
        try:
            size = await asyncio.to_thread(write_trace, self._path, parts)
        except OSError as error:
            raise _cannot_write(self._path, error) from error
        dropped = {name: part.dropped for name, part in parts.items() if part.dropped}
        return {"trace": str(self._path), "bytes": size, "missing": missing, "dropped_spans": dropped}

    def _forget(self) -> None:
        """No profile is running any more."""
        self._active = False
        self._finishing = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send(self, name: str, message: Any) -> None:
        if name == self._process.name:
            on: Callable[[Any], None] = self.on_start if isinstance(message, StartProfile) else self.on_stop
            on(message)
        else:
            self._process.peer(name).send(message)

    def _new_path(self, prefix: str) -> Path:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        name = f"{prefix or 'quintet'}-{stamp}-{time.monotonic_ns() // 1_000_000 % 1000:03}.json.gz"
        return self._folder.resolve() / name


def write_trace(path: Path, parts: Mapping[str, Part]) -> int:
    """Write what the processes have recorded as one trace, gzipped if the name ends in .gz; its size in bytes.

    Nothing is left behind when that fails. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    try:
        with open(temporary, "wb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=4, filename="", mtime=0) as file:
                    _write_events(file.write, parts)
            else:
                _write_events(raw.write, parts)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return path.stat().st_size


def _write_events(write: Callable[[bytes], Any], parts: Mapping[str, Part]) -> None:
    write(b'{"displayTimeUnit":"ns","otherData":{"clock":"CLOCK_MONOTONIC"},"traceEvents":[\n')
    for number, event in enumerate(trace_events(parts)):
        write((b",\n" if number else b"") + orjson.dumps(event))
    write(b"\n]}\n")


def _check_writable(path: Path) -> None:
    """Raise OSError unless there can be a file there. One that is there already stays until it is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "wb"):
        pass
    temporary.unlink()


def _cannot_write(path: Path, error: OSError) -> ApiError:
    return ApiError(500, f"the profile cannot be written to {path}: {error.strerror or error}")
