"""Grammars are tried out: what is good goes on, what is not gets a reason, and nothing takes long."""

from __future__ import annotations

import json
import re
import threading
import time
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from ipc.messages import GrammarPart
from model_proc.files.model_files import LocalModel
from tokenizer_proc.errors import RequestError
from tokenizer_proc.grammar_check import MAX_CHARS, GrammarChecker

VOCABULARY = 300
SPECIAL = {"<|call|>": 1, "[CALLS]": 256}


@pytest.fixture(scope="module")
def checker() -> GrammarChecker:
    return GrammarChecker(VOCABULARY, SPECIAL)


def parts(kind: str, text: Any) -> list[GrammarPart]:
    return [GrammarPart("answer", kind, text if isinstance(text, str) else json.dumps(text), "here")]


def obj(properties: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)} | fields


B = {"$ref": "#/$defs/b"}

GOOD = [
    ("json", {}),
    ("json", {"type": "object"}),
    ("json", obj({"x": {"type": "number", "maximum": 2e10}})),
    ("json", {"$defs": {"n": obj({"n": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}})}, "$ref": "#/$defs/n"}),
    ("json", {"type": "array", "items": {"$ref": "#"}}),
    ("json", {"type": "array", "prefixItems": [{"const": 1}], "items": {"$ref": "#"}, "minItems": 1}),
    ("json", {"type": "object", "properties": {"child": {"$ref": "#"}}}),
    ("json", {"enum": [f"x{i}" for i in range(5000)]}),
    ("json", {"oneOf": [{"type": "integer"}, {"type": "string"}]}),
    ("json", {"type": "string", "format": "date-time"}),
    ("json", {"title": "T", "description": "D", "examples": [1], "default": 2, "type": "integer"}),
    ("regex", "(a+)+$"),
    ("regex", r"\d{4}-\d{2}"),
    ("regex", "a/b\"c'd"),
    ("lark", 'start: "a" | "b" start'),
    ("lark", 'start: <|call|> "a"'),
    ("lark", 'start: <[256]> "a"'),
    ("gbnf", 'root ::= "a" | "b" root'),
]  # fmt: skip

BAD = [
    ("json", {"type": "integer", "minimum": 5, "maximum": 3}, "minimum .5. is greater"),
    ("json", obj({"x": False}), "Unsatisfiable"),
    ("json", {"$ref": "#"}, "asks for itself"),
    ("json", obj({"child": {"$ref": "#"}}), "asks for itself"),
    ("json", {"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "asks for itself"),
    ("json", {"$defs": {"a": obj({"b": B}), "b": obj({"a": {"$ref": "#/$defs/a"}})}} | B, "asks for itself"),
    ("json", {"$ref": "file:///etc/passwd"}, "not present"),
    ("json", {"$ref": "http://127.0.0.1/x"}, "not present"),
    ("json", {"not": {"type": "string"}}, '"not"'),
    ("json", {"oneOf": [{"type": "integer"}, {"type": "number"}]}, "use anyOf"),
    ("json", {"not": {}, "x-guidance": {"lenient": True}}, '"not"'),
    ("json", {"type": "string", "format": "banana"}, "banana"),
    ("json", {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1000)}}, "items"),
    ("json", {"type": "integer", "multipleOf": 999983, "maximum": 1e18, "minimum": 0}, "lexer|more than 5 s"),
    ("json", {"allOf": [{"anyOf": [obj({f"{i}{j}": {}}) for j in range(8)]} for i in range(9)]}, "too large"),
    ("regex", "(a", "unclosed group"),
    ("regex", "(?=a)b", "look-around"),
    ("regex", r"(a)\1", "backreferences"),
    ("regex", r"[^\s\S]", "nothing can satisfy it"),
    ("lark", "start: foo", "foo"),
    ("lark", 'start: "a" start', "Too many items"),
    ("lark", "start: <|nobody|>", "unknown special token"),
    ("lark", "start: @elsewhere", "elsewhere"),
    ("gbnf", "root ::= foo", "foo"),
    ("gbnf", "root ::= " + "( " * 5000, "nested"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), GOOD)
def test_good_grammars(checker: GrammarChecker, kind: str, text: Any) -> None:
    grammar = checker.check(parts(kind, text))
    assert checker.check(parts(kind, text)) is grammar, "it is remembered"


@pytest.mark.parametrize(("kind", "text", "reason"), BAD)
def test_bad_grammars(checker: GrammarChecker, kind: str, text: Any, reason: str) -> None:
    with pytest.raises(RequestError) as raised:
        checker.check(parts(kind, text))
    message = str(raised.value)
    assert message.startswith("here: ")
    assert re.search(reason, message), message
    assert "\n" not in message
    assert "<" not in message
    assert raised.value.param == "here"


def test_the_part_at_fault_is_named(checker: GrammarChecker) -> None:
    good = GrammarPart("f0", "json", "{}", "tools[0]")
    bad = GrammarPart("f1", "json", '{"not": {}}', "tools[1]")
    with pytest.raises(RequestError) as raised:
        checker.check([GrammarPart("", "lark", "start: @f0 | @f1", "tool_choice"), good, bad])
    assert raised.value.param == "tools[1]"


def test_all_parts_together_are_limited(checker: GrammarChecker) -> None:
    with pytest.raises(RequestError, match="larger than"):
        checker.check(parts("lark", "x" * (MAX_CHARS + 1)))


def test_what_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    checker = GrammarChecker(VOCABULARY, {}, max_seconds=0.01)
    blocked = threading.Event()

    def never(grammar: str) -> str:
        blocked.wait()
        return ""

    monkeypatch.setattr(checker, "_fault", never)
    started = time.monotonic()
    with pytest.raises(RequestError, match=r"more than 0\.01 s"):
        checker.check(parts("regex", "a"))
    assert time.monotonic() - started < 5
    blocked.set()


def test_a_real_vocabulary_follows_what_was_checked(checker: GrammarChecker, embedded_model: LocalModel) -> None:
    """White space in JSON is at most one space, so a model cannot go on with it for ever."""
    tokenizer = LLTokenizer(str(embedded_model.tokenizer_folder / "tokenizer.json"), 49152, [2])
    grammar = checker.check(parts("json", obj({"a": {"type": "integer"}}, additionalProperties=False)))
    for text, is_good in (('{"a":1}', True), ('{"a": 1}', True), ('{"a":  1}', False), ('{\n"a":1}', False)):
        matcher = LLMatcher(tokenizer, grammar)
        assert matcher.consume_tokens(tokenizer.tokenize_str(text)) == is_good
        assert matcher.is_error() != is_good


@pytest.mark.parametrize(
    ("pattern", "text", "is_good"),
    [
        (r"\d+", "12", True),
        (r"\d+", "\N{BENGALI DIGIT ONE}", False),
        (r"[\d-]+é", "1-2é", True),
        (r"\\d", r"\d", True),
        (r"\\d", r"\1", False),
        (r"\D", "\N{BENGALI DIGIT ONE}", True),
    ],
)
def test_the_digits_of_a_regex_are_those_of_ascii(
    checker: GrammarChecker, embedded_model: LocalModel, pattern: str, text: str, is_good: bool
) -> None:
    tokenizer = LLTokenizer(str(embedded_model.tokenizer_folder / "tokenizer.json"), 49152, [2])
    matcher = LLMatcher(tokenizer, checker.check(parts("regex", pattern)))
    assert matcher.consume_tokens(tokenizer.tokenize_str(text)) == is_good
