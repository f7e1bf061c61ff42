"""What an answer that may or must call functions is made to follow: the very grammars, on a real matcher."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest
from llguidance import LLMatcher, LLTokenizer

from gateway.parsers.parts import Arguments, CallOpened, Content
from gateway.parsers.reader import Reader, Reading
from gateway.structure import Grammar, json_part
from gateway.tool_grammar import Calls, calls_of, grammar_with_calls, needs_grammar
from gateway.tool_schemas import NamedTool, Tool
from ipc.messages import STOP, Generate
from model_proc.files.model_files import LocalModel
from tests.gateway.scripted_ring import ScriptedRing
from tokenizer_proc.grammar_check import GrammarChecker, join

CITY = {"properties": {"city": {"enum": ["Rome", "Bonn"]}}, "required": ["city"], "additionalProperties": False}
FORMATS = ["hermes", "mistral", "llama3_json", "json"]
SPECIAL = {"<tool_call>": 4, "</tool_call>": 5, "[TOOL_CALLS]": 6, "<think>": 7, "</think>": 8}


def tool(name: str, strict: bool | None = None, parameters: Any = None) -> Tool:
    return Tool.model_validate(
        {"type": "function", "function": {"name": name, "strict": strict, "parameters": parameters}}
    )


TOOLS = [tool("get_weather", parameters=CITY), tool("get.time")]
STRICT = [tool("get_weather", True, CITY), tool("get.time")]


@pytest.fixture(scope="module")
def tokenizer(embedded_model: LocalModel) -> LLTokenizer:
    return LLTokenizer(str(embedded_model.tokenizer_folder / "tokenizer.json"), 49152, [2])


class Follower:
    """Tells how much of a text a grammar lets through."""

    def __init__(self, tokenizer: LLTokenizer, parts: Grammar) -> None:
        GrammarChecker(49152, SPECIAL).check(parts)
        self._tokenizer = tokenizer
        self._grammar = join(parts)

    def takes(self, text: str) -> bool:
        """Whether a text is complete under the grammar."""
        matcher = LLMatcher(self._tokenizer, self._grammar)
        tokens = self._tokenizer.tokenize_str(text)
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def written(tool_format: str, *calls: tuple[str, Any]) -> str:
    """Calls as a model of the format writes them."""
    key = "parameters" if tool_format == "llama3_json" else "arguments"
    objects = [json.dumps({"name": name, key: arguments}) for name, arguments in calls]
    match tool_format:
        case "hermes":
            return "\n".join(f"<tool_call>\n{each}\n</tool_call>" for each in objects)
        case "mistral":
            return f"[TOOL_CALLS][{', '.join(objects)}]"
        case "llama3_json":
            return "; ".join(objects)
        case _:
            return "\n".join(objects)


WEATHER: tuple[str, Any] = ("get_weather", {"city": "Rome"})
NOWHERE: tuple[str, Any] = ("get_weather", {"city": "Paris"})
TIME: tuple[str, Any] = ("get.time", {})


@pytest.mark.parametrize("tool_format", FORMATS)
class TestFormats:
    def follower(self, tokenizer: LLTokenizer, tool_format: str, calls: Calls, answer: Grammar) -> Follower:
        reading = Reading(tools=frozenset(each.function.name for _, each in calls.tools), tool_format=tool_format)
        assert needs_grammar(calls, answer, reading)
        return Follower(tokenizer, grammar_with_calls(calls, answer, reading, {}))

    def test_required(self, tokenizer: LLTokenizer, tool_format: str) -> None:
        follower = self.follower(tokenizer, tool_format, calls_of(TOOLS, "required", True), [])
        assert follower.takes(written(tool_format, WEATHER))
        assert follower.takes(written(tool_format, TIME, WEATHER))
        assert not follower.takes(written(tool_format, NOWHERE))
        assert not follower.takes("It is warm.")
        assert not follower.takes("")

    def test_one_call_at_most(self, tokenizer: LLTokenizer, tool_format: str) -> None:
        follower = self.follower(tokenizer, tool_format, calls_of(TOOLS, "required", False), [])
        assert follower.takes(written(tool_format, TIME))
        assert not follower.takes(written(tool_format, TIME, WEATHER))

    def test_named(self, tokenizer: LLTokenizer, tool_format: str) -> None:
        choice = NamedTool.model_validate({"type": "function", "function": {"name": "get.time"}})
        follower = self.follower(tokenizer, tool_format, calls_of(TOOLS, choice, True), [])
        assert follower.takes(written(tool_format, TIME))
        assert not follower.takes(written(tool_format, WEATHER))
        assert not follower.takes(written(tool_format, TIME, TIME))

    def test_strict_arguments_of_a_call_that_need_not_be(self, tokenizer: LLTokenizer, tool_format: str) -> None:
        follower = self.follower(tokenizer, tool_format, calls_of(STRICT, None, True), [])
        free = ("get.time", {"any": [1]})
        for text in ("It is {warm}.\nYes", "", "a < b <tool", written(tool_format, WEATHER, free)):
            assert follower.takes(text), text
        assert follower.takes("Let me see.\n" + written(tool_format, WEATHER))
        assert not follower.takes("Let me see.\n" + written(tool_format, NOWHERE))
        assert not follower.takes(written(tool_format, NOWHERE))

    def test_a_structure_or_calls(self, tokenizer: LLTokenizer, tool_format: str) -> None:
        answer = [json_part("answer", {"const": "warm"}, "response_format")]
        follower = self.follower(tokenizer, tool_format, calls_of(TOOLS, "auto", True), answer)
        assert follower.takes('"warm"')
        assert follower.takes(written(tool_format, WEATHER))
        assert not follower.takes("warm")

    def test_what_is_written_is_read(self, tool_format: str) -> None:
        """The grammar and the parser are of one mind."""
        reading = Reading(tools=frozenset(("get_weather", "get.time")), tool_format=tool_format)
        reader = Reader(reading)
        parts = reader.read([(written(tool_format, WEATHER, TIME), 1)]) + reader.finish()
        assert [part.name for part in parts if isinstance(part, CallOpened)] == ["get_weather", "get.time"]
        assert not [part for part in parts if isinstance(part, Content)]
        arguments = ["".join(p.text for p in parts if isinstance(p, Arguments) and p.index == i) for i in (0, 1)]
        assert [json.loads(text) for text in arguments] == [{"city": "Rome"}, {}]


def test_marks_that_are_special_tokens(tokenizer: LLTokenizer) -> None:
    for tool_format, ids in (("hermes", ("<[4]>", "<[5]>")), ("mistral", ("<[6]>",))):
        reading = Reading(tools=frozenset(("get_weather",)), tool_format=tool_format, reasons=True)
        for choice in ("required", None):
            [start, *_] = parts = grammar_with_calls(calls_of(STRICT, choice, True), [], reading, SPECIAL)
            assert all(mark in start.text for mark in ids)
            assert ("<[7]>" in start.text) == (choice == "required"), "free text may hold reasoning anyway"
            GrammarChecker(49152, SPECIAL).check(parts)


def test_reasoning_before_a_structure(tokenizer: LLTokenizer) -> None:
    answer = [json_part("answer", {"const": 5}, "response_format")]
    none = calls_of([], None, True)
    outside = Follower(tokenizer, grammar_with_calls(none, answer, Reading(reasons=True), {}))
    for text, good in (("5", True), ("<think>well</think>\n\n5", True), ("<think>well</think>6", False), ("w", False)):
        assert outside.takes(text) == good
    inside = Follower(tokenizer, grammar_with_calls(none, answer, Reading(reasons=True, is_inside=True), {}))
    for text, good in (("well</think>5", True), ("</think>\n5", True), ("5", False)):
        assert inside.takes(text) == good


CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Weather?"}]}
FUNCTION = {"name": "get_weather", "parameters": CITY}
PLAIN = {"type": "function", "function": FUNCTION}


@pytest.mark.asyncio
async def test_requests_with_tools(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    call = '{"name": "get_weather", "arguments": {"city": "Rome"}}'
    ring.script = lambda generate: ring.answer(generate, [call[:30], call[30:]], STOP)
    named = {"type": "function", "function": {"name": "get_weather"}}
    strict = {"type": "function", "function": FUNCTION | {"strict": True}}
    cases: list[tuple[dict[str, Any], str | None]] = [
        ({"tools": [PLAIN]}, None),
        ({"tools": [PLAIN], "tool_choice": "none"}, None),
        ({"tools": [PLAIN], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [PLAIN], "tool_choice": named}, "tool_choice"),
        ({"tools": [strict]}, "tools"),
        ({"tools": [PLAIN], "response_format": {"type": "json_object"}}, "response_format"),
    ]
    for fields, param in cases:
        async with http.post(CHAT, json=BODY | fields) as response:
            choice = (await response.json())["choices"][0]
        generate = await ring.next(Generate)
        assert (generate.grammar[0].param if generate.grammar else None) == param
        if fields.get("tool_choice") != "none":
            assert choice["finish_reason"] == "tool_calls"
            assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Rome"}'


@pytest.mark.asyncio
async def test_a_structure_beside_tools_is_response_formats(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    body = BODY | {"tools": [PLAIN], "structured_outputs": {"regex": "a"}}
    async with http.post(CHAT, json=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "structured_outputs"
