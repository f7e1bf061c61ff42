"""Where Triton kernels can be tested: on a GPU, or on the CPU when TRITON_INTERPRET=1 makes Triton interpret them."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")
needs_triton = pytest.mark.skipif(
    not INTERPRETED and not (HAS_TRITON and DEVICE.type == "cuda"), reason="runs on a GPU, or with TRITON_INTERPRET=1"
)
DTYPES = [torch.float32] if INTERPRETED else [torch.float32, torch.bfloat16]


def allow_interpreted_loops() -> None:
    """Let the interpreter of Triton 3.6 count to a bound that a kernel computes, which NumPy 2.4 and later refuse."""
    from triton.language import core
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patched(tensor: type, scope: object) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))  # type: ignore[attr-defined]

    assert core.tensor is not None
    interpreter._patch_lang_tensor = patched


if INTERPRETED:
    allow_interpreted_loops()


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """How far `out` is from `expected`, as a share of its norm; infinite where it is not a number."""
    out, expected = out.double().cpu(), expected.double().cpu()
    if not bool(torch.isfinite(out).all()):
        return float("inf")
    return float((out - expected).norm() / expected.norm().clamp(min=1e-30))


def tolerance(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 1e-2
