"""The page that tells how to repeat every figure: its programs exist, and so do its raw data."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "benchmark" / "README.md").read_text()
RESULTS = ROOT / "benchmark" / "results"


def test_every_program_exists() -> None:
    programs = set(re.findall(r"benchmark\.[a-z_]+", PAGE))
    assert len(programs) > 10
    for program in programs:
        assert importlib.util.find_spec(program), program


def test_every_raw_file_that_is_named_is_there() -> None:
    named = re.findall(r"`((?:cpu|h200|simulated)/[\w*./-]+)`", PAGE)
    assert len(named) > 8
    for pattern in named:
        assert list(RESULTS.glob(pattern)), pattern


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.json")), ids=lambda path: str(path.relative_to(RESULTS)))
def test_raw_data_are_json_and_hold_no_path_of_a_machine(path: Path) -> None:
    text = path.read_text()
    assert json.loads(text)
    assert not re.search(r'"/(home|root|tmp|work|usr)/', text)
