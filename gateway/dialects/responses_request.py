"""A request of OpenAI's Responses API as the body of a chat completion."""

from __future__ import annotations

from typing import Any

from gateway.dialects.responses_schemas import (
    FunctionCallItem,
    FunctionOutputItem,
    MessageItem,
    NamedTool,
    ReasoningItem,
    ResponsesRequest,
    TextOptions,
    TextPart,
)

Body = dict[str, Any]

# What is called something else in a chat completion.
_OWN_NAMES = (
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("max_completion_tokens", "max_output_tokens"),
    ("max_tokens", "max_output_tokens"),
    ("reasoning_effort", "reasoning.effort"),
)


def chat_body(request: ResponsesRequest) -> Body:
    """The body that asks for the same."""
    choice: Any = request.tool_choice
    if isinstance(choice, NamedTool):
        choice = {"type": "function", "function": {"name": choice.name}}
    elif choice == "auto" and not request.tools:
        choice = None  # clients say so whether they have tools or not
    return {
        "model": request.model,
        "messages": _messages(request),
        "max_completion_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stream": request.stream,
        "tools": [_tool(tool.model_dump(exclude={"type"})) for tool in request.tools] or None,
        "tool_choice": choice,
        "parallel_tool_calls": request.parallel_tool_calls if request.tools else None,
        "response_format": _response_format(request.text),
        "reasoning_effort": request.reasoning and request.reasoning.effort,
        "request_id": request.request_id,
        "metadata": request.metadata,
        "user": request.user,
        "prompt_cache_key": request.prompt_cache_key,
    }


def own_path(param: str) -> str:
    """What a field of the chat completion is called here. Items are put together into messages, which have other
    numbers."""
    if param.startswith("messages"):
        return "input"
    for theirs, own in _OWN_NAMES:
        if param.startswith(theirs):
            return own + param[len(theirs) :]
    return param.replace(".function", "", 1) if param.startswith(("tools[", "tool_choice.")) else param


def _response_format(text: TextOptions | None) -> Body | None:
    if text is None or text.format is None:
        return None
    wanted = text.format.model_dump(by_alias=True)
    kind = wanted.pop("type")
    return {"type": kind, "json_schema": wanted} if kind == "json_schema" else {"type": kind}


def _tool(function: Body) -> Body:
    return {"type": "function", "function": function}


def _messages(request: ResponsesRequest) -> list[Body]:
    """The conversation; what an assistant said, thought and called in one go becomes one message."""
    messages: list[Body] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*messages, {"role": "user", "content": request.input}]
    for item in request.input:
        match item:
            case MessageItem():
                _add_message(messages, item)
            case ReasoningItem():
                turn = _assistant_turn(messages, may_have_content=False)
                turn["reasoning_content"] = "".join(part.text for part in item.content)
            case FunctionCallItem():
                function = {"name": item.name, "arguments": item.arguments}
                call = {"id": item.call_id, "type": "function", "function": function}
                _assistant_turn(messages, may_have_content=True).setdefault("tool_calls", []).append(call)
            case FunctionOutputItem():
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text_of(item.output)})
    for message in messages:
        if message["role"] == "assistant" and "tool_calls" not in message:
            message.setdefault("content", "")
    return messages


def _add_message(messages: list[Body], item: MessageItem) -> None:
    if item.role == "assistant":
        _assistant_turn(messages, may_have_content=False)["content"] = _text_of(item.content)
    else:
        messages.append({"role": item.role, "content": _text_of(item.content)})


def _assistant_turn(messages: list[Body], may_have_content: bool) -> Body:
    """The assistant's message that is being put together, or a new one."""
    last = messages[-1] if messages else {}
    if last.get("role") == "assistant" and (may_have_content or not ("content" in last or "tool_calls" in last)):
        return last
    messages.append({"role": "assistant"})
    return messages[-1]


def _text_of(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
