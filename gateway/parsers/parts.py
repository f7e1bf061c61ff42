"""What the text of a choice is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """What is said to the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What the model said to itself."""

    text: str


@dataclass(frozen=True, slots=True)
class CallOpened:
    """A tool is called; its arguments follow."""

    index: int  # of the call within the choice
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the arguments of a call: a piece of JSON text."""

    index: int
    text: str


Part = Content | Reasoning | CallOpened | Arguments


def merged(parts: Iterable[Part]) -> list[Part]:
    """The same parts with neighbours that belong together made one."""
    joined: list[Part] = []
    for part in parts:
        match joined[-1] if joined else None, part:
            case (Content(before), Content(text)):
                joined[-1] = Content(before + text)
            case (Reasoning(before), Reasoning(text)):
                joined[-1] = Reasoning(before + text)
            case (Arguments(index, before), Arguments(same, text)) if index == same:
                joined[-1] = Arguments(index, before + text)
            case _:
                joined.append(part)
    return joined
