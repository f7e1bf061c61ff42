"""Faults on purpose, for tests and for the chaos runner.

    QUINTET_FAULT=process:point:kind[:nth],...

    QUINTET_FAULT=model:step:crash:100     the model dies in its 100th step
    QUINTET_FAULT=detokenizer:text:raise   no sequence can be turned into text

A process passes points that have names; where the variable names the process and the point, the fault of that kind
happens there: each time, or the nth time only, counted anew in every run. Points: `receive` (all: a batch of messages),
`send` (all: a frame), `prompt` (tokenizer: a request), `step` (model: a plan), `logits` and `sampling` (model: the
first row of a step, the latter not of a mock), `text` (detokenizer: a token of a sequence).

Without the variable nothing is ever armed, and a point costs the reading of one attribute.
"""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import dataclass

VARIABLE = "QUINTET_FAULT"
HANG_S = 1e6
SLOW_S = 0.05
KINDS = ("crash", "stop", "hang", "slow", "raise", "memory", "spoil")
PATTERN = rf"([^:]+):([^:]+):({'|'.join(KINDS)})(?::(\d+))?"


class FaultError(RuntimeError):
    """The fault that was asked for."""


@dataclass(slots=True)
class _Fault:
    kind: str
    nth: int  # 0 is each time
    passed: int = 0


armed = False  # whether this process has any
_faults: dict[str, _Fault] = {}  # by point


def arm(process: str, text: str | None = None) -> None:
    """Read the variable for the process of this name. Raises ValueError when it makes no sense."""
    global armed
    _faults.clear()
    for entry in filter(None, (os.environ.get(VARIABLE, "") if text is None else text).split(",")):
        match = re.fullmatch(PATTERN, entry)
        if match is None:
            raise ValueError(f"{VARIABLE}: {entry!r} is not process:point:kind[:nth] with a kind of {', '.join(KINDS)}")
        name, point, kind, nth = match.groups()
        if name == process:
            _faults[point] = _Fault(kind, int(nth or 0))
    armed = bool(_faults)


def at(point: str) -> bool:
    """Have the fault of this point happen, if there is one. True asks the caller to spoil what it has at hand."""
    fault = _faults.get(point)
    if fault is None:
        return False
    fault.passed += 1
    if fault.nth and fault.passed != fault.nth:
        return False
    match fault.kind:
        case "crash":
            os._exit(70)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "hang":
            time.sleep(HANG_S)
        case "slow":
            time.sleep(SLOW_S)
        case "raise":
            raise FaultError(f"the fault at {point} that was asked for")
        case "memory":
            raise MemoryError(f"the fault at {point} that was asked for")
    return fault.kind == "spoil"
