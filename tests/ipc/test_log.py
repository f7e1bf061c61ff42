"""Log lines, for people and for machines."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

from ipc.log import JsonFormatter


def test_json_lines_are_objects_with_the_process_in_them() -> None:
    record = logging.LogRecord("gateway.main", logging.WARNING, "x.py", 1, "%d tokens are too many\nfor me", (5,), None)
    entry = json.loads(JsonFormatter("gateway").format(record))
    assert entry["time"].endswith("Z")
    del entry["time"]
    assert entry == {
        "level": "warning", "process": "gateway", "logger": "gateway.main", "message": "5 tokens are too many\nfor me",
    }  # fmt: skip


def test_a_traceback_stays_within_its_line() -> None:
    try:
        raise ValueError("wrong")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "x.py", 1, "failed", (), sys.exc_info())
    text = JsonFormatter("model").format(record)
    assert "\n" not in text
    assert "ValueError: wrong" in json.loads(text)["traceback"]


def test_the_level_can_be_changed_while_it_runs() -> None:
    script = """
import logging
from ipc import log
log.set_up("tokenizer", "warning", "json")
logging.info("unheard")
log.set_level("info")
logging.info("heard")
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert [json.loads(line)["message"] for line in ran.stderr.splitlines()] == ["heard"]
