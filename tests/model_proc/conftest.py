"""What the tests of this room share."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_proc.files.checkpoint import default_cache_dir
from model_proc.kernels.cpu_build import NoKernelsError, build


@pytest.fixture(scope="session")
def kernels() -> Path:
    """The compiled CPU kernels, from the user's cache; skips where they do not run."""
    try:
        return build(default_cache_dir(), lambda *_: None)
    except NoKernelsError as reason:
        pytest.skip(f"no CPU kernels here: {reason}")
