"""Stop strings, found in text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache


class StopMatcher:
    """Looks for several stop strings at once, and holds back what may still turn out to be the beginning of one.

    The string that is complete first ends the text; of those complete at the same character, the longest. So the
    outcome does not depend on how the text was cut into pieces. Held back is the longest end of the text that begins a
    stop string, and nothing when the stop string is to be shown: then it makes no difference.

    Each stop string is followed by the automaton of Knuth, Morris and Pratt ("Fast pattern matching in strings", SIAM
    J. Comput. 6, 1977): constant time per character on average, however long the text and the stop strings are.
    """

    __slots__ = ("_failures", "_held", "_include", "_matched", "_openings", "_stops", "hit")

    def __init__(self, stops: Sequence[str], include: bool) -> None:
        """`include` keeps the stop string in the text. Raises ValueError for a stop string that is empty."""
        if not all(stops):
            raise ValueError("a stop string is empty")
        self._stops = stops
        self._include = include
        self._failures = [failure_table(stop) for stop in stops]
        self._openings = frozenset(stop[0] for stop in stops)
        self._matched = [0] * len(stops)  # how much of each stop string the text ends with
        self._held = ""
        self.hit: str | None = None  # the stop string that was found; nothing may be pushed after it

    def push(self, text: str) -> str:
        """The text that can be shown now that `text` has come; the last one when `hit` is set."""
        if not any(self._matched) and self._openings.isdisjoint(text):
            return text
        for position, character in enumerate(text, start=1):
            self.hit = self._advance(character)
            if self.hit is not None:
                shown = self._held + text[:position]
                self._held = ""
                return shown if self._include else shown[: -len(self.hit)]
        if self._include:
            return text
        text = self._held + text
        cut = len(text) - max(self._matched)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str | None:
        """Follow every stop string by one character; the longest that is complete with it, if any."""
        found: str | None = None
        for index, stop in enumerate(self._stops):
            failures = self._failures[index]
            length = self._matched[index]
            while length and stop[length] != character:
                length = failures[length]
            if stop[length] == character:
                length += 1
            self._matched[index] = length
            if length == len(stop) and (found is None or length > len(found)):
                found = stop
        return found


@lru_cache(maxsize=256)
def failure_table(stop: str) -> tuple[int, ...]:
    """For each length n, the longest proper beginning of `stop[:n]` that is also an end of it; 0 for n = 0 and 1."""
    table = [0, 0]
    length = 0
    for character in stop[1:]:
        while length and stop[length] != character:
            length = table[length]
        if stop[length] == character:
            length += 1
        table.append(length)
    return tuple(table)
