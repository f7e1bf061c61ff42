"""Host arrays to the device without waiting for it.

A copy from ordinary memory would make the host wait for the device; one from pinned memory does not. PyTorch's cache of
pinned memory hands a piece out again only when the copies that read it have run, so a step's arrays stay as they are
for as long as the device needs them, however many steps are in flight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 4  # elements; Triton compiles a kernel anew for every combination of pointers that 16 bytes divide
NUMPY_DTYPES = {torch.int32: np.int32, torch.int64: np.int64}


def upload(
    arrays: Sequence[NDArray[np.integer[Any]]], device: torch.device, dtype: torch.dtype = torch.int64
) -> list[Tensor]:
    """The arrays as tensors on the device, in one copy that the host does not wait for."""
    if device.type == "cpu":
        return [torch.from_numpy(array.astype(NUMPY_DTYPES[dtype])) for array in arrays]
    starts = [0]
    for array in arrays:
        starts.append(starts[-1] + -(-len(array) // ALIGNMENT) * ALIGNMENT)
    pinned = torch.empty(starts[-1], dtype=dtype, pin_memory=True)
    filled = pinned.numpy()
    for start, array in zip(starts, arrays, strict=False):
        filled[start : start + len(array)] = array
    uploaded = pinned.to(device, non_blocking=True)
    return [uploaded[start : start + len(array)] for start, array in zip(starts, arrays, strict=False)]


def download(tensor: Tensor) -> Tensor:
    """The tensor in pinned host memory; its content is there when an event recorded after this has happened."""
    return tensor.to("cpu", non_blocking=True)
