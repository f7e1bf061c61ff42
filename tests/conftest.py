"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import pytest

from model_proc.files.checkpoint import default_cache_dir, resolve
from model_proc.files.model_files import LocalModel


@pytest.fixture(scope="session")
def embedded_model() -> LocalModel:
    """The embedded model's files, converted once and kept in the user's cache."""
    return resolve("", default_cache_dir(), lambda *_: None)
