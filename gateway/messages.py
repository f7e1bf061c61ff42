"""The messages of a conversation, checked beyond their types and made what chat templates read."""

from __future__ import annotations

from typing import Any

from gateway.errors import refuse
from gateway.schemas import ChatMessage
from gateway.tool_schemas import plain_call

_ASSISTANT_ONLY = ("tool_calls", "reasoning_content", "reasoning")


def plain_message(message: ChatMessage, where: str) -> dict[str, Any]:
    """A message as plain data, absent fields left out. `where` is its path in the body. Raises ApiError 400."""
    if (message.role == "tool") != (message.tool_call_id is not None):
        wrong = "a tool message needs it" if message.role == "tool" else "only a tool message has it"
        refuse(f"{where}.tool_call_id: {wrong}", f"{where}.tool_call_id")
    plain = message.model_dump(exclude_none=True)
    if message.role != "assistant":
        for name in _ASSISTANT_ONLY:
            if name in plain:
                refuse(f"{where}.{name}: only an assistant message has it", f"{where}.{name}")
    if message.content is None and message.tool_calls is None:
        refuse(f"{where}.content: the message has none", f"{where}.content")
    if message.reasoning is not None:
        del plain["reasoning"]
        if plain.setdefault("reasoning_content", message.reasoning) != message.reasoning:
            refuse(f"{where}.reasoning: is another name of reasoning_content, and they differ", f"{where}.reasoning")
    if message.tool_calls is not None:
        plain["tool_calls"] = [
            plain_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(message.tool_calls)
        ]
        plain.setdefault("content", "")  # some templates would print None
    return plain
