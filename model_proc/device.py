"""The device that a model runs on, and what is possible there."""

from __future__ import annotations

import importlib.util
import os

import psutil
import torch

from ipc.process import FatalError
from model_proc.ranks import Seat

CPU_KV_CACHE_BYTES = 4 << 30  # at most this much, and at most a quarter of the memory that is free
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_device(wanted: str, seat: Seat) -> torch.device:
    """The device for `--device`; with several ranks, each has a GPU. Raises FatalError when it is not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise FatalError("--device cuda: PyTorch finds no GPU here; use --device cpu, or install a CUDA build")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        return torch.device("cpu")
    if seat.size > torch.cuda.device_count():
        raise FatalError(
            f"--tensor-parallel-size {seat.size}: there are {torch.cuda.device_count()} GPUs here, and every rank needs"
            " one; lower it, or use --device cpu"
        )
    device = torch.device("cuda", seat.rank)
    torch.cuda.set_device(device)
    return device


def find_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The type for `--dtype`. Raises FatalError when the device does not have it.

    `auto` is bfloat16 where the hardware multiplies it fast, float16 on older GPUs, float32 on other CPUs.
    """
    has_bfloat16 = device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 0)
    if wanted == "bfloat16" and not has_bfloat16:
        raise FatalError("--dtype bfloat16: this GPU cannot compute with it; use float16 or float32")
    if wanted != "auto":
        return DTYPES[wanted]
    if not has_bfloat16:
        return torch.float16
    if device.type == "cuda" or torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def uses_triton(wanted: str, device: torch.device) -> bool:
    """Whether kernels of our own run. Raises FatalError when they are asked for and cannot."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    available = importlib.util.find_spec("triton") is not None and (device.type == "cuda" or interpreted)
    if wanted == "triton" and not available:
        raise FatalError("--attention-backend triton: it needs a GPU and the package triton; use torch or auto")
    return wanted == "triton" or (wanted == "auto" and device.type == "cuda" and available)


def has_dependent_launch(device: torch.device) -> bool:
    """Whether a kernel may start before the one in front of it has ended: Hopper and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an operation failed because there was no memory for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # A CPU's allocator and the GPU's libraries have no exception of their own.
    return any(text in str(error) for text in ("can't allocate memory", "_ALLOC_FAILED", "out of memory"))


def free_memory(device: torch.device, gpu_memory_utilization: float) -> int:
    """Bytes that the KV cache may take when nothing else is said."""
    if device.type == "cpu":
        return min(CPU_KV_CACHE_BYTES, psutil.virtual_memory().available // 4)
    free, total = torch.cuda.mem_get_info(device)
    return max(0, int(free - total * (1 - gpu_memory_utilization)))
