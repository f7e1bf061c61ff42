"""JSON followed by the character: where a value ends, and the tool call that an object may be."""

from __future__ import annotations

import json
import re
from collections.abc import Container
from enum import Enum, auto

WHITE = " \t\r\n"
_CLOSERS = {"{": "}", "[": "]"}
_WITHIN_STRING = re.compile(r'[^"\\]*')
_SCALAR = frozenset("+-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class Verdict(Enum):
    MORE = auto()  # so far so good
    DONE = auto()  # complete with this character
    BAD = auto()  # it is no such thing


class ValueScanner:
    """Finds the end of an object, a list or a string, given from its first character on.

    It goes by brackets and quotes; what stands between them is not checked.
    """

    __slots__ = ("_closers", "_escaped", "_in_string")

    def __init__(self) -> None:
        self._closers: list[str] = []
        self._in_string = False
        self._escaped = False

    def push(self, char: str) -> Verdict:
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = False
                return Verdict.MORE if self._closers else Verdict.DONE
        elif char == '"':
            self._in_string = True
        elif char in _CLOSERS:
            self._closers.append(_CLOSERS[char])
        elif char in "]}":
            if not self._closers or self._closers.pop() != char:
                return Verdict.BAD
            return Verdict.MORE if self._closers else Verdict.DONE
        return Verdict.MORE

    def run(self, text: str, start: int) -> int:
        """Where in `text` the next character is that must be pushed: all up to there is the inside of a string."""
        if not self._in_string or self._escaped:
            return start
        match = _WITHIN_STRING.match(text, start)
        return start if match is None else match.end()


class CallScanner:
    """Follows an object such as {"name": "f", "arguments": {...}}, given from its opening brace on.

    It is a call once its name and the beginning of its arguments are there (`is_call`); from then on `take` gives what
    is new of the arguments, as the model wrote them. An object with other fields than a call has is BAD at once, so
    that little is held back of a text that merely is JSON.
    """

    def __init__(self, known: Container[str] | None, needs_arguments: bool) -> None:
        """`known` are the names a call may have, None allows all; a call may lack arguments unless they are needed."""
        self.name: str | None = None
        self.is_call = False
        self._known = known
        self._needs_arguments = needs_arguments
        self._state = self._opening
        self._seen: set[str] = set()  # keys
        self._key = ""
        self._raw = ""  # of the key or value at hand
        self._value = ValueScanner()
        self._arguments = ""  # not yet taken
        self._have_arguments = False

    def push(self, char: str) -> Verdict:
        return self._state(char)

    def run(self, text: str, start: int) -> int:
        """Where in `text` the next character is that must be pushed; all up to there belongs to the arguments."""
        return self._value.run(text, start) if self._state == self._in_arguments else start

    def take(self) -> str:
        """What has come of the arguments since the last time."""
        taken, self._arguments = self._arguments, ""
        return taken

    def _opening(self, char: str) -> Verdict:
        self._state = self._before_key
        return Verdict.MORE if char == "{" else Verdict.BAD

    def _before_key(self, char: str) -> Verdict:
        if char == '"':
            self._begin(char)
            self._state = self._in_key
        elif char == "}":
            return self._end()
        elif char not in WHITE:
            return Verdict.BAD
        return Verdict.MORE

    def _in_key(self, char: str) -> Verdict:
        self._raw += char
        if self._value.push(char) is Verdict.DONE:
            key = _text_of(self._raw)
            self._key = "arguments" if key == "parameters" else key or ""
            if self._key not in ("name", "arguments", "type", "id") or self._key in self._seen:
                return Verdict.BAD
            self._seen.add(self._key)
            self._state = self._before_colon
        return Verdict.MORE

    def _before_colon(self, char: str) -> Verdict:
        if char == ":":
            self._state = self._before_value
        elif char not in WHITE:
            return Verdict.BAD
        return Verdict.MORE

    def _before_value(self, char: str) -> Verdict:
        if char in WHITE:
            return Verdict.MORE
        allowed = {"name": '"', "arguments": '{"n'}.get(self._key)
        if allowed is not None and char not in allowed:
            return Verdict.BAD
        if char in '{["':
            self._begin(char)
            self._state = self._in_value
            if self._key == "arguments" and char == "{":
                self._have_arguments = True
                self._arguments = char
                self._state = self._in_arguments
                self._look()
        elif char in _SCALAR:
            self._raw = char
            self._state = self._in_scalar
        else:
            return Verdict.BAD
        return Verdict.MORE

    def _in_arguments(self, char: str) -> Verdict:
        self._arguments += char
        verdict = self._value.push(char)
        if verdict is Verdict.DONE:
            self._state = self._after_value
            return Verdict.MORE
        return verdict

    def _in_value(self, char: str) -> Verdict:
        self._raw += char
        verdict = self._value.push(char)
        return self._have_value() if verdict is Verdict.DONE else verdict

    def _in_scalar(self, char: str) -> Verdict:
        if char in _SCALAR:
            self._raw += char
            return Verdict.MORE
        return Verdict.BAD if self._have_value() is Verdict.BAD else self._after_value(char)

    def _have_value(self) -> Verdict:
        """A value other than an object of arguments is complete."""
        self._state = self._after_value
        if self._key == "name":
            self.name = _text_of(self._raw)
            if not self.name or (self._known is not None and self.name not in self._known):
                return Verdict.BAD
        elif self._key == "arguments":
            # Some models write them as a string that holds JSON, or write null for none.
            text = "{}" if self._raw == "null" else _text_of(self._raw)
            if text is None:
                return Verdict.BAD
            self._have_arguments = True
            self._arguments = text
        self._look()
        return Verdict.MORE

    def _after_value(self, char: str) -> Verdict:
        if char == ",":
            self._state = self._before_key
        elif char == "}":
            return self._end()
        elif char not in WHITE:
            return Verdict.BAD
        return Verdict.MORE

    def _end(self) -> Verdict:
        if self.name is not None and not self._have_arguments and not self._needs_arguments:
            self._have_arguments = True
            self._arguments = "{}"
            self._look()
        return Verdict.DONE if self.is_call else Verdict.BAD

    def _begin(self, char: str) -> None:
        self._raw = char
        self._value = ValueScanner()
        self._value.push(char)

    def _look(self) -> None:
        self.is_call = self.name is not None and self._have_arguments


def _text_of(raw: str) -> str | None:
    """The text of a JSON string; None when it is none."""
    try:
        value = json.loads(raw, strict=False)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
