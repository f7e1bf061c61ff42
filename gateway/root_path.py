"""Serving below a path (--root-path): what a proxy puts in front of every path is taken away before anybody looks."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from yarl import URL


def serve_below(server: web.Server, root_path: str) -> None:
    """Have a server answer `root_path`/x like /x. Paths without it are answered too: some proxies cut it themselves."""
    make_request = server.request_factory

    def make(message: Any, *rest: Any) -> web.BaseRequest:
        path = without_root(message.path, root_path)
        if path is not message.path:
            message = message._replace(path=path, url=URL(path, encoded=True))
        return make_request(message, *rest)

    server.request_factory = make


def without_root(path: str, root_path: str) -> str:
    """The path of a request line, query included, below `root_path`."""
    rest = path.removeprefix(root_path)
    if rest is path or (rest and rest[0] not in "/?"):
        return path
    return rest if rest.startswith("/") else "/" + rest
