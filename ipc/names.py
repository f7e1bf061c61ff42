"""What things are called inside the ring: the rids of sequences, and the processes.

A sequence is known by its `rid`, a 64-bit integer that the gateway hands out: the gateway's index in the bits above
`RID_BITS`, then the epoch of its run, a counter in the lowest `COUNTER_BITS`. So a rid is never used again, and the
rids of a gateway that died are told from those of its successor. A request for n choices takes n consecutive rids and
is named by the first.
"""

from __future__ import annotations

RID_BITS = 56
COUNTER_BITS = 40
EPOCH_MASK = (1 << (RID_BITS - COUNTER_BITS)) - 1
WORD = (1 << 64) - 1
GOLDEN_RATIO = 0x9E3779B97F4A7C15  # its fraction in 64 bits, an odd number


def gateway_of(rid: int) -> int:
    """The index of the gateway that handed out this rid."""
    return rid >> RID_BITS


def epoch_of(rid: int) -> int:
    """The epoch, less its bits above 16, of the gateway's run that handed out this rid."""
    return rid >> COUNTER_BITS & EPOCH_MASK


def first_rid(gateway: int, epoch: int) -> int:
    """The first rid of one run of the gateway of this index."""
    return gateway << RID_BITS | (epoch & EPOCH_MASK) << COUNTER_BITS | 1


def worker_name(room: str, index: int) -> str:
    """The name as a process of the worker of this index: the first one needs no number."""
    return f"{room}.{index}" if index else room


def gateway_name(index: int) -> str:
    """The name as a process of the gateway of this index."""
    return worker_name("gateway", index)


def share_of(rid: int, workers: int) -> int:
    """Which of so many workers of a kind has this rid: 0 to `workers` - 1, the same for whoever asks.

    Fibonacci hashing (Knuth, The Art of Computer Programming, 6.4): the rids of requests for n choices are n apart, and
    are spread evenly whatever n is.
    """
    return ((rid * GOLDEN_RATIO & WORD) >> 32) * workers >> 32


def model_name(rank: int) -> str:
    """The name as a process of the model's rank."""
    return worker_name("model", rank)


def room_of(name: str) -> str:
    """What the process of this name does, whatever its number: "model" for "model.1"."""
    return name.partition(".")[0]


def number_of(name: str) -> int:
    """The number of a process among those of its kind: 1 for "model.1", 0 for "model"."""
    return int(name.partition(".")[2] or 0)
