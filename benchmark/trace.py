"""Reads the timeline that /stop_profile wrote: spans of processes, ways of requests, stages of requests."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class TraceError(ValueError):
    """A file that is no timeline of a ring; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Span:
    """What a process did. Times are in microseconds since the begin of the trace."""

    process: str
    track: int
    name: str
    begin: float
    end: float
    args: dict[str, Any]


@dataclass(slots=True)
class Request:
    """One sequence: its stages lie one behind the other between `begin` and `end`."""

    rid: str
    begin: float = 0.0
    end: float = 0.0
    args: dict[str, Any] = field(default_factory=dict)
    stages: list[tuple[str, float, float]] = field(default_factory=list)

    @property
    def covered(self) -> float:
        """The share of its time that its stages account for, 0 to 1."""
        return union(((begin, end) for _, begin, end in self.stages)) / (self.end - self.begin)


@dataclass(slots=True)
class Trace:
    """All of it."""

    processes: list[str]  # in the order of the tracks
    tracks: dict[tuple[str, int], str]  # what each track of a process is called
    spans: list[Span]
    device: list[Span]  # what the torch profiler recorded
    requests: dict[str, Request]
    ways: dict[str, list[dict[str, Any]]]  # the arrows of each request, in order of time


def load(path: Path) -> Trace:
    """Read a trace. Raises TraceError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            events = json.load(file)["traceEvents"]
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise TraceError(f"{path} is no trace: {error!r}") from None
    names = {
        event["pid"]: event["args"]["name"].removeprefix("quintet: ")
        for event in events
        if event["ph"] == "M" and event["name"] == "process_name"
    }
    tracks = {
        (names[event["pid"]], event["tid"]): event["args"]["name"]
        for event in events
        if event["ph"] == "M" and event["name"] == "thread_name"
    }
    trace = Trace([names[pid] for pid in sorted(names)], tracks, [], [], {}, defaultdict(list))
    for event in events:
        match event["ph"]:
            case "X":
                begin = event["ts"]
                span = Span(
                    names[event["pid"]], event["tid"], event["name"], begin, begin + event.get("dur", 0.0),
                    event.get("args", {}),
                )  # fmt: skip
                (trace.spans if event.get("cat") == "ring" else trace.device).append(span)
            case "b" | "e" if event.get("cat") == "request":
                _add_stage(trace.requests.setdefault(event["id"], Request(event["id"])), event)
            case "s" | "t" | "f" if event.get("cat") == "way":
                trace.ways[event["id"]].append(event)
    for way in trace.ways.values():
        way.sort(key=lambda event: event["ts"])
    return trace


def _add_stage(request: Request, event: dict[str, Any]) -> None:
    if event["name"] == "request":
        if event["ph"] == "b":
            request.begin, request.args = event["ts"], event.get("args", {})
        else:
            request.end = event["ts"]
    elif event["ph"] == "b":
        request.stages.append((event["name"], event["ts"], event["ts"]))
    else:
        name, begin, _ = request.stages.pop()
        request.stages.append((name, begin, event["ts"]))


def union(intervals: Iterable[tuple[float, float]]) -> float:
    """How long at least one of the intervals lasts."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
