"""A profile as events of Chrome's trace format, which Perfetto shows: a track group for every process, on one clock.

Spans are slices of their process's threads. Each sequence has slices of its own too, in the gateway's group, for the
stages that it went through; arrows follow it round the ring, through the step that it was admitted to, the one that
sampled its first token, and the one that sampled its last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from gateway.profiling.parts import Part, Recorded
from ipc.names import gateway_name, gateway_of, number_of
from ipc.spans import (
    ADMIT,
    COLLECT,
    DETOKENIZE,
    FORMAT,
    GC,
    LAUNCH,
    NAMES,
    PLAN,
    READ,
    RESULT,
    SEND,
    STEP,
    SUBMIT,
    TEXT,
    TOKENIZE,
    Row,
)

ORDER = ("gateway", "tokenizer", "scheduler", "model", "detokenizer")  # round the ring
# What a span's id and argument are called in its slice.
ARGUMENTS = {
    READ: ("rid", "sequences"),
    TEXT: ("time_ns", "rows"),
    FORMAT: ("rid", "bytes"),
    TOKENIZE: ("rid", "thread"),
    SUBMIT: ("rid", "prompt_tokens"),
    ADMIT: ("rid", "step"),
    PLAN: ("step", "tokens"),
    RESULT: ("step", "sampled"),
    LAUNCH: ("step", "rows"),
    STEP: ("step", "sampled"),
    COLLECT: ("step", ""),
    DETOKENIZE: ("time_ns", "rows"),
    GC: ("generation", ""),
    SEND: ("time_ns", "rows"),
}
LOOP, GC_THREAD, FIRST_LANE, FIRST_TORCH = 1, 90, 10, 100  # numbers of tracks within a process

Event = dict[str, Any]
Place = tuple[int, int, int]  # pid, tid and the moment of a slice's begin, ns


def trace_events(parts: Mapping[str, Part]) -> Iterator[Event]:
    """All events, in no order; times in microseconds since the earliest one."""
    pids = {name: place + 1 for place, name in enumerate(sorted(parts, key=_position))}
    requests = [Recorded(**row) for name, part in parts.items() if _kind(name) == "gateway" for row in _requests(part)]
    begins = [row[1] for part in parts.values() for row in part.rows]
    start_ns = min([*begins, *(request.received_ns for request in requests)], default=0)
    slices = Slices()
    for name, part in parts.items():
        pid = pids[name]
        yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": f"quintet: {name}"}}
        yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}}
        tracks: dict[int, str] = {LOOP: "loop"}
        for row, tid in _with_tracks(part.rows, tracks):
            yield _slice(row, pid, tid, start_ns)
            slices.add(row, (pid, tid, row[1]))
        if _kind(name) == "model":
            yield from _torch_events(part, pid, tracks, start_ns)
        for tid, track in tracks.items():
            yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": track}}
            yield {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}
    for request in requests:
        yield from _stages(request, pids.get(gateway_name(gateway_of(request.rid)), 1), start_ns)
        yield from _arrows(request, slices, start_ns)


class Slices:
    """Where the slices are that arrows go through."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, int], Place] = {}  # by kind and id
        self._admitted: dict[int, int] = {}  # rid -> the step that it was admitted to first
        self._by_result: dict[int, int] = {}  # the time of a result -> its step

    def add(self, row: Row, place: Place) -> None:
        kind, begin, _, id, arg = row
        self._places.setdefault((kind, id), place)
        if kind == ADMIT:
            self._admitted.setdefault(id, arg)
        elif kind == RESULT:
            self._by_result[begin] = id

    def way(self, request: Recorded) -> list[Place]:
        """The slices that a sequence went through, in order of time, as far as they were recorded."""
        rid, first_rid = request.rid, request.first_rid
        found = [(READ, first_rid), (TOKENIZE, first_rid), (SUBMIT, first_rid)]
        if (step := self._admitted.get(rid)) is not None:
            found += _through_model(step)
        if request.first_step >= 0:
            found += _through_model(request.first_step)
        for time_ns in (request.first_token_ns, request.finished_ns):
            if (step := self._by_result.get(time_ns)) is not None:
                found += _through_model(step)
            found += [(SEND, time_ns), (DETOKENIZE, time_ns), (TEXT, time_ns)]
        places = {self._places[key] for key in found if key in self._places}
        return sorted(places, key=lambda place: place[2])


def _through_model(step: int) -> list[tuple[int, int]]:
    return [(PLAN, step), (LAUNCH, step), (STEP, step), (COLLECT, step), (RESULT, step)]


def _requests(part: Part) -> list[dict[str, Any]]:
    names = [each.name for each in fields(Recorded)]
    return [dict(zip(names, row, strict=True)) for row in part.document().get("requests", [])]


def _with_tracks(rows: list[Row], tracks: dict[int, str]) -> Iterator[tuple[Row, int]]:
    """Each row with the track that it belongs on; new tracks are named in `tracks`."""
    lanes: list[int] = []  # when each lane's last step ends
    for row in sorted(rows, key=lambda row: row[1]):
        kind, begin, end, _, arg = row
        if kind == STEP:
            lane = next((number for number, free in enumerate(lanes) if free <= begin), None)
            if lane is None and lanes and len(lanes) == 1 and end > lanes[0]:
                # Launched behind a step that was still at work: it began when that one ended.
                row, lane = (kind, lanes[0], end, row[3], arg), 0
            if lane is None:
                lane = len(lanes)
                lanes.append(0)
                tracks[FIRST_LANE + lane] = f"steps {lane}" if lane else "steps"
            lanes[lane] = end
            yield row, FIRST_LANE + lane
        elif kind == TOKENIZE and arg:
            tracks[FIRST_LANE + arg] = f"thread {arg}"
            yield row, FIRST_LANE + arg
        elif kind == GC:
            tracks[GC_THREAD] = "garbage collections"
            yield row, GC_THREAD
        else:
            yield row, LOOP


def _slice(row: Row, pid: int, tid: int, start_ns: int) -> Event:
    kind, begin, end, id, arg = row
    id_name, arg_name = ARGUMENTS[kind]
    args = {id_name: id} | ({arg_name: arg} if arg_name else {})
    return {
        "ph": "X", "name": NAMES[kind], "cat": "ring", "pid": pid, "tid": tid, "ts": (begin - start_ns) / 1000,
        "dur": (end - begin) / 1000, "args": args,
    }  # fmt: skip


def _stages(request: Recorded, pid: int, start_ns: int) -> Iterator[Event]:
    """A sequence as slices on a track of its own."""
    common = {"cat": "request", "id": hex(request.rid), "pid": pid, "tid": LOOP}
    args = {
        "request_id": request.request_id, "reason": request.reason, "prompt_tokens": request.prompt_tokens,
        "output_tokens": request.output_tokens,
    }  # fmt: skip
    whole = ("request", request.received_ns, request.sent_ns)
    for name, begin, end in (whole, *request.stages()):
        extra = {"args": args} if name == "request" else {}
        yield {"ph": "b", "name": name, "ts": (begin - start_ns) / 1000, **common, **extra}
        yield {"ph": "e", "name": name, "ts": (end - start_ns) / 1000, **common}


def _arrows(request: Recorded, slices: Slices, start_ns: int) -> Iterator[Event]:
    places = slices.way(request)
    for number, (pid, tid, begin) in enumerate(places):
        if len(places) < 2:
            return
        phase = "s" if number == 0 else "f" if number == len(places) - 1 else "t"
        binding = {"bp": "e"} if phase == "f" else {}
        yield {
            "ph": phase, "name": "way", "cat": "way", "id": hex(request.rid), "pid": pid, "tid": tid,
            "ts": (begin - start_ns) / 1000, **binding,
        }  # fmt: skip


def _torch_events(part: Part, pid: int, tracks: dict[int, str], start_ns: int) -> Iterator[Event]:
    """The torch profiler's events on tracks of the model's process."""
    tids: dict[tuple[Any, Any], int] = {}
    for event in part.document().get("events", []):
        key = (event.get("pid"), event.get("tid"))
        if key not in tids:
            tids[key] = FIRST_TORCH + len(tids)
            tracks[tids[key]] = f"torch: {key[0]} / {key[1]}"
        yield event | {"pid": pid, "tid": tids[key], "ts": event["ts"] - start_ns / 1000}


def _kind(name: str) -> str:
    return name.partition(".")[0]


def _position(name: str) -> tuple[int, int]:
    """Where a process stands in the ring, and its number among its kind."""
    return ORDER.index(_kind(name)), number_of(name)
