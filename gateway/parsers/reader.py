"""How the text of a job's choices is read: what there is to find in it, and the reader that finds it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gateway.parsers.bare_json import JsonParser, LlamaParser
from gateway.parsers.hermes import HermesParser
from gateway.parsers.mistral import MistralParser
from gateway.parsers.parts import Arguments, CallOpened, Content, Part, Reasoning, merged
from gateway.parsers.reasoning import ReasoningParser
from gateway.parsers.tool_parser import ToolParser

TOOL_PARSERS: dict[str, type[ToolParser]] = {
    "hermes": HermesParser,
    "llama3_json": LlamaParser,
    "mistral": MistralParser,
    "json": JsonParser,
}


@dataclass(frozen=True, slots=True)
class Reading:
    """What the text of a job's choices may hold beside content."""

    tools: frozenset[str] = frozenset()  # names of the functions that may be called
    tool_format: str = "json"  # a key of TOOL_PARSERS
    parallel_calls: bool = True  # more than one call is shown
    reasons: bool = False  # the model may reason before it answers
    is_inside: bool = False  # the prompt ends with <think>
    show_reasoning: bool = True

    @property
    def is_plain(self) -> bool:
        """Whether all text is content."""
        return not self.tools and not self.reasons


PLAIN = Reading()


class Reader:
    """Reads the text of one choice."""

    def __init__(self, reading: Reading) -> None:
        self.reasoning_tokens = 0
        self.num_calls = 0
        self._reading = reading
        self._reasoning = ReasoningParser(reading.is_inside) if reading.reasons else None
        self._tools = TOOL_PARSERS[reading.tool_format](reading.tools) if reading.tools else None
        self._undecided_tokens = 0

    def read(self, runs: Iterable[tuple[str, int]]) -> list[Part]:
        """What becomes clear with more text, given in runs that each stand for some tokens."""
        parts: list[Part] = []
        for text, num_tokens in runs:
            parts += self._split(text, num_tokens)
        return self._shown(parts)

    def finish(self) -> list[Part]:
        """What is left when no more text comes."""
        parts: list[Part] = []
        if self._reasoning is not None:
            parts += self._calls_in(self._reasoning.finish())
        if self._tools is not None:
            parts += self._tools.finish()
        return self._shown(parts)

    def _split(self, text: str, num_tokens: int) -> list[Part]:
        if self._reasoning is None:
            return self._calls_in([Content(text)] if text else [])
        was_inside = self._reasoning.is_inside
        parts = self._reasoning.push(text)
        if was_inside or self._reasoning.is_inside or any(isinstance(part, Reasoning) for part in parts):
            self.reasoning_tokens += self._undecided_tokens + num_tokens
            self._undecided_tokens = 0
        elif self._reasoning.is_undecided:
            self._undecided_tokens += num_tokens
        else:
            self._undecided_tokens = 0
        return self._calls_in(parts)

    def _calls_in(self, parts: list[Part]) -> list[Part]:
        if self._tools is None:
            return parts
        found: list[Part] = []
        for part in parts:
            found += self._tools.push(part.text) if isinstance(part, Content) else [part]
        return found

    def _shown(self, parts: list[Part]) -> list[Part]:
        shown: list[Part] = []
        for part in parts:
            if isinstance(part, Reasoning) and not self._reading.show_reasoning:
                continue
            if isinstance(part, (CallOpened, Arguments)):
                if part.index > 0 and not self._reading.parallel_calls:
                    continue
                self.num_calls = max(self.num_calls, part.index + 1)
            shown.append(part)
        return merged(shown)
