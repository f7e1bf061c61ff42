"""The life of a sequence as a table: which event leads from which state to which.

    HELD --released--> WAITING --admitted--> PREFILL --prefill_finished--> DECODE --finished--> FINISHED
                       ^  ^                     |  `------finished-----------|------------------^
    PREPARING -prepared'  |                     `----preempted----.          |
                          `------requeued------- PREEMPTED <------'----------'

A sequence whose output follows a grammar begins in PREPARING, unless the runner has compiled that already. From every
state that is not an end, `canceled`, `expired` and `failed` lead to CANCELED, TIMED_OUT and FAILED. A sequence may be
in DECODE for thousands of steps, so `decoded`, which leads from there to there, happens only when every token is to be
noted.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ipc.messages import ABORT, ERROR, LENGTH, STOP, TIMEOUT


class State(Enum):
    """Where a sequence is."""

    NEW = "new"  # just arrived
    PREPARING = "preparing"  # waits until the runner has compiled its grammar
    HELD = "held"  # waits for the prefill of a sibling with the same prompt
    WAITING = "waiting"  # in the queue
    PREFILL = "prefill"  # has a slot; its first token (after an admission) is not there yet
    DECODE = "decode"  # has a slot, and grows by a token a step
    PREEMPTED = "preempted"  # lost its slot; queued again once its last step's result is there
    FINISHED = "finished"  # came to its own end: an end of sequence, a stop, or its length
    CANCELED = "canceled"  # nobody wanted it any more
    TIMED_OUT = "timed_out"  # its deadline passed
    FAILED = "failed"  # refused, or its work failed


class Event(Enum):
    """What happens to a sequence."""

    QUEUED = "queued"
    PREPARE = "prepare"
    PREPARED = "prepared"
    HELD_BACK = "held_back"
    RELEASED = "released"
    ADMITTED = "admitted"
    PREFILL_CHUNK = "prefill_chunk"
    PREFILL_FINISHED = "prefill_finished"
    DECODED = "decoded"
    PREEMPTED = "preempted"
    REQUEUED = "requeued"
    FINISHED = "finished"
    CANCELED = "canceled"
    EXPIRED = "expired"
    FAILED = "failed"


ENDS = frozenset({State.FINISHED, State.CANCELED, State.TIMED_OUT, State.FAILED})

TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.NEW, Event.QUEUED): State.WAITING,
    (State.NEW, Event.PREPARE): State.PREPARING,
    (State.NEW, Event.HELD_BACK): State.HELD,
    (State.PREPARING, Event.PREPARED): State.WAITING,
    (State.HELD, Event.PREPARE): State.PREPARING,  # the sibling that it was held back for is gone
    (State.HELD, Event.RELEASED): State.WAITING,
    (State.WAITING, Event.ADMITTED): State.PREFILL,
    (State.PREFILL, Event.PREFILL_CHUNK): State.PREFILL,
    (State.PREFILL, Event.PREFILL_FINISHED): State.DECODE,
    (State.PREFILL, Event.PREEMPTED): State.PREEMPTED,
    (State.DECODE, Event.DECODED): State.DECODE,
    (State.DECODE, Event.PREEMPTED): State.PREEMPTED,
    (State.PREEMPTED, Event.REQUEUED): State.WAITING,
    # A stop string is found in text, so it may meet a sequence that has lost its slot meanwhile.
    (State.WAITING, Event.FINISHED): State.FINISHED,
    (State.PREFILL, Event.FINISHED): State.FINISHED,
    (State.DECODE, Event.FINISHED): State.FINISHED,
    (State.PREEMPTED, Event.FINISHED): State.FINISHED,
}
for _state in set(State) - ENDS:
    TRANSITIONS[_state, Event.CANCELED] = State.CANCELED
    TRANSITIONS[_state, Event.EXPIRED] = State.TIMED_OUT
    TRANSITIONS[_state, Event.FAILED] = State.FAILED

END_OF_REASON = {
    STOP: Event.FINISHED,
    LENGTH: Event.FINISHED,
    ABORT: Event.CANCELED,
    TIMEOUT: Event.EXPIRED,
    ERROR: Event.FAILED,
}


class LifeCycleError(RuntimeError):
    """An event came upon a sequence in a state that it cannot come upon."""


@dataclass(slots=True)
class Transition:
    """One line of the request log."""

    request_id: str
    choice: int
    before: State
    event: Event
    after: State
    time_ns: int

    def __str__(self) -> str:
        return f"{self.request_id}[{self.choice}]: {self.before.value} --{self.event.value}--> {self.after.value}"


def after(state: State, event: Event) -> State:
    """Where an event leads. Raises LifeCycleError for what cannot happen."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise LifeCycleError(f"{event.value} cannot happen to a sequence that is {state.value}") from None
