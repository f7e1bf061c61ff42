"""Tool calls as Mistral models write them.

    [TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]
    [TOOL_CALLS]name{...}
    [TOOL_CALLS]name[ARGS]{...}
    [TOOL_CALLS]name[CALL_ID]id[ARGS]{...}

Newer models write the mark anew before every call.
"""

from __future__ import annotations

import string

from gateway.parsers.json_scan import WHITE, ValueScanner, Verdict
from gateway.parsers.tool_parser import ToolParser, short_call_id

MARK, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_NAME = frozenset(string.ascii_letters + string.digits + "_.-")


class MistralParser(ToolParser):
    marks = (MARK, CALL_ID, ARGS)
    needs_arguments = False
    only_known_names = False  # the mark says that it is a call
    opener = "["
    new_call_id = staticmethod(short_call_id)

    def __init__(self, tools: frozenset[str]) -> None:
        super().__init__(tools)
        self._name = ""
        self._value = ValueScanner()

    def _text(self, char: str) -> None:
        if self._look_for(MARK, char):
            self._raw = MARK
            self._state = self._after_mark

    def _after_mark(self, char: str) -> None:
        if char == "[":
            self._begin_list(char)
        elif char == "{":
            self._begin_object(char)
        elif char in WHITE:
            self._raw += char
        else:
            self._name = ""
            self._state = self._in_name
            self._in_name(char)

    def _in_name(self, char: str) -> None:
        if char in _NAME:
            self._name += char
            self._raw += char
        elif char == "{" and self._name:
            self._begin_arguments(char)
        elif char == "[" and self._name:
            self._state = self._in_inner_mark
            self._in_inner_mark(char)
        else:
            self._give_up(char)

    def _in_inner_mark(self, char: str) -> None:
        """Between a name, or the id behind it, and the arguments: [CALL_ID] or [ARGS]."""
        self._raw += char
        if self._raw.endswith(CALL_ID):
            self._state = self._in_call_id
        elif self._raw.endswith(ARGS):
            self._state = self._before_arguments
        else:
            inner = self._raw[self._raw.rindex("[") :]
            if not (CALL_ID.startswith(inner) or ARGS.startswith(inner)):
                self._raw = self._raw[:-1]
                self._give_up(char)

    def _in_call_id(self, char: str) -> None:
        """The model's own id is not used: it need not be unique."""
        if char == "[":
            self._state = self._in_inner_mark
            self._in_inner_mark(char)
        elif char in _NAME:
            self._raw += char
        else:
            self._give_up(char)

    def _before_arguments(self, char: str) -> None:
        if char == "{":
            self._begin_arguments(char)
        elif char in WHITE:
            self._raw += char
        else:
            self._give_up(char)

    def _begin_arguments(self, char: str) -> None:
        self._open(self._name)
        self._value = ValueScanner()
        self._state = self._in_arguments
        self._in_arguments(char)

    def _in_arguments(self, char: str) -> None:
        verdict = self._value.push(char)
        self._add_arguments(char)
        if verdict is not Verdict.MORE:
            self._state = self._text

    def _take_run(self, text: str, start: int) -> int:
        if self._state == self._in_arguments:
            end = self._value.run(text, start)
            self._add_arguments(text[start:end])
            return end
        return super()._take_run(text, start)

    def _after_call(self, char: str) -> None:
        self._state = self._text
        self._text(char)
