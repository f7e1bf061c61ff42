"""The model processes that share one model, as seen from one of them: what they sum, join and agree on.

Every rank gets the same plans in the same order and so calls the same operations in the same order. Rank 0 alone
samples and answers; the others hear from it what was sampled. On GPUs the tensors travel by NCCL, on CPUs by Gloo;
the ranks find each other through a file in the ring's folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ipc.process import FatalError

JOIN_TIMEOUT = timedelta(hours=1)  # a rank may wait until another one has downloaded the model


@dataclass(frozen=True, slots=True)
class Seat:
    """Which rank a process is, of how many, and the file that they meet at, which no earlier run has used."""

    rank: int
    size: int
    meeting: Path


ALONE = Seat(0, 1, Path())


class Ranks:
    """A rank among `size` of them."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of every rank's tensor, in place."""
        dist.all_reduce(tensor)
        return tensor

    def join_columns(self, tensor: Tensor) -> Tensor:
        """Every rank's columns side by side, rank 0's first: [T, n] -> [T, n * size]."""
        count, columns = tensor.shape
        parts = tensor.new_empty((self.size * count, columns))
        dist.all_gather_into_tensor(parts, tensor.contiguous())
        return parts.view(self.size, count, columns).transpose(0, 1).reshape(count, -1)

    def hear_first(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor, in place."""
        dist.broadcast(tensor, 0)
        return tensor

    def least(self, value: int, device: torch.device) -> int:
        """The smallest of every rank's value."""
        tensor = torch.tensor(value, device=device)
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
        return int(tensor)


def join_ranks(seat: Seat, device: torch.device) -> Ranks:
    """Meet the other ranks. Waits for all of them; raises FatalError when they cannot reach each other."""
    # Gloo, and NCCL before it has found the links between the GPUs, speak TCP: on this machine alone.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    on_gpu = device.type == "cuda"
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=dist.FileStore(str(seat.meeting), seat.size),  # type: ignore[attr-defined]
            rank=seat.rank,
            world_size=seat.size,
            timeout=JOIN_TIMEOUT,
            device_id=device if on_gpu else None,
        )
        dist.barrier()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise FatalError(
            f"--tensor-parallel-size {seat.size}: rank {seat.rank} does not reach the others: {reason}"
        ) from error
    return Ranks(seat.rank, seat.size)
