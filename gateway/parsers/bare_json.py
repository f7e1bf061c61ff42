"""Tool calls without a mark: an object, or a list of objects, at the beginning of a line.

    {"name": ..., "arguments": {...}}

So write models that were told to in their prompt, and Llama 3, which says "parameters", may put <|python_tag|> before
it and separates several calls by semicolons. As nothing else tells a call from an answer in JSON, its name must be
that of a function that there is.
"""

from __future__ import annotations

from gateway.parsers.json_scan import WHITE
from gateway.parsers.tool_parser import ToolParser

PYTHON_TAG = "<|python_tag|>"
SEPARATORS = WHITE + ";"


class JsonParser(ToolParser):
    opener = "\n"
    tag = ""  # may stand before a call

    def __init__(self, tools: frozenset[str]) -> None:
        super().__init__(tools)
        self._state = self._line_start

    def _text(self, char: str) -> None:
        """Within a line."""
        self._say(char)
        if char == "\n":
            self._state = self._line_start

    def _line_start(self, char: str) -> None:
        if self.tag and self.tag.startswith(self._held + char):
            self._held += char
            if self._held == self.tag:
                self._raw, self._held = self._held, ""
                self._state = self._after_tag
        elif self._held:
            text, self._held = self._held + char, ""
            self._state = self._text
            for each in text:
                self._state(each)
        elif char == "{":
            self._begin_object(char)
        elif char == "[":
            self._begin_list(char)
        else:
            self._state = self._line_start if char in WHITE else self._text
            self._say(char)

    def _after_tag(self, char: str) -> None:
        if char == "{":
            self._begin_object(char)
        elif char == "[":
            self._begin_list(char)
        elif char in WHITE:
            self._raw += char
        else:
            self._give_up(char)

    def _after_call(self, char: str) -> None:
        if char not in SEPARATORS:
            self._state = self._line_start
            self._line_start(char)


class LlamaParser(JsonParser):
    tag = PYTHON_TAG
    marks = (PYTHON_TAG,)
