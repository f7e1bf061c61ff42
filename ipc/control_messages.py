"""The other half of the protocol: start-up, health, profiling, recovery and shutdown. `ipc.messages` has the requests.

Most of it goes through the supervisor, the sixth inbox. Times and frames are as there.
"""

from __future__ import annotations

from dataclasses import dataclass

from ipc.codec import Ids, Ints, Longs, Map, message

# ---------------------------------------------------------------------------------------------------------------------
# Start-up, health and shutdown


@message(32)
@dataclass(slots=True)
class ModelFiles:
    """model -> supervisor -> tokenizer, detokenizer, gateway: which model this is; known before its weights load."""

    name: str
    folder: str  # "" for the mock
    tokenizer_folder: str  # "" for the mock: it has a vocabulary of its own
    max_model_len: int
    vocab_size: int
    defaults: Map  # sampling defaults of the model's generation config: temperature, top_p, top_k, ...
    reads_prompts: bool = True  # it gives log-probabilities and embeddings of prompts


@message(33)
@dataclass(slots=True)
class RunnerReady:
    """model -> scheduler: the weights are loaded; this is what there is to schedule."""

    num_blocks: int
    block_size: int
    max_model_len: int
    max_num_seqs: int
    eos_token_ids: Ids
    lanes: int = 1  # steps that it can work on at the same time; with more than one, no slot may be in two of them


@message(34)
@dataclass(slots=True)
class Ready:
    """any process -> supervisor: it can work."""

    process: str
    info: Map


@message(35)
@dataclass(slots=True)
class Loading:
    """model -> supervisor: how far it is, for the progress bar and `/ready`."""

    phase: str
    done: int
    total: int  # same unit as done; 0 when unknown


@message(36)
@dataclass(slots=True)
class Fatal:
    """any process -> supervisor: it cannot work and exits; one line that says what to do."""

    process: str
    message: str


@message(37)
@dataclass(slots=True)
class Beat:
    """any process -> supervisor -> gateways: it lives. Sent by a side thread, so a long step does not silence it."""

    process: str
    progress: int  # grows with every message handled and every step
    stats: Map  # the process's own figures
    working: bool = False  # something is being done or due: without progress for long, that is a bad sign


@message(38)
@dataclass(slots=True)
class RingState:
    """supervisor -> gateways: which processes are ready; sent at every change.

    A gateway that can serve from now on sends it back, so that nobody is told so too early.
    """

    states: Map  # process name -> "starting", "ready", "lost", or "failed": it will not be restarted
    gateway: str = ""  # who sends it back


@message(39)
@dataclass(slots=True)
class Drain:
    """supervisor -> gateway: take no new requests, finish those that run, abort what is left at the deadline."""

    timeout_s: float


@message(40)
@dataclass(slots=True)
class Drained:
    """gateway -> supervisor: nothing is in flight any more."""

    process: str
    aborted: int  # requests that had to be cut


@message(41)
@dataclass(slots=True)
class Shutdown:
    """supervisor -> any process: leave the loop and exit."""


@message(48)
@dataclass(slots=True)
class Counted:
    """supervisor -> one of several gateways, at its start: what all processes have reported so far (`ipc.ledger`).

    So the sums that it shows go on from those of its predecessor.
    """

    now: Map  # process name -> its last figures
    before: Map  # process name -> what its earlier runs had counted


@message(47)
@dataclass(slots=True)
class SetLogLevel:
    """gateway -> any process, the supervisor too: say more, or less, in the log."""

    level: str  # one of ipc.log.LEVELS


# ---------------------------------------------------------------------------------------------------------------------
# Profiling


@message(43)
@dataclass(slots=True)
class StartProfile:
    """gateway -> any process: record spans from now on."""

    reply_to: str  # the gateway that asks: the first one, of several
    steps: int  # the scheduler says StepLimit after so many; 0 is never
    torch: bool  # the model's process runs the torch profiler as well
    stacks: bool  # with Python stacks
    shapes: bool  # with the shapes of tensors


@message(44)
@dataclass(slots=True)
class StopProfile:
    """gateway -> any process: record no more, and send what there is."""

    reply_to: str


@message(45)
@dataclass(slots=True)
class SpanChunk:
    """any process -> gateway: a part of what was recorded, one row a span (`ipc.spans`), and of what comes with it."""

    process: str
    kinds: Ints
    begins: Longs
    ends: Longs
    ids: Longs
    args: Longs
    detail: bytes  # a part of one JSON document: the model's torch events, a gateway's requests; b"" without one
    dropped: int  # older spans that there was no room for
    last: bool


@message(46)
@dataclass(slots=True)
class StepLimit:
    """scheduler -> gateway: as many steps were planned as the profile should have."""


# ---------------------------------------------------------------------------------------------------------------------
# Recovery: what happens when a process dies. docs/architecture.md, "A process dies", has the rules.


@message(50)
@dataclass(slots=True)
class Lost:
    """supervisor -> all others: this run of a process is over, and `successor` is the epoch of the next one.

    `ipc.process` takes it in before the room sees it: from then on frames of the old run are dropped, and what is sent
    to that process goes to the new run.
    """

    process: str
    epoch: int
    successor: int


@message(51)
@dataclass(slots=True)
class Held:
    """scheduler -> gateways: it holds these sequences, and no others, of what went through a process that was lost.

    After the loss of a tokenizer it goes through the detokenizer, behind the Tails of what has ended; after the loss of
    a detokenizer straight to the gateways. It is about the sequences of one detokenizer, `share`, alone.
    """

    process: str  # whose loss this is about, and the epoch of the run that was lost
    epoch: int
    share: int  # index of the detokenizer
    rids: Longs
