"""How many answers are right, and how sure that is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmark.accuracy.questions import Question

Z_95 = 1.959964  # of the normal distribution, for an interval of 95 %


@dataclass(frozen=True, slots=True)
class Graded:
    """One question with its answer. An `error` is no answer, and counts as none."""

    question: Question
    answer: str
    said: str | None  # what the answer says; None: nothing that could be right
    truncated: bool  # it ended at max_tokens
    error: str = ""

    @property
    def right(self) -> bool:
        return not self.error and self.said == self.question.right


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a share (E. B. Wilson, 1927); (0, 1) when nothing was counted."""
    if not count:
        return 0.0, 1.0
    share, z2 = right / count, Z_95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def score(graded: Sequence[Graded]) -> dict[str, Any]:
    """The share of right answers among the answers, its interval, and what became of the others."""
    answered = [one for one in graded if not one.error]
    right = sum(one.right for one in answered)
    low, high = wilson(right, len(answered))
    return {
        "questions": len(graded),
        "answered": len(answered),
        "right": right,
        "accuracy": right / len(answered) if answered else None,
        "interval_95": [low, high],
        "unclear": sum(one.said is None for one in answered),  # answers, but none of them names a choice or a number
        "truncated": sum(one.truncated for one in answered),
        "errors": len(graded) - len(answered),
    }


def by_subject(graded: Sequence[Graded]) -> dict[str, dict[str, Any]]:
    """The same for each subject; empty when there are none."""
    groups: defaultdict[str, list[Graded]] = defaultdict(list)
    for one in graded:
        groups[one.question.subject].append(one)
    return {subject: score(groups[subject]) for subject in sorted(groups) if subject}
