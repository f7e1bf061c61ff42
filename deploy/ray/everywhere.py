"""Routes that ask about all rings, not for an answer of one: who asks the front door means the whole application."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from deploy.ray.http import Answer, Head, Request

JSON = [("content-type", "application/json; charset=utf-8")]

Merge = Callable[[Sequence[Answer]], Answer]


def merge_for(request: Request) -> Merge | None:
    """How the answers of all rings become one; None for a request that a single ring answers."""
    for methods, route, merge in _ROUTES:
        if request.method in methods and route.fullmatch(request.route):
            return merge
    return None


def whoever_knows(answers: Sequence[Answer]) -> Answer:
    """A request lives in one ring: the others say 404."""
    return next((answer for answer in answers if answer.head.status != 404), answers[0])


def summed(answers: Sequence[Answer]) -> Answer:
    """JSON objects: their numbers are added up, and what each replica has said is in `replicas`."""
    if failure := _failure(answers):
        return failure
    bodies = {answer.replica: orjson.loads(answer.body) for answer in answers}
    total = _sum([*bodies.values()])
    return Answer("", Head(200, JSON), orjson.dumps(total | {"replicas": bodies}))


def labelled(answers: Sequence[Answer]) -> Answer:
    """Metrics pages: one page, on which every sample has the name of its replica."""
    if failure := _failure(answers):
        return failure
    families: dict[str, list[str]] = {}
    for answer in answers:
        name = ""
        for line in answer.body.decode().splitlines():
            if line.startswith("# "):
                name = line.split(" ", 3)[2]
                lines = families.setdefault(name, [])
                if line not in lines[:2]:
                    lines.append(line)
            elif line:
                families.setdefault(name, []).append(_with_label(line, answer.replica))
    page = "\n".join([*(line for lines in families.values() for line in lines), ""])
    return Answer("", Head(200, answers[0].head.headers), page.encode())


_GET = ("GET", "HEAD")
_ROUTES: list[tuple[tuple[str, ...], re.Pattern[str], Merge]] = [
    (_GET, re.compile(r"/metrics"), labelled),
    (_GET, re.compile(r"/v1/loads"), summed),
    (("GET", "POST"), re.compile(r"/flush_cache"), summed),
    (_GET, re.compile(r"/v1/requests/.+"), whoever_knows),
    (_GET, re.compile(r"/v1/responses/[^/]+"), whoever_knows),
    (("POST",), re.compile(r"/v1/responses/[^/]+/cancel"), whoever_knows),
]


def _failure(answers: Sequence[Answer]) -> Answer | None:
    return next((answer for answer in answers if answer.head.status != 200), None)


def _sum(bodies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Number by number, objects of numbers as well; figures of single processes are left to their replicas."""
    total: dict[str, Any] = {}
    for name, value in bodies[0].items():
        values = [body[name] for body in bodies if name in body]  # rings of two versions may differ, during an update
        if isinstance(value, int | float):
            total[name] = sum(values)
        elif isinstance(value, dict) and all(isinstance(item, int | float) for item in value.values()):
            total[name] = {key: sum(each.get(key, 0) for each in values) for key in value}
    return total


def _with_label(sample: str, replica: str) -> str:
    name, brace, rest = sample.partition("{")
    if brace:
        return f'{name}{{replica="{replica}",{rest}'
    name, _, value = sample.partition(" ")
    return f'{name}{{replica="{replica}"}} {value}'
