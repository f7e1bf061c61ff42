"""Log lines of all processes look alike and carry the process's name."""

from __future__ import annotations

import logging
import sys


def set_up(process: str, level: str) -> None:
    """Send this process's log to standard error, one line a record, with the process's name in it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {process:<11} %(levelname)-7s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
