"""Which sequences end because another process of the ring was lost, and what their clients are told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ipc.control_messages import Lost
from ipc.messages import Refusal, Submit
from ipc.names import EPOCH_MASK, epoch_of, gateway_name, gateway_of, number_of, room_of, share_of
from scheduler_proc.sequence import Sequence


def ended_by(lost: Lost, sequences: Mapping[int, Sequence], detokenizers: int = 1) -> list[int]:
    """The rids of the sequences that cannot go on.

    A model takes all with it. A detokenizer, one of so many, takes those whose text it had begun; whoever still
    waits goes through its successor. A gateway takes its own: nobody reads them any more. What a tokenizer was at work
    on never came here.
    """
    match room_of(lost.process):
        case "model":
            return list(sequences)
        case "detokenizer":
            share = number_of(lost.process)
            opened = [rid for rid, sequence in sequences.items() if sequence.opened]
            return [rid for rid in opened if share_of(rid, detokenizers) == share]
        case "gateway":
            epoch = lost.epoch & EPOCH_MASK
            own = [rid for rid in sequences if gateway_name(gateway_of(rid)) == lost.process]
            return [rid for rid in own if epoch_of(rid) == epoch]
        case _:
            return []


def refusal(lost: Lost) -> Refusal:
    """What the client of such a sequence is told."""
    return Refusal(503, "unavailable_error", f"the server has lost a process ({lost.process}), and restarts it")


def submitted(messages: Iterable[Any]) -> list[int]:
    """The rids of the requests among messages that nobody has handled yet."""
    submits = [message for message in messages if type(message) is Submit]
    return [rid for submit in submits for rid in range(submit.rid, submit.rid + submit.n)]
