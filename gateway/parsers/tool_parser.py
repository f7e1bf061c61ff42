"""What all tool-call formats have in common: content, calls, and text that turns out not to be a call."""

from __future__ import annotations

import secrets
import string
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable

from gateway.parsers.json_scan import WHITE, CallScanner, Verdict
from gateway.parsers.parts import Arguments, CallOpened, Content, Part, merged


class ToolParser(ABC):
    """Finds tool calls in the text of one choice. A state is a method that takes the next character.

    White space beside a call is dropped. What merely looks like the beginning of a call is held back until that is
    decided, and is content if it was none.
    """

    marks: tuple[str, ...] = ()  # texts that announce a call; a vocabulary may have them as special tokens
    opener: str  # the one character in content that needs a closer look
    needs_arguments = True
    only_known_names = True

    def __init__(self, tools: frozenset[str]) -> None:
        """`tools` are the names of the functions that there are."""
        self._tools = tools
        self._parts: list[Part] = []
        self._num_calls = 0
        self._space = ""  # at the end of the content so far: shown when more follows
        self._beside_call = False  # nothing has been shown since the last call
        self._held = ""  # what may be the beginning of a mark
        self._raw = ""  # of what may be a call
        self._in_list = False
        self._scanner = self._new_scanner()
        self._is_open = False  # the scanner's call has been given out
        self._state: Callable[[str], None] = self._text

    def push(self, text: str) -> list[Part]:
        """What becomes clear now that `text` has come."""
        start = 0
        while start < len(text):
            end = self._take_run(text, start)
            if end == start:
                self._state(text[start])
                end += 1
            start = end
        return self._take()

    def finish(self) -> list[Part]:
        """What is left when no more text comes."""
        if self._state == self._after_call:
            self._held = ""  # a closing mark that was cut off
        rest, self._raw, self._held = self._raw + self._held, "", ""
        self._say(rest)
        if not self._beside_call:
            self._parts.append(Content(self._space))
        return self._take()

    @staticmethod
    def new_call_id() -> str:
        return f"call_{uuid.uuid4().hex[:24]}"

    @abstractmethod
    def _text(self, char: str) -> None:
        """The state between calls."""

    @abstractmethod
    def _after_call(self, char: str) -> None:
        """The state behind the object of a call that is not in a list."""

    def _take_run(self, text: str, start: int) -> int:
        """Take at once what no state needs to look at character by character; where that ends."""
        end = start
        if self._state == self._text and not self._held:
            end = text.find(self.opener, start)
            if end < 0:
                end = len(text)
            self._say(text[start:end])
        elif self._state == self._in_object and self._is_open:
            end = self._scanner.run(text, start)
            self._add_arguments(text[start:end])
        return end

    # -- content -----------------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        """Text that is no part of a call."""
        text = self._space + text
        if self._beside_call:
            text = text.lstrip()
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            self._beside_call = False
            self._parts.append(Content(shown))

    def _give_up(self, char: str) -> None:
        """What was held back is no call: it is content, and with `char`, if there is one, the text goes on."""
        held, self._raw = self._raw, ""
        self._in_list = False
        self._say(held)
        self._state = self._text
        if char:
            self._text(char)

    def _look_for(self, mark: str, char: str) -> bool:
        """Whether the text ends with a mark; what cannot become one is content."""
        self._held += char
        while self._held and not mark.startswith(self._held):
            first, self._held = self._held[0], self._held[1:]
            self._say(first)
        if self._held != mark:
            return False
        self._held = ""
        return True

    def _take(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return [part for part in merged(parts) if not isinstance(part, (Content, Arguments)) or part.text]

    # -- calls -------------------------------------------------------------------------------------------------------

    def _new_scanner(self) -> CallScanner:
        return CallScanner(self._tools if self.only_known_names else None, self.needs_arguments)

    def _begin_object(self, char: str) -> None:
        self._scanner = self._new_scanner()
        self._is_open = False
        self._state = self._in_object
        self._in_object(char)

    def _in_object(self, char: str) -> None:
        verdict = self._scanner.push(char)
        if self._scanner.is_call and not self._is_open:
            self._is_open = True
            self._open(self._scanner.name or "")
        if self._is_open:
            self._add_arguments(self._scanner.take())
        elif verdict is not Verdict.BAD:
            self._raw += char
        if verdict is Verdict.BAD:
            self._give_up("" if self._is_open else char)
        elif verdict is Verdict.DONE:
            self._state = self._after_item if self._in_list else self._after_call

    def _begin_list(self, char: str) -> None:
        self._raw += char
        self._in_list = True
        self._state = self._before_item

    def _before_item(self, char: str) -> None:
        if char == "{":
            self._begin_object(char)
        elif char in WHITE:
            self._raw += char
        else:
            self._give_up(char)

    def _after_item(self, char: str) -> None:
        if char == "]":
            self._in_list = False
            self._state = self._after_call
        elif char == ",":
            self._state = self._before_item
        elif char not in WHITE:
            self._give_up(char)

    def _open(self, name: str) -> None:
        self._raw = self._space = ""
        self._beside_call = True
        self._parts.append(CallOpened(self._num_calls, self.new_call_id(), name))
        self._num_calls += 1

    def _add_arguments(self, text: str) -> None:
        self._parts.append(Arguments(self._num_calls - 1, text))


def short_call_id() -> str:
    """Nine letters and digits: what Mistral's templates ask for."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
