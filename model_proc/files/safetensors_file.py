"""Safetensors files: written tensor by tensor, so that a model larger than memory can be converted, and checked.

The format: 8 bytes with the little-endian length of a JSON header, the header (tensor name to dtype, shape and byte
range), then the tensors' bytes in the order of the header, without gaps.
Source: https://github.com/huggingface/safetensors, section "Format".
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from model_proc.files.model_files import ModelFilesError

if TYPE_CHECKING:
    import numpy as np  # not at run time: every start checks files, few write them

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}
MAX_HEADER_BYTES = 100_000_000
DATA_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a file: `dtype` is a key of ITEM_BYTES, `shape` has the outermost dimension first."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


class SafetensorsWriter:
    """Writes the tensors of `specs` in that order. Wide dtypes must come first: a reader maps them in place.

    `metadata` is for the reader, whatever it says.
    """

    def __init__(self, path: Path, specs: list[TensorSpec], metadata: Mapping[str, str] | None = None) -> None:
        widths = [ITEM_BYTES[spec.dtype] for spec in specs]
        if widths != sorted(widths, reverse=True):
            raise ValueError("tensors of wide dtypes must come before those of narrow ones")
        self._file = path.open("wb")
        self._specs = iter(specs)
        self._file.write(_header(specs, metadata or {}))

    def write(self, name: str, chunks: Iterable[np.ndarray], on_written: Callable[[int], None]) -> None:
        """Append tensor `name`, the next of the specs, from C-contiguous `chunks`; tells each chunk's size in bytes."""
        spec = next(self._specs)
        if spec.name != name:
            raise ValueError(f"the next tensor is {spec.name}, not {name}")
        written = 0
        for chunk in chunks:
            self._file.write(chunk.data.cast("B"))
            written += chunk.nbytes
            on_written(chunk.nbytes)
        if written != spec.num_bytes:
            raise ValueError(f"{name} has {written} bytes, not {spec.num_bytes}")

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        if kind is None and (spec := next(self._specs, None)) is not None:
            raise ValueError(f"{spec.name} was never written")


def _header(specs: list[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for spec in specs:
        end = offset + spec.num_bytes
        entries[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % DATA_ALIGNMENT)
    return struct.pack("<Q", len(header)) + header


def check_safetensors(path: Path) -> None:
    """Raises ModelFilesError unless `path` is a safetensors file of just the length that its header states."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
        if header_bytes > min(size - 8, MAX_HEADER_BYTES):
            raise ModelFilesError(f"{path} is truncated or no safetensors file; fetch the model again")
        try:
            entries = json.loads(file.read(header_bytes))
            ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
            expected = 8 + header_bytes + max(ends, default=0)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ModelFilesError(f"{path} has a damaged header; fetch the model again") from error
    if size != expected:
        raise ModelFilesError(f"{path} is damaged: {size} bytes instead of {expected}; fetch the model again")
