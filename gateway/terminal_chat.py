"""`make chat`: talk to a running server from the terminal.

    python -m gateway.terminal_chat [--url http://127.0.0.1:8000] [--system TEXT] [--max-tokens N]

It is a plain client of the HTTP API, and shows the key of the environment's QUINTET_API_KEY, as the server reads it.
An empty line or Ctrl-D ends it, Ctrl-C cuts an answer short.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
from rich.console import Console


class ChatError(Exception):
    """The server's own words on why there is no answer."""


async def answer(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> AsyncGenerator[str, None]:
    """Send the conversation so far and yield the reply piece by piece. Raises ChatError."""
    async with session.post(f"{url}/v1/chat/completions", json={**body, "stream": True}) as response:
        if response.status != 200:
            raise ChatError((await response.json())["error"]["message"])
        async for line in response.content:
            data = line.decode().removeprefix("data: ").strip()
            if not data or data == "[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                raise ChatError(event["error"]["message"])
            yield event["choices"][0]["delta"].get("content") or ""


async def converse(url: str, system: str, max_tokens: int | None, key: str) -> None:
    """Read lines, print answers, until the input ends."""
    console = Console(highlight=False)
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    options = {"max_tokens": max_tokens} if max_tokens else {}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=None)) as session:
        while question := (await asyncio.to_thread(_ask, console)).strip():
            messages.append({"role": "user", "content": question})
            reply = ""
            try:
                async with contextlib.aclosing(answer(session, url, {"messages": messages, **options})) as pieces:
                    async for piece in pieces:
                        reply += piece
                        console.print(piece, end="", markup=False)
            except (ChatError, aiohttp.ClientError) as error:
                console.print(f"[red]{error}[/red]" if isinstance(error, ChatError) else _unreachable(url))
            console.print("\n")
            messages.append({"role": "assistant", "content": reply})


def _ask(console: Console) -> str:
    try:
        return console.input("[bold cyan]you[/bold cyan] > ")
    except EOFError:
        return ""


def _unreachable(url: str) -> str:
    return f"[red]no server answers at {url}: start one with `make serve`, or name it with --url[/red]"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chat", description="Talk to a running server from the terminal.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the server is")
    parser.add_argument("--system", default="", help="a system message to start with")
    parser.add_argument("--max-tokens", type=int, default=None, help="longest answer, in tokens")
    args = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        # The server takes several keys, and lets in whoever shows one of them.
        key = next(iter(os.environ.get("QUINTET_API_KEY", "").split()), "")
        asyncio.run(converse(args.url.rstrip("/"), args.system, args.max_tokens, key))
    return 0


if __name__ == "__main__":
    sys.exit(main())
