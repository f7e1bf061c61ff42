"""The server that a benchmark is pointed at: its root, its model, the key that it wants."""

from __future__ import annotations

from collections.abc import Mapping

from benchmark.connection_pool import ConnectionPool

BASE_URL = "http://localhost:8000"


class TargetError(RuntimeError):
    """The server cannot be measured; the text says why."""


def root_of(base_url: str) -> str:
    """The server's root: the /v1 that other clients want is left out."""
    return (base_url or BASE_URL).rstrip("/").removesuffix("/v1")


def api_headers(environment: Mapping[str, str]) -> dict[str, str]:
    """What shows $OPENAI_API_KEY to the server, if there is one."""
    key = environment.get("OPENAI_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


async def first_model(pool: ConnectionPool, url: str) -> str:
    """The first name of /v1/models. Raises TargetError."""
    try:
        status, body = await pool.ask("GET", "/v1/models")
    except OSError as error:
        raise TargetError(f"{url}: {error}") from None
    try:
        return str(body["data"][0]["id"])
    except (TypeError, KeyError, IndexError):
        raise TargetError(f"{url}/v1/models answers with {status} and names no model; give --model") from None
