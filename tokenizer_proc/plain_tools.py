"""Tools for a chat template that knows none: their schemas as a system message, calls and results as plain words.

The model is asked to write a call as the JSON that the gateway's plainest parser reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]

INSTRUCTIONS = """\
You can call functions. These are the functions, each described by its name, what it does, and a JSON schema of its \
parameters:

{functions}

To call a function, answer with nothing but a line of JSON like this one:

{{"name": "the function's name", "arguments": {{"a parameter's name": "its value"}}}}

Write one such line for each call. If no function is needed, answer in plain words."""


def in_plain_words(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The same conversation without tools, calls and results of their own kind. Contents are strings."""
    names = {call["id"]: call["function"]["name"] for message in messages for call in message.get("tool_calls") or ()}
    plain: list[Message] = []
    after_result = False
    for message in messages:
        is_result = message["role"] == "tool"
        if is_result:
            text = f"Result of {names.get(message['tool_call_id'], message['tool_call_id'])}: {message['content']}"
            if after_result:  # many templates want user and assistant to take turns
                plain[-1]["content"] += f"\n{text}"
            else:
                plain.append({"role": "user", "content": text})
        else:
            plain.append(_with_calls_as_text(message))
        after_result = is_result
    return _with_instructions(plain, tools) if tools else plain


def _with_calls_as_text(message: Mapping[str, Any]) -> Message:
    plain = dict(message)
    lines = [json.dumps(call["function"], ensure_ascii=False) for call in plain.pop("tool_calls", None) or ()]
    if lines:
        plain["content"] = "\n".join([*filter(None, [plain.get("content")]), *lines])
    return plain


def _with_instructions(messages: list[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The schemas go behind the conversation's own first system message, or make one."""
    functions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = INSTRUCTIONS.format(functions=functions)
    first = messages[0]
    if first["role"] in ("system", "developer"):
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]
