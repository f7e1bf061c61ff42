"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import pytest
from hypothesis import settings

from model_proc.files.checkpoint import default_cache_dir, resolve
from model_proc.files.model_files import LocalModel

# The suite says the same of the same code wherever it runs; `make explore` is for finding what nobody has met yet.
# A time limit for one example would fail on a busy machine.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def embedded_model() -> LocalModel:
    """The embedded model's files, converted once and kept in the user's cache."""
    return resolve("", default_cache_dir(), lambda *_: None)
