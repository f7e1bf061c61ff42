"""The CPU kernels as Python calls: matrices in their layout, products with them, and attention over the paged cache."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_float, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from model_proc.quantization import BLOCK, Codes

TILE = 16  # rows of a matrix that lie side by side
INTERFACE_VERSION = 1


class MatrixStruct(Structure):
    """`Matrix` of kernels/cpu/matmul.h."""

    _fields_ = [
        ("bits", c_int64), ("rows", c_int64), ("columns", c_int64),
        ("codes", c_void_p), ("scales", c_void_p), ("minima", c_void_p),
    ]  # fmt: skip


class LayerStruct(Structure):
    """`Layer` of kernels/cpu/attention.h."""

    _fields_ = [
        ("heads", c_int64), ("kv_heads", c_int64), ("dim", c_int64), ("block_size", c_int64), ("window", c_int64),
        ("scale", c_float), ("eps", c_float), ("q_norm", c_void_p), ("k_norm", c_void_p), ("rope", c_void_p),
        ("keys", c_void_p), ("values", c_void_p), ("cache_bytes", c_int64),
    ]  # fmt: skip


class StepStruct(Structure):
    """`Step` of kernels/cpu/attention.h."""

    _fields_ = [
        ("num_tokens", c_int64), ("num_sequences", c_int64), ("positions", c_void_p), ("cache_rows", c_void_p),
        ("query_lens", c_void_p), ("slots", c_void_p), ("block_tables", c_void_p), ("table_stride", c_int64),
    ]  # fmt: skip


class PackedMatrix:
    """A matrix [rows, columns] in the kernels' layout: floats of 32 or 16 bits, or codes of 8 or 4."""

    def __init__(self, bits: int, rows: int, columns: int) -> None:
        self.bits, self.shape = bits, (rows, columns)
        places = -(-rows // TILE) * (columns // BLOCK)
        self.codes = torch.zeros(places * BLOCK * TILE * bits // 8, dtype=torch.uint8)
        has_scales, has_minima = bits <= 8, bits == 4
        self.scales = torch.zeros(places * TILE if has_scales else 0, dtype=torch.float16)
        self.minima = torch.zeros(places * TILE if has_minima else 0, dtype=torch.float16)
        self.struct = MatrixStruct(
            bits, rows, columns, self.codes.data_ptr(), self.scales.data_ptr(), self.minima.data_ptr()
        )
        self.address = ctypes.addressof(self.struct)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.codes, self.scales, self.minima))


class CpuLibrary:
    """The loaded library. One thread calls it at a time; while it works, Python's other threads run."""

    def __init__(self, path: Path, num_threads: int) -> None:
        library = ctypes.CDLL(str(path))
        for name, arguments in {
            "quintet_set_threads": [c_int64],
            "quintet_linear": [
                c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_float, c_int64, c_void_p, c_int64, c_int64, c_float,
                c_void_p,
            ],
            "quintet_rows": [c_void_p, c_void_p, c_int64, c_float, c_void_p],
            "quintet_pack": [c_int64, c_int64, c_int64, *[c_void_p] * 6],
            "quintet_attend": [
                POINTER(LayerStruct), POINTER(StepStruct), c_void_p, c_void_p, c_void_p, c_int64, c_void_p,
            ],
        }.items():  # fmt: skip
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
        library.quintet_version.restype = c_int64
        if library.quintet_version() != INTERFACE_VERSION:
            raise OSError(f"{path} is of another version")
        self._linear = library.quintet_linear
        self._rows = library.quintet_rows
        self._pack = library.quintet_pack
        self._attend = library.quintet_attend
        self._set_threads = library.quintet_set_threads
        self.set_threads(num_threads)

    def set_threads(self, count: int) -> None:
        """Use so many threads from now on, the caller's included."""
        self.num_threads = count
        self._set_threads(count)

    def pack(self, weights: Tensor | Codes) -> PackedMatrix:
        """A matrix of float32, bfloat16, or codes, in the kernels' layout. Columns come in blocks of 32."""
        if isinstance(weights, Codes):
            codes, scales, minima = (part.contiguous() for part in (weights.codes, weights.scales, weights.minima))
            matrix = PackedMatrix(weights.bits, *codes.shape)
            pointers = codes.data_ptr(), scales.data_ptr(), minima.data_ptr()
        else:
            weights = weights.contiguous()
            matrix = PackedMatrix(8 * weights.itemsize, *weights.shape)
            pointers = weights.data_ptr(), 0, 0
        own = matrix.codes.data_ptr(), matrix.scales.data_ptr(), matrix.minima.data_ptr()
        self._pack(matrix.bits, *matrix.shape, *pointers, *own)
        return matrix

    def linear(
        self, matrix: PackedMatrix, x: Tensor, bias: Tensor | None, quantize: bool, norm: Tensor | None = None,
        eps: float = 0.0, gated: bool = False, added_to: Tensor | None = None, scale: float = 1.0,
    ) -> Tensor:  # fmt: skip
        """matrix · x + bias; of rms_norm(x) with `norm`; silu(gates) * ups when `gated`; all in float32.

        x [T, columns] with contiguous rows -> [T, rows], half as many columns when gated. With `added_to`, this
        times `scale` is added to that tensor, which is returned. `quantize` turns the activations into codes of 8 bits.
        """
        if added_to is None:
            width = matrix.shape[0] // 2 if gated else matrix.shape[0]
            out = torch.empty(x.shape[0], width)
        else:
            out = added_to
        self._linear(
            matrix.address, x.data_ptr(), x.stride(0), x.shape[0], _pointer(norm), eps, quantize, _pointer(bias), gated,
            added_to is not None, scale, out.data_ptr(),
        )  # fmt: skip
        return out

    def rows(self, matrix: PackedMatrix, indices: Tensor, factor: float) -> Tensor:
        """These rows of the matrix, times `factor`: indices [N] int64 -> [N, columns] float32."""
        out = torch.empty(len(indices), matrix.shape[1])
        self._rows(matrix.address, indices.data_ptr(), len(indices), factor, out.data_ptr())
        return out

    def attend(self, layer: LayerStruct, step: StepStruct, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention of one layer, as an AttentionStep describes it; float32 in and out."""
        out = torch.empty(query.shape)
        self._attend(
            byref(layer), byref(step), query.data_ptr(), key.data_ptr(), value.data_ptr(), query.stride(0),
            out.data_ptr(),
        )  # fmt: skip
        return out


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
