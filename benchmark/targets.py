"""The server that a benchmark is pointed at: its root, its model, the key that it wants."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Mapping

from benchmark.connection_pool import ConnectionPool
from benchmark.server import Server

BASE_URL = "http://localhost:8000"


class TargetError(RuntimeError):
    """The server cannot be measured; the text says why."""


def add_target(parser: argparse._ActionsContainer) -> None:
    """The arguments that say which server is measured."""
    parser.add_argument("--base-url", default="", help=f"root of the server (default: {BASE_URL})")
    parser.add_argument("--launch", action="store_true", help="start a Quintet server, with the options behind --")
    parser.add_argument("--model", default="", help="public name of the model (default: the first of /v1/models)")
    parser.add_argument("options", nargs="*", metavar="OPTION", help="options of launch.py, behind --")


def check_target(args: argparse.Namespace) -> None:
    """Refuse what makes no sense together. Raises TargetError."""
    if args.options and not args.launch:
        raise TargetError(f"{args.options[0]}: options of launch.py need --launch")
    if args.launch and args.base_url:
        raise TargetError("--base-url: with --launch the server is a new one")


@contextlib.contextmanager
def target(args: argparse.Namespace) -> Iterator[tuple[str, Server | None]]:
    """The root of the server that is asked for, and the server itself if it is one of our own. Raises ServerError."""
    if not args.launch:
        yield root_of(args.base_url), None
        return
    with Server(args.options) as server:
        yield server.url, server


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
