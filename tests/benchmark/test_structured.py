"""The schemas of the benchmark of structured answers, and the eye that checks the answers."""

from __future__ import annotations

import json

from jsonschema import Draft202012Validator

from benchmark.bounded_schemas import bounded_schema
from benchmark.structured import fault_of
from ipc.messages import GrammarPart
from tokenizer_proc.grammar_check import GrammarChecker

NUMBERS = range(40)


def test_schemas_are_good_varied_and_always_the_same() -> None:
    checker = GrammarChecker(300, {})
    for number in NUMBERS:
        schema = bounded_schema(number)
        Draft202012Validator.check_schema(schema)
        checker.check([GrammarPart("answer", "json", json.dumps(schema), "schema")])
        assert bounded_schema(number) == schema
    text = json.dumps([bounded_schema(number) for number in range(200)])
    assert len({json.dumps(bounded_schema(number)) for number in range(200)}) > 190
    for keyword in ("enum", "const", "anyOf", "prefixItems", "pattern", "format", "multipleOf", "$ref", "minItems"):
        assert f'"{keyword}"' in text


def test_what_does_not_follow_is_seen() -> None:
    schema = {"type": "object", "properties": {"at": {"type": "string", "format": "date"}}, "required": ["at"]}
    assert fault_of('{"at": "2026-11-25"}', schema) == ""
    assert fault_of('{"at": "0000-02-29"}', schema) == ""
    assert "no JSON" in fault_of('{"at": ', schema)
    assert fault_of("{}", schema)
    assert fault_of('{"at": "2026-13-25"}', schema)
