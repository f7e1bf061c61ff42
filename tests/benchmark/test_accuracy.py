"""The accuracy benchmark: what answers say, what counts, and whole runs against servers that answer as told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmark.accuracy.__main__ import main
from benchmark.accuracy.answers import letter, number, value_of
from benchmark.accuracy.parity import Continuation, Reference, compare, same_beginning, summary
from benchmark.accuracy.questions import DATASETS, Question, choose, read_questions
from benchmark.accuracy.scores import Graded, by_subject, score, wilson
from benchmark.datasets import DatasetError
from benchmark.server import Server
from tests.model_proc.small_models import VOCAB_SIZE, save

CHOICES = ("Paris", "London", "Vitamin D", "a dog")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("**D**", "D"),
        ("A", "A"),
        ("A.", "A"),
        ("A. Paris", "A"),
        ("A\nBecause it is the capital", "A"),
        ("A is correct", "A"),
        ("A) Paris, of course", "A"),
        ("The answer is A", "A"),
        ("The answer is (A).", "A"),
        ("The correct answer is: **A. Paris**", "A"),
        ("Answer: c", "C"),
        ("I think that the answer is b, for many reasons.", "B"),
        ("At first the answer is B. No: the answer is D.", "D"),
        (r"So we get $\boxed{C}$", "C"),
        (r"The answer is \boxed{\text{B}}", "B"),
        ("It must be option C", "C"),
        ("Having thought about it:\nD. a dog", "D"),
        ("Everything points to B.", "B"),
        ("<think>The answer is A, or maybe B</think>\n\nC", "C"),
        ("Paris", "A"),
        ("A Paris", "A"),
        ("a dog.", "D"),
        # The article, and words that only begin with one of the letters.
        ("A city in France", None),
        ("The answer is a mystery", None),
        ("The answer is A city of many lights", None),
        ("Because I say so", None),
        ("C'est la vie", None),
        ("Do as you like; take a walk", None),
        ("", None),
    ],
)
def test_the_letter_of_an_answer(answer: str, said: str | None) -> None:
    assert letter(answer, CHOICES) == said


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("#### 18", 18),
        ("so 9 * 2 = 18.\n#### 18.", 18),
        ("#### $1,234.50", Fraction(2469, 2)),
        ("#### 18 dollars, not 19", 18),
        ("#### **18**", 18),
        ("#### -3", -3),
        ("#### \N{MINUS SIGN}3", -3),
        ("#### 3/4", Fraction(3, 4)),
        ("#### 0.75", Fraction(3, 4)),
        ("#### 5\n#### 6", 6),
        (r"it is \boxed{1,000}", 1000),
        ("First 3, then 4, in the end 12.", 12),
        ("I had 7 apples.\n#### none", 7),
        ("<think>#### 3</think> 4", 4),
        ("no number", None),
    ],
)
def test_the_number_of_an_answer(answer: str, said: Fraction | int | None) -> None:
    assert number(answer) == said


def test_numbers_are_compared_as_numbers() -> None:
    assert value_of("18.") == value_of("$18.00") == value_of(" 18 ") == 18
    assert value_of("1/0") is None
    assert value_of("eighteen") is None


MMLU_ROW = {"question": "What is the capital of France?", "subject": "geo", "choices": list(CHOICES), "answer": 0}


def test_mmlu_prompts() -> None:
    for row in (MMLU_ROW, {**MMLU_ROW, "answer": "A"}, {**MMLU_ROW, "choices": json.dumps(CHOICES), "answer": "0"}):
        [question] = read_questions(DATASETS["mmlu"], [row])
        assert question.prompt.splitlines() == [
            "What is the capital of France?", "A. Paris", "B. London", "C. Vitamin D", "D. a dog", "",
            "Answer with the letter only (A, B, C, or D).",
        ]  # fmt: skip
        assert (question.right, question.subject) == ("A", "geo")


def test_gsm8k_prompts() -> None:
    [question] = read_questions(
        DATASETS["gsm8k"], [{"question": "How much?", "answer": "2 * 600 = <<...>>\n#### 1,200"}]
    )
    assert question.prompt.endswith("How much?\n\nSolve step by step. Put your final numeric answer after ####.")
    assert question.right == question.read("it is\n#### $1200.00") == "1200"
    assert question.read("no idea") is None


@pytest.mark.parametrize(
    ("name", "row", "error"),
    [
        ("mmlu", {"question": "x", "text": "y"}, "row 1: no column 'choices'; it has question, text"),
        ("mmlu", {**MMLU_ROW, "choices": ["one"]}, "row 1: choices: expected a list of four"),
        ("mmlu", {**MMLU_ROW, "answer": 4}, "row 1"),
        ("mmlu", {**MMLU_ROW, "answer": "E"}, "row 1: answer: expected 0 to 3 or A to D"),
        ("gsm8k", {"question": "x", "answer": "y"}, "row 1: answer: no number"),
    ],
)
def test_rows_that_are_no_questions_are_named(name: str, row: dict[str, Any], error: str) -> None:
    with pytest.raises(DatasetError, match=error):
        read_questions(DATASETS[name], [row])


def test_questions_are_drawn_by_subject_and_seed() -> None:
    questions = [Question(str(index), "A", ("law", "art")[index % 2]) for index in range(40)]
    drawn = choose(questions, ["art"], 5, 42)
    assert {question.subject for question in drawn} == {"art"}
    assert drawn == choose(questions, ["art"], 5, 42) != choose(questions, ["art"], 5, 43)
    assert len(choose(questions, [], 100, 42)) == 40
    with pytest.raises(DatasetError, match="--subjects music: known are art, law"):
        choose(questions, ["law", "music"], 5, 42)


def test_wilson_intervals() -> None:
    # The figures of Newcombe's paper of 1998, method 3.
    for right, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson(right, count) == pytest.approx((low, high), abs=1e-4)
    assert wilson(0, 0) == (0, 1)


def test_errors_are_no_wrong_answers() -> None:
    law, art = Question("x", "A", "law"), Question("y", "B", "art")
    graded = [
        Graded(law, "A", "A", False),
        Graded(law, "hm", None, True),
        Graded(art, "", None, False, error="500: no"),
    ]
    found = score(graded)
    assert (found["questions"], found["answered"], found["right"], found["accuracy"]) == (3, 2, 1, 0.5)
    assert (found["unclear"], found["truncated"], found["errors"]) == (1, 1, 1)
    assert {name: row["accuracy"] for name, row in by_subject(graded).items()} == {"art": None, "law": 0.5}


# -- parity ------------------------------------------------------------------------------------------------------------


class Doubled:
    """A reference that goes on with doubles, and finds every token as likely as it is large."""

    def greedy(self, prompt_ids: list[int], max_tokens: int) -> tuple[list[int], list[float]]:
        return [prompt_ids[-1] * 2 ** (n + 1) for n in range(max_tokens)], [0.5 * n for n in range(max_tokens)]

    def logprobs(self, token_ids: list[int]) -> list[float]:
        return [-float(token) for token in token_ids[1:]]


def test_parity_is_compared_token_by_token() -> None:
    reference: Any = Doubled()
    same = compare(reference, Continuation([7, 1], [2, 4, 8], [-2.0, -4.5, -8.0], [-1.25]))
    assert (same.same, same.same_tokens, same.gap) == (True, 3, None)
    assert (same.logprob_differences, same.prompt_differences) == ([0.0, -0.5, 0.0], [-0.25])
    other = compare(reference, Continuation([7, 1], [2, 5, 8], [-2.0, -5.0, -8.0], None))
    assert (other.same, other.same_tokens, other.gap) == (False, 1, 0.5)
    found = summary([same, other])
    assert (found["same"], found["prompts"], found["tokens"]) == (1, 2, 6)
    assert found["gaps_where_they_part"] == [0.5]
    assert found["logprob_difference_max"] == 0.5
    assert found["prompt_perplexity_ratio"] == pytest.approx(1.2840, abs=1e-4)  # e ** 0.25
    assert same_beginning([], []) == 0


def test_the_reference_is_greedy_whatever_the_checkpoint_asks_for(tmp_path: Path) -> None:
    folder = save("llama", tmp_path)
    every_id = list(range(VOCAB_SIZE))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": every_id, "repetition_penalty": 9.0}))
    reference = Reference(folder)
    ids, gaps = reference.greedy([5, 6, 7], 12)
    assert len(ids) == len(gaps) == 12
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        rows = model(input_ids=torch.tensor([[5, 6, 7, *ids]])).logits[0, :-1].log_softmax(-1)
    assert rows[2:].argmax(-1).tolist() == ids
    best = rows[2:].topk(2).values
    assert gaps == pytest.approx((best[:, 0] - best[:, 1]).tolist(), abs=1e-4)
    assert reference.logprobs([5, 6, 7, *ids])[2:] == pytest.approx(best[:, 0].tolist(), abs=1e-4)


# -- whole runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(["--model=mock"]) as started:
        yield started


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "mmlu.jsonl"
    path.write_text("".join(json.dumps({**MMLU_ROW, "answer": index % 4}) + "\n" for index in range(8)))
    return path


def test_a_run_against_a_server(server: Server, data: Path, tmp_path: Path) -> None:
    """The mock says nothing of letters: all its answers are unclear, and none is right."""
    argv = [f"--base-url={server.url}/v1", f"--data={data}", "--num-samples=6", f"--json={tmp_path / 'found.json'}"]
    assert main(argv) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["model"], found["questions"], found["answered"], found["errors"]) == ("mock", 6, 6, 0)
    assert (found["right"], found["unclear"], found["truncated"]) == (0, 6, 6)
    assert found["subjects"]["geo"]["questions"] == len(found["each"]) == 6
    assert found["each"][0]["answer"]


def test_failed_requests_make_the_exit_code(server: Server, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--base-url={server.url}", f"--data={data}", "--max-tokens=1000000"]) == 1
    shown = capsys.readouterr().out
    assert "8 requests failed" in shown.replace("\n", " ")


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["--data=missing.jsonl"], "there is no file missing.jsonl"),
        (["--", "--model=mock"], "options of launch.py need --launch"),
        (["--dataset=parity", "--subjects=law"], "--data and --subjects are of no use"),
        (["--dataset=gsm8k", "--subjects=law"], "--subjects: only mmlu"),
        (["--reference=x"], "--reference is the parity check's"),
        (["--launch", "--base-url=http://x"], "--base-url: with --launch"),
        (["--dataset=parity", "--base-url=http://127.0.0.1:1"], "http://127.0.0.1:1"),
    ],
)
def test_what_is_wrong_is_one_line(argv: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    shown = capsys.readouterr().err
    assert error in shown
    assert len(shown.splitlines()) == 1
