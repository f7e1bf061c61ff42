"""What a server does meanwhile, recorded by its own profiler."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmark.connection_pool import ConnectionPool
from benchmark.targets import TargetError


@dataclass(slots=True)
class Recorded:
    """Where the timeline is, once the recording has ended: a path on the server's machine."""

    path: Path = Path()


@asynccontextmanager
async def profiled(pool: ConnectionPool, options: Mapping[str, object]) -> AsyncIterator[Recorded]:
    """Have the server record what happens inside, with these options of its /start_profile.

    Raises TargetError when it cannot, and OSError.
    """
    recorded = Recorded()
    await _post(pool, "/start_profile", options)
    try:
        yield recorded
    finally:
        told = await _post(pool, "/stop_profile", {})
        recorded.path = Path(str(told.get("trace", "")))


async def _post(pool: ConnectionPool, path: str, options: Mapping[str, object]) -> dict[str, object]:
    status, body = await pool.ask("POST", path, dict(options))
    if status != 200:
        raise TargetError(f"{path} answers with {status}: {str(body)[:200]}")
    return body if isinstance(body, dict) else {}
