"""Stop strings in text that comes in pieces, against a search over the whole text."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detok_proc.stop import StopMatcher, failure_table

TEXTS = st.text(alphabet="ab", max_size=30)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=6), min_size=1, max_size=4)
CUTS = st.sets(st.integers(0, 30))


def search(text: str, stops: list[str]) -> tuple[int, str] | None:
    """Where the first stop string is complete, and the longest of those that are complete there."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return end, max(complete, key=len)
    return None


def held_back(text: str, stops: list[str]) -> str:
    """The longest end of a text that begins a stop string without being all of it."""
    beginnings = {stop[:length] for stop in stops for length in range(len(stop))}
    return next(text[start:] for start in range(len(text) + 1) if text[start:] in beginnings)


def pieces_of(text: str, cuts: set[int]) -> list[str]:
    borders = [0, *sorted(cut for cut in cuts if 0 < cut < len(text)), len(text)]
    return [text[start:end] for start, end in pairwise(borders)]


@given(TEXTS, STOPS, CUTS, st.booleans())
def test_like_a_search_over_the_whole_text(text: str, stops: list[str], cuts: set[int], include: bool) -> None:
    matcher = StopMatcher(stops, include)
    shown, seen = "", ""
    for piece in pieces_of(text, cuts):
        seen += piece
        shown += matcher.push(piece)
        if matcher.hit is not None:
            break
        assert shown == (seen if include else seen.removesuffix(held_back(seen, stops)))
    found = search(text, stops)
    if found is None:
        assert matcher.hit is None
        assert shown + matcher.flush() == text
    else:
        end, stop = found
        assert matcher.hit == stop
        assert shown == (text[:end] if include else text[: end - len(stop)])
        assert matcher.flush() == ""


def test_the_string_that_is_complete_first_wins() -> None:
    matcher = StopMatcher(["abcd", "bc"], include=False)
    assert matcher.push("xab") == "x"
    assert matcher.push("cd") == "a"
    assert matcher.hit == "bc"


def test_the_longest_of_those_complete_together_wins() -> None:
    matcher = StopMatcher(["c", "abc", "bc"], include=False)
    assert matcher.push("xabc") == "x"
    assert matcher.hit == "abc"


def test_a_beginning_that_comes_to_nothing_is_shown() -> None:
    matcher = StopMatcher(["\n\nHuman:"], include=False)
    assert [matcher.push(piece) for piece in ("Hi", "\n", "\n", "Hum", "ble")] == ["Hi", "", "", "", "\n\nHumble"]


def test_an_overlap_keeps_what_may_still_match() -> None:
    matcher = StopMatcher(["aab"], include=False)
    assert [matcher.push(character) for character in "aaab"] == ["", "", "a", ""]
    assert matcher.hit == "aab"


def test_nothing_is_held_back_when_the_stop_string_is_shown() -> None:
    matcher = StopMatcher(["END"], include=True)
    assert [matcher.push(piece) for piece in ("xE", "N", "Dy")] == ["xE", "N", "D"]


def test_an_empty_stop_string_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""], include=False)


@given(st.text(alphabet="ab", min_size=1, max_size=20))
def test_failure_table(stop: str) -> None:
    for length, border in enumerate(failure_table(stop)):
        part = stop[:length]
        assert border == max((size for size in range(length) if part.endswith(part[:size])), default=0)


def test_work_follows_the_new_text_only() -> None:
    """Comparing characters is all the work there is: at most two for each one that comes and each stop string."""
    _Counted.comparisons = 0
    stop = "".join(["a"] * 500 + ["b"])
    matcher = StopMatcher([stop], include=False)
    text = [_Counted("a") for _ in range(3000)]
    for character in text:
        matcher.push(character)
    assert 3000 <= _Counted.comparisons <= 2 * 2 * 3000


class _Counted(str):
    """A character that counts how often it is compared."""

    comparisons = 0
    __slots__ = ()
    __hash__ = str.__hash__

    def __iter__(self):  # type: ignore[no-untyped-def]
        yield self

    def __eq__(self, other: object) -> bool:
        _Counted.comparisons += 1
        return str(self) == other

    def __ne__(self, other: object) -> bool:
        _Counted.comparisons += 1
        return str(self) != other
