"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import pytest
from hypothesis import settings

from model_proc.files.checkpoint import default_cache_dir, resolve
from model_proc.files.model_files import LocalModel

# A time limit for one example would fail on a busy machine.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def embedded_model() -> LocalModel:
    """The embedded model's files, converted once and kept in the user's cache."""
    return resolve("", default_cache_dir(), lambda *_: None)
