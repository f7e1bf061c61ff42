"""A request of Anthropic's Messages API as the body of a chat completion."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.dialects.anthropic_schemas import (
    Message,
    MessagesRequest,
    OutputConfig,
    PromptRequest,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from gateway.errors import refuse

Body = dict[str, Any]

# What is called something else in a chat completion.
_OWN_NAMES = (
    ("max_completion_tokens", "max_tokens"),
    (".function.parameters", ".input_schema"),
    (".function", ""),
    ("parallel_tool_calls", "tool_choice.disable_parallel_tool_use"),
    ("reasoning_effort", "output_config.effort"),
    ("response_format.json_schema.schema", "output_config.format.schema"),
    ("include_reasoning", "thinking.display"),
)
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_body(request: MessagesRequest) -> Body:
    """The body that asks for the same. Raises ApiError 400."""
    body = prompt_body(request) | {"max_completion_tokens": request.max_tokens, "stream": request.stream}
    for name in ("temperature", "top_p", "top_k"):
        body[name] = getattr(request, name)
    body["stop"] = request.stop_sequences
    body["user"] = request.metadata and request.metadata.user_id
    if request.tool_choice is not None:
        if request.tool_choice.type == "tool":
            if request.tool_choice.name is None:
                refuse("tool_choice.name: which tool?", "tool_choice.name")
            body["tool_choice"] = {"type": "function", "function": {"name": request.tool_choice.name}}
        else:
            body["tool_choice"] = _CHOICES[request.tool_choice.type]
        if request.tool_choice.disable_parallel_tool_use:
            body["parallel_tool_calls"] = False
    thinking = request.thinking
    if thinking is not None:
        if thinking.type == "enabled" or thinking.budget_tokens is not None:
            refuse("thinking: this server cannot keep reasoning to a budget; the type may be adaptive", "thinking")
        if thinking.type == "disabled":
            body["reasoning_effort"] = "none"
        elif thinking.display == "omitted":
            body["include_reasoning"] = False
    if request.output_config is not None:
        body |= _output(request.output_config, body)
    return body


def _output(config: OutputConfig, body: Body) -> Body:
    """What of the body says how the answer is to be."""
    output: Body = {}
    if config.format is not None:
        wanted = {"name": "output", "schema": config.format.schema_}
        output["response_format"] = {"type": "json_schema", "json_schema": wanted}
    if config.effort is not None:
        if "reasoning_effort" in body:
            refuse("output_config.effort: thinking is disabled, which leaves nothing to try", "output_config.effort")
        output["reasoning_effort"] = config.effort
    return output


def prompt_body(request: PromptRequest) -> Body:
    """The part of it that makes the prompt. Raises ApiError 400."""
    messages: list[Body] = []
    if request.system:
        messages.append({"role": "system", "content": _text_of(request.system)})
    for index, message in enumerate(request.messages):
        messages += _messages_of(message, f"messages[{index}]")
    body: Body = {"model": request.model, "messages": messages}
    # The answer goes on from words that the client puts in the assistant's mouth.
    if request.messages[-1].role == "assistant":
        body["continue_final_message"] = True
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.input_schema,
                    "strict": tool.strict,
                },
            }
            for tool in request.tools
        ]
    return body


def own_path(param: str) -> str:
    """What a field of the chat completion is called here. Its messages have other numbers: the system text is one, and
    so is each result of a tool."""
    if param.startswith("messages"):
        return "messages"
    for theirs, own in _OWN_NAMES:
        param = param.replace(theirs, own, 1)
    return param


def _messages_of(message: Message, where: str) -> list[Body]:
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    own: Body = {"role": message.role, "content": []}
    results: list[Body] = []
    for index, block in enumerate(message.content):
        path = f"{where}.content[{index}]"
        match block:
            case TextBlock(text=text):
                own["content"].append({"type": "text", "text": text})
            case ToolResultBlock():
                if message.role != "user":
                    refuse(f"{path}: a tool's result is a user's to give", path)
                content = _text_of(block.content)
                results.append(
                    {
                        "role": "tool",
                        "tool_call_id": block.tool_use_id,
                        "content": f"Error: {content}" if block.is_error else content,
                    }
                )
            case ToolUseBlock() | ThinkingBlock():
                if message.role != "assistant":
                    refuse(f"{path}: only an assistant has blocks of the type {block.type}", path)
                _add_to_assistant(own, block)
    if not own["content"]:
        del own["content"]
    # Results come before what the user has to say about them.
    return results + ([own] if len(own) > 1 else [])


def _add_to_assistant(message: Body, block: ToolUseBlock | ThinkingBlock) -> None:
    if isinstance(block, ThinkingBlock):
        message["reasoning_content"] = message.get("reasoning_content", "") + block.thinking
        message.setdefault("content", [])
        return
    function = {"name": block.name, "arguments": orjson.dumps(block.input).decode()}
    message.setdefault("tool_calls", []).append({"id": block.id, "type": "function", "function": function})


def _text_of(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)
