"""Do answers follow their schemas, and do free requests notice those that must?

    python -m benchmark.structured [--requests 200] [--concurrency 16] [--json FILE] [launch options]

Sends requests for answers under varied bounded schemas (`bounded_schemas.py`) at temperature 1 and checks every one
that ends with `stop` against its schema with the package jsonschema. Then sends free requests with seeds, first by
themselves and then among structured ones, and compares their tokens. What is not known as an option here goes to
launch.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import aiohttp
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError

from benchmark.bounded_schemas import bounded_schema
from benchmark.server import Server

MAX_TOKENS = 512
FREE_TOKENS = 48
TOPICS = ("a person", "a house", "a meal", "a trip", "a machine", "an animal", "a song", "a shop")

FORMATS = FormatChecker()


@FORMATS.checks("date", raises=ValueError)
def _is_date(text: object) -> bool:
    """As RFC 3339 has it: with a year 0000, a leap year like 2000, that Python's calendar lacks."""
    if isinstance(text, str):
        date.fromisoformat(text.replace("0000-", "2000-", 1) if text.startswith("0000-") else text)
    return True


class Lab:
    """Sends requests to one server, so many at a time."""

    def __init__(self, session: aiohttp.ClientSession, concurrency: int) -> None:
        self._session = session
        self._places = asyncio.Semaphore(concurrency)

    async def structured(self, number: int) -> dict[str, Any]:
        """What became of the answer to a schema: its end, its length, and whether it follows."""
        schema = bounded_schema(number)
        answer = await self._post(
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": f"Describe {TOPICS[number % len(TOPICS)]} as JSON."}],
                "temperature": 1.0,
                "seed": number,
                "max_tokens": MAX_TOKENS,
                "response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}},
            },
        )
        choice = answer["choices"][0]
        end, text = choice["finish_reason"], choice["message"]["content"]
        return {
            "number": number,
            "end": end,
            "tokens": answer["usage"]["completion_tokens"],
            "fault": fault_of(text, schema) if end == "stop" else "",
            "text": text,
        }

    async def free(self, number: int) -> list[int]:
        """The tokens of a free answer."""
        answer = await self._post(
            "/v1/completions",
            {
                "prompt": f"A story about {TOPICS[number % len(TOPICS)]}. Once",
                "temperature": 1.0,
                "seed": number,
                "max_tokens": FREE_TOKENS,
                "ignore_eos": True,
                "return_token_ids": True,
            },
        )
        ids: list[int] = answer["choices"][0]["token_ids"]
        return ids

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self._places, self._session.post(path, json=body) as response:
            answer: dict[str, Any] = await response.json()
            if response.status != 200:
                raise RuntimeError(f"{path} answered {response.status}: {answer}")
            return answer


def fault_of(text: str, schema: dict[str, Any]) -> str:
    """Why a text does not follow a schema, "" when it does."""
    try:
        Draft202012Validator(schema, format_checker=FORMATS).validate(json.loads(text))
    except ValueError as error:
        return f"no JSON: {error}"
    except ValidationError as error:
        return error.message
    return ""


async def measure(url: str, requests: int, concurrency: int, num_free: int) -> dict[str, Any]:
    """All figures of one server."""
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as session:
        lab = Lab(session, concurrency)
        started = time.monotonic()
        answers = await asyncio.gather(*map(lab.structured, range(requests)))
        wall_s = time.monotonic() - started
        alone = await asyncio.gather(*map(lab.free, range(num_free)))
        mixed = await asyncio.gather(
            *(call for number in range(num_free) for call in (lab.structured(number), lab.free(number)))
        )
    ends = Counter(answer["end"] for answer in answers)
    return {
        "requests": requests,
        "concurrency": concurrency,
        "ends": dict(ends),
        "stop_share": ends["stop"] / requests,
        "faults": [answer for answer in answers if answer["fault"]],
        "completion_tokens": sum(answer["tokens"] for answer in answers),
        "wall_s": round(wall_s, 1),
        "free": num_free,
        "free_unchanged": sum(one == other for one, other in zip(alone, mixed[1::2], strict=True)),
        "answers": answers,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 when an answer does not follow its schema, or a free one was changed."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.structured", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=200, help="answers under a schema")
    parser.add_argument("--concurrency", type=int, default=16, help="requests at a time")
    parser.add_argument("--free", type=int, default=16, help="free requests, alone and among structured ones")
    parser.add_argument("--json", type=Path, help="where to write the figures and every answer")
    options, launch = parser.parse_known_args(arguments)
    launch = [argument for argument in launch if argument != "--"]
    with Server(launch) as server:
        figures = asyncio.run(measure(server.url, options.requests, options.concurrency, options.free))
    if options.json is not None:
        figures = {"command": "python -m benchmark.structured", "launch": launch} | figures
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    print(f"answers under a schema   {figures['requests']}, {figures['completion_tokens']} tokens")
    print(f"ended with stop          {figures['stop_share']:.1%} ({figures['ends']})")
    print(f"of those, invalid        {len(figures['faults'])}")
    print(f"free answers unchanged   {figures['free_unchanged']} of {figures['free']}")
    return int(bool(figures["faults"]) or figures["free_unchanged"] < figures["free"])


if __name__ == "__main__":
    sys.exit(main())
