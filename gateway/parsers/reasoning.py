"""Reasoning between <think> and </think>, before the answer."""

from __future__ import annotations

from gateway.parsers.parts import Content, Part, Reasoning, merged

OPEN, CLOSE = "<think>", "</think>"
MARKS = (OPEN, CLOSE)


class ReasoningParser:
    """Splits the text of one choice into reasoning and the rest.

    Reasoning comes first or not at all: after other text <think> is text like any other. White space around the
    reasoning is dropped. Reasoning that is never closed is reasoning to the end.
    """

    def __init__(self, is_inside: bool) -> None:
        """`is_inside` is set when the prompt ends with <think>, so that the text begins within the reasoning."""
        self._may_open = True  # nothing but white space has come so far
        self._inside = is_inside
        self._begun = False  # what stands now, reasoning or the rest, has a first character
        self._had_reasoning = is_inside
        self._held = ""  # white space, and what may be the beginning of a mark
        self._parts: list[Part] = []

    @property
    def is_inside(self) -> bool:
        """Whether the text so far ends within the reasoning."""
        return self._inside

    @property
    def is_undecided(self) -> bool:
        """Whether it may still turn out that the text so far begins the reasoning."""
        return self._may_open and not self._inside

    def push(self, text: str) -> list[Part]:
        """What becomes clear now that `text` has come."""
        start = 0
        while start < len(text):
            end = self._take_run(text, start)
            if end == start:
                self._push_char(text[start])
                end += 1
            start = end
        return self._take()

    def finish(self) -> list[Part]:
        """What is left when no more text comes."""
        held, self._held = self._held, ""
        self._say(held.rstrip() if self._inside else held)
        return self._take()

    def _take_run(self, text: str, start: int) -> int:
        """Take at once what cannot hold a mark; where that ends."""
        if self._may_open or self._held:
            return start
        if not self._inside:
            self._say(text[start:])
            return len(text)
        end = text.find(CLOSE[0], start)
        run = text[start : end if end >= 0 else len(text)]
        shown = run.rstrip()
        self._say(shown)
        self._held = run[len(shown) :]
        return start + len(run)

    def _push_char(self, char: str) -> None:
        self._held += char
        mark = self._held.lstrip()
        if self._may_open and mark == OPEN:
            self._enter()
        elif self._inside and mark == CLOSE:
            self._leave()
        elif not (CLOSE.startswith(mark) and self._inside) and not (OPEN.startswith(mark) and self._may_open):
            self._may_open = False
            # The last character may begin a mark, or the white space before one.
            held, self._held = self._held[:-1], ""
            if self._inside and (char.isspace() or char == CLOSE[0]):
                self._say(held)
                self._held = char
            else:
                self._say(held + char)

    def _enter(self) -> None:
        self._may_open = False
        self._inside = self._had_reasoning = True
        self._begun = False
        self._held = ""

    def _leave(self) -> None:
        self._may_open = False
        self._inside = False
        self._begun = False
        self._held = ""

    def _say(self, text: str) -> None:
        if not self._begun and self._had_reasoning:
            text = text.lstrip()
        if text:
            self._begun = True
            self._parts.append(Reasoning(text) if self._inside else Content(text))

    def _take(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return merged(parts)
