"""Reasoning and answer: told apart, in every cut, and counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.parsers.parts import Arguments, CallOpened, Content, Part, Reasoning, merged
from gateway.parsers.reader import Reader, Reading
from gateway.parsers.reasoning import ReasoningParser


def parse(pieces: list[str], is_inside: bool) -> tuple[str, str]:
    """The reasoning and the answer."""
    parser = ReasoningParser(is_inside)
    parts = [part for piece in pieces for part in parser.push(piece)] + parser.finish()
    reasoning = "".join(part.text for part in parts if isinstance(part, Reasoning))
    return reasoning, "".join(part.text for part in parts if isinstance(part, Content))


CASES: list[tuple[str, bool, tuple[str, str]]] = [
    ("<think>\nWhy <not>?\n</think>\n\nBecause. ", False, ("Why <not>?", "Because. ")),
    (" \n<think>a</think>b", False, ("a", "b")),
    ("a\n\nb\n</think>\nc</think>", True, ("a\n\nb", "c</think>")),
    ("<think>a</think>b", True, ("a", "b")),
    ("\n\na</think>", True, ("a", "")),
    ("no end <thi </thinking> ", True, ("no end <thi </thinking>", "")),
    ("a </thi", True, ("a </thi", "")),
    (" no <think>reasoning</think>", False, ("", " no <think>reasoning</think>")),
    ("<thin", False, ("", "<thin")),
    ("  ", False, ("", "  ")),
    ("<think></think>", False, ("", "")),
    ("a<</think>b", True, ("a<", "b")),
    ("", True, ("", "")),
]


@pytest.mark.parametrize(("text", "is_inside", "expected"), CASES)
def test_cases(text: str, is_inside: bool, expected: tuple[str, str]) -> None:
    assert parse([text], is_inside) == expected
    assert parse(list(text), is_inside) == expected


@given(
    fragments=st.lists(
        st.sampled_from(["<think>", "</think>", "<", "think>", "</", " ", "\n", "word", "é"]), max_size=12
    ),
    is_inside=st.booleans(),
    data=st.data(),
)
def test_the_cut_makes_no_difference(fragments: list[str], is_inside: bool, data: st.DataObject) -> None:
    text = "".join(fragments)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(pieces, is_inside) == parse([text], is_inside) == parse(list(text), is_inside)


def read(reading: Reading, runs: list[tuple[str, int]]) -> tuple[list[Part], Reader]:
    reader = Reader(reading)
    parts = [part for run in runs for part in reader.read([run])] + reader.finish()
    return merged(parts), reader


class TestReader:
    def test_tokens_up_to_the_closing_mark_count(self) -> None:
        runs = [("\n", 1), ("<think>", 1), ("\n", 1), ("Hm", 2), ("</think>", 1), ("\n\n", 1), ("Yes", 1), ("", 1)]
        parts, reader = read(Reading(reasons=True), runs)
        assert parts == [Reasoning("Hm"), Content("Yes")]
        assert reader.reasoning_tokens == 6

    def test_none_without_reasoning(self) -> None:
        parts, reader = read(Reading(reasons=True), [("\n", 1), ("<th", 1), ("e", 1)])
        assert parts == [Content("\n<the")]
        assert reader.reasoning_tokens == 0

    def test_hidden_reasoning_counts_as_well(self) -> None:
        parts, reader = read(
            Reading(reasons=True, is_inside=True, show_reasoning=False), [("Hm", 1), ("</think>Yes", 2)]
        )
        assert parts == [Content("Yes")]
        assert reader.reasoning_tokens == 3

    def test_calls_are_looked_for_behind_the_reasoning(self) -> None:
        call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
        reading = Reading(frozenset("f"), "hermes", reasons=True)
        parts, reader = read(reading, [(f"<think>{call}</think>\n{call}", 9)])
        thought, opened, arguments = parts
        assert thought == Reasoning(call)
        assert isinstance(opened, CallOpened)
        assert (opened.name, arguments) == ("f", Arguments(0, "{}"))
        assert reader.num_calls == 1

    def test_one_call_when_only_one_may_be(self) -> None:
        call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
        parts, reader = read(Reading(frozenset("f"), "hermes", parallel_calls=False), [(call * 3, 9)])
        assert len(parts) == 2
        assert reader.num_calls == 1
