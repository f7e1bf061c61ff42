"""Grammars for answers that call functions: the calls in the format that the model writes, arguments by their schemas.

A whole answer is, in Lark's notation, `start: think? calls` where something must be called, and otherwise `calls`, or
text that may end in them. Every function's arguments are a part of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from gateway.parsers import hermes, mistral, reasoning
from gateway.parsers.reader import Reading
from gateway.structure import Grammar, json_part
from gateway.tool_schemas import NamedTool, Tool
from ipc.messages import GrammarPart
from ipc.structured import ANSWER, ANY_OBJECT

# Text that no call interrupts. Special tokens are no part of it.
ANY_TEXT = r"/(.|\n)*/"
# A line that no call begins: what a parser of bare JSON takes for content.
_LINE = r"([ \t\r]*[^ \t\r\n{\[][^\n]*|[ \t\r]*)"


@dataclass(frozen=True, slots=True)
class Calls:
    """Which functions an answer may call, and whether it must."""

    tools: tuple[tuple[int, Tool], ...]  # with their places in the request
    must: bool = False
    several: bool = True  # more than one call in an answer

    @property
    def are_strict(self) -> bool:
        """Whether arguments must follow a schema, though nothing must be called."""
        return any(tool.function.strict for _, tool in self.tools)


def calls_of(tools: list[Tool], choice: str | NamedTool | None, parallel: bool) -> Calls:
    """What a request says of its tools."""
    numbered = tuple(enumerate(tools))
    if isinstance(choice, NamedTool):
        named = tuple((index, tool) for index, tool in numbered if tool.function.name == choice.function.name)
        return Calls(named, must=True, several=False)
    return Calls(numbered, must=choice == "required", several=parallel)


def needs_grammar(calls: Calls, answer: Grammar, reading: Reading) -> bool:
    """Whether the answer is more than free text that is read afterwards, or a structure by itself."""
    return calls.must or calls.are_strict or bool(answer and (calls.tools or reading.reasons))


def grammar_with_calls(calls: Calls, answer: Grammar, reading: Reading, special: Mapping[str, int]) -> Grammar:
    """What the whole output follows, from the reasoning to the last call.

    `answer` is what content must be when nothing is called; empty when it is free. `special` has the ids of those
    marks that are special tokens. Raises ApiError 400 for parameters that are no schema.
    """
    rules: list[str] = []
    parts: Grammar = []
    if calls.tools:
        rules += _calls(calls, reading.tool_format, special)
        parts += [_arguments(calls, index, tool) for index, tool in calls.tools]
    if calls.must:
        body, is_free = "calls", False
    elif answer:
        body, is_free = "(calls | @answer)" if calls.tools else "@answer", False
        parts += [GrammarPart(ANSWER, part.kind, part.text, part.param) for part in answer]
    else:
        body, is_free = "spoken", True
        rules += _spoken(reading.tool_format, special)
    if reading.reasons and not is_free:
        rules += _thought(reading.is_inside, special)
        body = f"thought {body}" if reading.is_inside else f"thought? {body}"
    param = "tool_choice" if calls.must else answer[0].param if answer else "tools"
    return [GrammarPart("", "lark", "\n".join((f"start: {body}", *rules)), param), *parts]


def _arguments(calls: Calls, index: int, tool: Tool) -> GrammarPart:
    follows = calls.must or tool.function.strict
    schema = (tool.function.parameters if follows else None) or ANY_OBJECT
    # A function's arguments are an object, whether its schema says so or not.
    return json_part(f"f{index}", {"type": "object"} | schema, f"tools[{index}].function.parameters")


def _calls(calls: Calls, tool_format: str, special: Mapping[str, int]) -> list[str]:
    """The rules for one call or more, from their first mark to their last."""
    key = "parameters" if tool_format == "llama3_json" else "arguments"
    objects = []
    for index, tool in calls.tools:
        opened = f'{{"name": {_text(tool.function.name)}, "{key}": '
        objects.append(f"{_text(opened)} @f{index} {_text('}')}")
    mark = _mark_of(tool_format)
    match tool_format:
        case "hermes":
            closed = f'"\\n" object "\\n" {_mark(hermes.CLOSE, special)}'
            first, more, last = closed, f'"\\n" {_mark(hermes.OPEN, special)} {closed}', ""
        case "mistral":
            first, more, last = '"[" object', '", " object', ' "]"'
        case "llama3_json":
            first, more, last = "object", '"; " object', ""
        case _:
            first, more, last = "object", '"\\n" object', ""
    return [
        f"calls: {_mark(mark, special)} unmarked" if mark else "calls: unmarked",
        f"unmarked: {first}{f' ({more})*' if calls.several else ''}{last}",
        f"object: {' | '.join(objects)}",
    ]


def _spoken(tool_format: str, special: Mapping[str, int]) -> list[str]:
    """The rules for free text that calls may end."""
    mark = _mark_of(tool_format)
    if not mark:
        return [
            "spoken: TEXT | LINES? calls",
            f"TEXT: /{_LINE}(\\n{_LINE})*/",
            f"LINES: /({_LINE}\\n)+/",
        ]
    if mark in special:
        return ["spoken: TEXT calls?", f"TEXT: {ANY_TEXT}"]
    # The text in front ends with the mark that begins the calls, wherever it first comes.
    return ["spoken: TEXT | before unmarked", f"TEXT: {ANY_TEXT}", f"before[lazy]: {ANY_TEXT} {_text(mark)}"]


def _mark_of(tool_format: str) -> str:
    """What calls of a format begin with; "" for bare JSON."""
    return {"hermes": hermes.OPEN, "mistral": mistral.MARK}.get(tool_format, "")


def _thought(is_inside: bool, special: Mapping[str, int]) -> list[str]:
    """The rules for reasoning, from where the output begins to the white space behind it."""
    opened = "" if is_inside else f"{_mark(reasoning.OPEN, special)} "
    if reasoning.CLOSE in special:
        return [f"thought: {opened}THOUGHT {_mark(reasoning.CLOSE, special)} SPACE?", f"THOUGHT: {ANY_TEXT}", _SPACE]
    return [f"thought: {opened}thinking SPACE?", f"thinking[lazy]: {ANY_TEXT} {_text(reasoning.CLOSE)}", _SPACE]


_SPACE = r"SPACE: /[ \n]{1,3}/"


def _mark(mark: str, special: Mapping[str, int]) -> str:
    """A mark of the format: a special token, or its text."""
    return f"<[{special[mark]}]>" if mark in special else _text(mark)


def _text(text: str) -> str:
    """A text in Lark's notation."""
    return orjson.dumps(text).decode()
