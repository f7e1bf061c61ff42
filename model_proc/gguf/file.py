"""Reads a GGUF file: its metadata, and where its tensors lie. The file is untrusted: every length is checked.

The `gguf` package's own reader makes several array views for every token of the vocabulary (4.6 s for SmolLM2, against
0.1 s here) and walks on past the end of a damaged file; its tables of types and block sizes are used.
Source of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from model_proc.files.model_files import ModelFilesError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4

STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""GGUF value types of fixed size, with their codes in `struct` and numpy."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor. `shape` has the outermost dimension first; `rows` are the bytes of its innermost rows."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    rows: np.ndarray
    """uint8 [product of all dimensions but the innermost, bytes of a row], mapped from the file."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The content of one GGUF file; strings are decoded, arrays are lists, tensors stay on the disk until read."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Open `path`. Raises ModelFilesError when it is no GGUF file, damaged, truncated, or of an unknown kind."""
    size = path.stat().st_size
    content = np.asarray(np.memmap(path, dtype=np.uint8, mode="r")) if size else np.empty(0, np.uint8)
    cursor = _Cursor(path, content.data)
    if bytes(cursor.take(4)) != MAGIC:
        raise ModelFilesError(f"{path} is not a GGUF file")
    version = cursor.u32()
    if version not in VERSIONS:
        raise ModelFilesError(f"{path} has GGUF version {version}; little-endian versions 2 and 3 are supported")
    num_tensors, num_keys = cursor.u64(), cursor.u64()
    metadata = {}
    for _ in range(num_keys):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.u32())
    headers = [_tensor_header(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise cursor.damaged(f"an alignment of {alignment}")
    start = -(-cursor.offset // alignment) * alignment
    tensors = {}
    for header in headers:
        tensor = _locate(header, content, start, cursor)
        tensors[tensor.name] = tensor
    return GgufFile(path, metadata, tensors)


@dataclass(frozen=True, slots=True)
class _TensorHeader:
    name: str
    dimensions: tuple[int, ...]  # innermost first, as in the file
    type_id: int
    offset: int  # in bytes, from the start of the data


def _tensor_header(cursor: _Cursor) -> _TensorHeader:
    name = cursor.string()
    num_dimensions = cursor.u32()
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise cursor.damaged(f"tensor {name} with {num_dimensions} dimensions")
    dimensions = tuple(cursor.u64() for _ in range(num_dimensions))
    return _TensorHeader(name, dimensions, cursor.u32(), cursor.u64())


def _locate(header: _TensorHeader, content: np.ndarray, data_start: int, cursor: _Cursor) -> GgufTensor:
    try:
        tensor_type = GGMLQuantizationType(header.type_id)
    except ValueError as error:
        raise ModelFilesError(
            f"{cursor.path}: tensor {header.name} has type {header.type_id}, which the installed gguf package does not"
            " know; update gguf, or use another quantization of the model"
        ) from error
    block_items, block_bytes = GGML_QUANT_SIZES[tensor_type]
    row_items = header.dimensions[0]
    if row_items == 0 or row_items % block_items:
        raise cursor.damaged(f"tensor {header.name} with rows of {row_items} {tensor_type.name} items")
    row_bytes = row_items // block_items * block_bytes
    num_rows = prod(header.dimensions[1:])
    begin = data_start + header.offset
    end = begin + num_rows * row_bytes
    if end > len(content):
        raise ModelFilesError(
            f"{cursor.path} is truncated: tensor {header.name} ends at byte {end} of {len(content)}; fetch it again"
        )
    rows = content[begin:end].reshape(num_rows, row_bytes)
    return GgufTensor(header.name, tensor_type, tuple(reversed(header.dimensions)), rows)


class _Cursor:
    """Reads little-endian values one after another; raises ModelFilesError instead of reading past the end."""

    def __init__(self, path: Path, content: memoryview) -> None:
        self.path = path
        self.offset = 0
        self._content = content

    def take(self, size: int) -> memoryview:
        end = self.offset + size
        if end > len(self._content):
            raise ModelFilesError(
                f"{self.path} is truncated or damaged: it ends at byte {len(self._content)}, within its header;"
                " fetch it again"
            )
        taken = self._content[self.offset : end]
        self.offset = end
        return taken

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))
        return value

    def u32(self) -> int:
        return int(self.scalar("I"))

    def u64(self) -> int:
        return int(self.scalar("Q"))

    def string(self) -> str:
        length = self.u64()
        try:
            return str(self.take(length), "utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged("a string that is not UTF-8") from error

    def value(self, kind: int) -> Any:
        """One metadata value of type `kind`: bool, int, float, str, or a list of them."""
        if kind == ARRAY:
            item_kind, length = self.u32(), self.u64()
            if item_kind in SCALARS:
                dtype = np.dtype("<" + SCALARS[item_kind])
                return np.frombuffer(self.take(length * dtype.itemsize), dtype).tolist()
            if item_kind == STRING:
                return [self.string() for _ in range(length)]
            raise self.damaged(f"an array of type {item_kind}")
        if kind == STRING:
            return self.string()
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        raise self.damaged(f"a value of type {kind}")

    def damaged(self, what: str) -> ModelFilesError:
        return ModelFilesError(f"{self.path} is damaged: it has {what}; fetch it again")
