"""Tool calls as Hermes and Qwen models write them: <tool_call>{"name": ..., "arguments": {...}}</tool_call>."""

from __future__ import annotations

from gateway.parsers.json_scan import WHITE
from gateway.parsers.tool_parser import ToolParser

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(ToolParser):
    marks = (OPEN, CLOSE)
    opener = "<"
    needs_arguments = False
    only_known_names = False  # the mark says that it is a call

    def _text(self, char: str) -> None:
        if self._look_for(OPEN, char):
            self._raw = OPEN
            self._state = self._before_object

    def _before_object(self, char: str) -> None:
        if char in WHITE:
            self._raw += char
        else:
            self._begin_object(char)

    def _after_call(self, char: str) -> None:
        """Up to the closing mark, which some models leave out."""
        if char in WHITE and not self._held:
            return
        self._held += char
        if self._held == CLOSE:
            self._held = ""
            self._state = self._text
        elif not CLOSE.startswith(self._held):
            text, self._held = self._held, ""
            self._state = self._text
            for each in text:
                self._state(each)
