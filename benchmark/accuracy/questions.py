"""MMLU and GSM8K: rows with the columns under which they are published, as prompts with the answers that are right.

The prompts are those of MiniEngine: no examples, one question, one instruction.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmark.accuracy import answers
from benchmark.datasets import DatasetError, Row, Source

MMLU_INSTRUCTION = "Answer with the letter only (A, B, C, or D)."
GSM8K_INSTRUCTION = "Solve step by step. Put your final numeric answer after ####."


@dataclass(frozen=True, slots=True)
class Question:
    """One question, and the answer that counts as right, as a text: a letter or a number."""

    prompt: str
    right: str
    subject: str = ""
    choices: tuple[str, ...] = ()

    def read(self, answer: str) -> str | None:
        """What an answer says, to be compared with `right`; None when it says nothing."""
        if self.choices:
            return answers.letter(answer, self.choices)
        value = answers.number(answer)
        return None if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset: where it is on the hub, and how its rows are read."""

    source: Source
    question: Callable[[Row], Question]
    max_tokens: int


def _mmlu(row: Row) -> Question:
    choices = row["choices"]
    choices = json.loads(choices) if isinstance(choices, str) else choices
    if not isinstance(choices, list) or len(choices) != 4:
        raise ValueError(f"choices: expected a list of four, got {choices!r}")
    right = str(row["answer"])
    right = "ABCD"[int(right)] if right.isdecimal() else right
    if right not in ("A", "B", "C", "D"):
        raise ValueError(f"answer: expected 0 to 3 or A to D, got {right!r}")
    lines = [row["question"], *(f"{name}. {choice}" for name, choice in zip("ABCD", choices, strict=True))]
    prompt = "\n".join([*lines, "", MMLU_INSTRUCTION])
    return Question(prompt, right, str(row.get("subject") or ""), tuple(map(str, choices)))


def _gsm8k(row: Row) -> Question:
    right = answers.number(str(row["answer"]))
    if right is None:
        raise ValueError(f"answer: no number in {row['answer']!r}")
    return Question(f"{row['question']}\n\n{GSM8K_INSTRUCTION}", str(right))


DATASETS = {
    "mmlu": Dataset(Source("cais/mmlu", "all", "test"), _mmlu, max_tokens=32),
    "gsm8k": Dataset(Source("openai/gsm8k", "main", "test"), _gsm8k, max_tokens=512),
}


def read_questions(dataset: Dataset, rows: Iterable[Row]) -> list[Question]:
    """All of them. Raises DatasetError, with the row's number, when one is not such a question."""
    questions = []
    for number, row in enumerate(rows, 1):
        try:
            questions.append(dataset.question(row))
        except KeyError as error:
            raise DatasetError(f"row {number}: no column {error}; it has {', '.join(sorted(map(str, row)))}") from None
        except (ValueError, IndexError, TypeError) as error:
            raise DatasetError(f"row {number}: {error}") from None
    return questions


def choose(questions: Sequence[Question], subjects: Sequence[str], count: int, seed: int) -> list[Question]:
    """At most `count` questions of these subjects (of all if none is given), drawn by a seed. Raises DatasetError."""
    known = {question.subject for question in questions}
    if unknown := [subject for subject in subjects if subject not in known]:
        names: Any = sorted(filter(None, known))
        raise DatasetError(f"--subjects {','.join(unknown)}: known are {', '.join(names) or 'none'}")
    chosen = [question for question in questions if not subjects or question.subject in subjects]
    if not chosen:
        raise DatasetError("there are no questions in the data")
    random.Random(seed).shuffle(chosen)
    return chosen[:count]
