"""Tools in the request bodies: the functions that there are, which of them may be called, and calls that were made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from gateway.body import parse_object
from gateway.errors import ApiError, refuse
from gateway.json_schema import check_parameters
from gateway.schema import Schema

MAX_TOOLS = 128
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


class FunctionDefinition(Schema):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Schema):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Schema):
    name: str


class NamedTool(Schema):
    type: Literal["function"]
    function: NamedFunction


def _choice_kind(value: Any) -> str:
    return "mode" if isinstance(value, str) else "named"


Tools = Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS)]
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")] | Annotated[NamedTool, Tag("named")],
    Discriminator(_choice_kind),
]


class CalledFunction(Schema):
    name: FunctionName
    arguments: str  # JSON


class ToolCall(Schema):
    """A call that the model made, as clients send it back."""

    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # what a client that joined a stream's pieces may leave in


def check_tools(tools: list[Tool]) -> None:
    """Raise ApiError 400 for functions that are called the same or have no valid schema."""
    names: set[str] = set()
    for index, tool in enumerate(tools):
        where = f"tools[{index}].function"
        if tool.function.name in names:
            refuse(f"{where}.name: there are two functions {tool.function.name!r}", f"{where}.name")
        names.add(tool.function.name)
        if tool.function.parameters is not None:
            check_parameters(tool.function.parameters, f"{where}.parameters")


def check_tool_choice(choice: str | NamedTool | None, parallel: bool, tools: list[Tool]) -> None:
    """Raise ApiError 400 for a choice among tools that are not there."""
    if not tools:
        if choice not in (None, "none"):
            refuse("tool_choice: needs tools", "tool_choice")
        if not parallel:
            refuse("parallel_tool_calls: needs tools", "parallel_tool_calls")
    elif isinstance(choice, NamedTool) and choice.function.name not in {tool.function.name for tool in tools}:
        refuse(f"tool_choice.function.name: no tool is called {choice.function.name!r}", "tool_choice.function.name")


def plain_call(call: ToolCall, where: str) -> dict[str, Any]:
    """A call as chat templates read it: its arguments are an object. Raises ApiError 400."""
    try:
        arguments = parse_object(call.function.arguments.encode() or b"{}")
    except ApiError as error:
        path = f"{where}.function.arguments"
        raise ApiError(400, f"{path}: not the text of a JSON object: {error.message}", path) from None
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
