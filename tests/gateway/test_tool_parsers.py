"""Tool calls in text: every format, whole and in every cut, and text that is none."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.parsers.parts import Arguments, CallOpened, Content, Part, merged
from gateway.parsers.reader import TOOL_PARSERS

TOOLS = frozenset(("get_weather", "add"))
ARGUMENTS = '{"city": "S\\u00e3o \\"P\\" {[", "days": [1, {"a": "}"}]}'
CALL = f'{{"name": "get_weather", "arguments": {ARGUMENTS}}}'
ADD = '{"arguments": {"a": 1,\n "b": 2}, "name": "add"}'


def parse(kind: str, pieces: list[str]) -> list[Part]:
    parser = TOOL_PARSERS[kind](TOOLS)
    parts = [part for piece in pieces for part in parser.push(piece)]
    return merged(parts + parser.finish())


def shape(parts: list[Part]) -> tuple[str, list[tuple[str, str]]]:
    """The content, and the calls as names and arguments."""
    content = "".join(part.text for part in parts if isinstance(part, Content))
    calls = {part.index: [part.name, ""] for part in parts if isinstance(part, CallOpened)}
    for part in parts:
        if isinstance(part, Arguments):
            calls[part.index][1] += part.text
    assert list(calls) == list(range(len(calls)))
    return content, [(name, arguments) for name, arguments in calls.values()]


WEATHER = ("get_weather", ARGUMENTS)
SUM = ("add", '{"a": 1,\n "b": 2}')
CASES: list[tuple[str, str, tuple[str, list[tuple[str, str]]]]] = [
    # Hermes and Qwen
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", ("", [WEATHER])),
    ("hermes", f"Let me see.\n\n<tool_call>{CALL}</tool_call>\n", ("Let me see.", [WEATHER])),
    (
        "hermes",
        f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{ADD}\n</tool_call>\nDone. ",
        ("Done. ", [WEATHER, SUM]),
    ),
    ("hermes", f"<tool_call>{CALL}", ("", [WEATHER])),
    ("hermes", f"<tool_call>{CALL}</tool_", ("", [WEATHER])),
    ("hermes", f"<tool_call>{CALL}<tool_call>{ADD}</tool_call>", ("", [WEATHER, SUM])),
    ("hermes", '<tool_call>{"name": "add"}</tool_call>', ("", [("add", "{}")])),
    ("hermes", '<tool_call>{"name": "unheard_of", "arguments": null}</tool_call>', ("", [("unheard_of", "{}")])),
    ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', ("", [("add", '{"a": 1}')])),
    # Llama 3
    ("llama3_json", f'{{"name": "get_weather", "parameters": {ARGUMENTS}}}', ("", [WEATHER])),
    ("llama3_json", f'<|python_tag|>{{"type": "function", "name": "get_weather", "parameters": {ARGUMENTS}}}',
     ("", [WEATHER])),
    ("llama3_json", f"{CALL}; {ADD}", ("", [WEATHER, SUM])),
    ("llama3_json", "<|python_tag|>print(1)", ("<|python_tag|>print(1)", [])),
    # Mistral
    ("mistral", f"[TOOL_CALLS] [{CALL}, {ADD}]", ("", [WEATHER, SUM])),
    ("mistral", f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {ARGUMENTS}, "id": "abcdefghi"}}]',
     ("", [WEATHER])),
    ("mistral", f"[TOOL_CALLS]get_weather{ARGUMENTS}", ("", [WEATHER])),
    ("mistral", f"Well.[TOOL_CALLS]get_weather[ARGS]{ARGUMENTS}[TOOL_CALLS]add[ARGS]{SUM[1]}",
     ("Well.", [WEATHER, SUM])),
    ("mistral", f"[TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{ARGUMENTS}", ("", [WEATHER])),
    # Plain JSON
    ("json", CALL, ("", [WEATHER])),
    ("json", f"I call:\n  {CALL}\n{ADD}\n", ("I call:", [WEATHER, SUM])),
    ("json", f"[{CALL},\n{ADD}]", ("", [WEATHER, SUM])),
    # Cut short in the middle of the arguments: what came of them is out.
    ("json", '{"name": "add", "arguments": {"a": 1, "b', ("", [("add", '{"a": 1, "b')])),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a"', ("", [("add", '{"a"')])),
]  # fmt: skip

# Text that begins like a call and is none.
NO_CALLS: list[tuple[str, str]] = [
    ("hermes", "a < b, <tool_, <<tool_cal>l> and <tool_call"),
    ("hermes", "<tool_call>this is the tag</tool_call> \n"),
    ("hermes", '<tool_call>{"colour": "red"}</tool_call>'),
    ("hermes", '<tool_call>{"name": 5}</tool_call>'),
    ("hermes", '<tool_call>{"name": "add", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "add", "argum'),
    ("llama3_json", '<|python_tag|> {"name": "Bob"}'),
    ("mistral", "[TOOL_CALLS]"),
    ("mistral", "[TOOL_CALLS] and then? [TOOL_"),
    ("mistral", "[TOOL_CALLS]name[CALL_ID]x y"),
    ("mistral", "[TOOL_CALLS]name[ARGS][1]"),
    ("mistral", "[TOOL_CALLS][{}]"),
    ("json", '{"name": "Bob", "arguments": {"a": 1}}'),
    ("json", '{"answer": 42}\n{"name": "add"}\n[1, 2]\n[]'),
    ("json", f"In a line: {CALL}"),
    ("json", '{"name": "add", "name": "add", "arguments": {}}'),
    ("json", "  \n\n"),
    ("json", ""),
]


@pytest.mark.parametrize(("kind", "text", "expected"), CASES)
def test_calls(kind: str, text: str, expected: Any) -> None:
    assert shape(parse(kind, [text])) == expected
    assert shape(parse(kind, list(text))) == expected


@pytest.mark.parametrize(("kind", "text"), NO_CALLS)
def test_what_is_no_call_is_content(kind: str, text: str) -> None:
    assert shape(parse(kind, [text])) == (text, [])
    assert shape(parse(kind, list(text))) == (text, [])


FRAGMENTS = [
    *("<tool_call>", "</tool_call>", "<tool", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "<|python_tag|>", "[", "]", ";"),
    *("{", "}", '"', "\\", ":", ",", "\n", " ", "é", "name", '"name": ', '"arguments": ', '"parameters"', "null", "1"),
    *('"add"', '{"name": "add", "arguments": {', CALL, ADD, "[1]", "text"),
]


@pytest.mark.parametrize("kind", TOOL_PARSERS)
@given(fragments=st.lists(st.sampled_from(FRAGMENTS), max_size=12), data=st.data())
def test_the_cut_makes_no_difference(kind: str, fragments: list[str], data: st.DataObject) -> None:
    text = "".join(fragments)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = shape(parse(kind, [text]))
    assert shape(parse(kind, pieces)) == whole
    assert shape(parse(kind, list(text))) == whole


@pytest.mark.parametrize("kind", TOOL_PARSERS)
@given(text=st.text(alphabet="ab <[{\n|_", max_size=60))
def test_without_calls_all_text_comes_out(kind: str, text: str) -> None:
    assert shape(parse(kind, list(text))) == (text, [])


def test_arguments_come_as_they_are_written() -> None:
    parser = TOOL_PARSERS["hermes"](TOOLS)
    opened = parser.push('<tool_call>{"name": "add", "arguments": {"a"')
    assert [type(part) for part in opened] == [CallOpened, Arguments]
    assert parser.push(": 1, ") == [Arguments(0, ": 1, ")]
    assert parser.push('"text": "long') == [Arguments(0, '"text": "long')]
    assert parser.push("er\\") == [Arguments(0, "er\\")]
    assert parser.push('""}') == [Arguments(0, '""}')]
    assert parser.push("}\n</tool_call>") == []


@pytest.mark.parametrize(("kind", "pattern"), [("hermes", r"call_[0-9a-f]{24}"), ("mistral", r"[A-Za-z0-9]{9}")])
def test_ids(kind: str, pattern: str) -> None:
    ids = {TOOL_PARSERS[kind].new_call_id() for _ in range(50)}
    assert len(ids) == 50
    parser = TOOL_PARSERS[kind](TOOLS)
    mark = "<tool_call>" if kind == "hermes" else "[TOOL_CALLS]"
    [opened, _] = parser.push(mark + '{"name": "add", "arguments": {}}')
    assert isinstance(opened, CallOpened)
    assert re.fullmatch(pattern, opened.call_id)


def test_the_arguments_of_a_call_are_json() -> None:
    _, [(_, arguments)] = shape(parse("json", [CALL]))
    assert json.loads(arguments) == {"city": 'São "P" {[', "days": [1, {"a": "}"}]}
