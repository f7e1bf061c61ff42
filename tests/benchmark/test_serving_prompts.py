"""Prompts of the serving benchmark: exact lengths, fresh texts, and the columns of published datasets."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmark.datasets import DatasetError, Source, choose_file, read_rows
from benchmark.serving.prompts import Cutter, Lengths, PromptError, built_in, from_turns, read_turns, turn_of
from benchmark.serving.tokens import FileCounter, RoughCounter, TokenizerFileError, find_counter
from model_proc.files.model_files import LocalModel


class Words:
    """A token for each word, and a number of them for a chat template."""

    about = "as words"

    def __init__(self, template: int = 0) -> None:
        self.overhead = template
        self.asked = 0

    async def count(self, text: str) -> int:
        self.asked += 1
        return len(text.split()) + self.overhead


@pytest.mark.parametrize("tokens", [1, 7, 128, 1000])
@pytest.mark.parametrize("counter", [Words(), RoughCounter()])
async def test_built_in_prompts_have_exactly_the_length(tokens: int, counter: Any) -> None:
    requests = await built_in(5, Lengths(tokens, 3, 1.0), counter, "seed")
    assert [(request.prompt_tokens, request.output_tokens) for request in requests] == [(tokens, 3)] * 5
    assert [await counter.count(request.prompt) for request in requests] == [tokens] * 5


async def test_a_real_tokenizer_finds_them_exact_too(embedded_model: LocalModel) -> None:
    counter = FileCounter(str(embedded_model.folder))
    requests = await built_in(20, Lengths(200, 1, 1.0), counter, "seed")
    assert {await counter.count(request.prompt) for request in requests} == {200}


async def test_few_questions_make_a_prompt() -> None:
    counter = Words(template=20)
    await built_in(50, Lengths(500, 1, 1.0), counter, "seed")
    assert counter.asked < 50 * 8


async def test_no_two_levels_share_a_beginning() -> None:
    prompts = [
        request.prompt[:40]
        for level in ("level 0", "level 1", "warm-up")
        for request in await built_in(50, Lengths(50, 1, 1.0), Words(), level)
    ]
    assert len(set(prompts)) == 150


async def test_a_seed_gives_the_same_prompts() -> None:
    one, same, other = [await built_in(3, Lengths(20, 9, 0.5), Words(), seed) for seed in ("1", "1", "2")]
    assert one == same != other


async def test_randomness_draws_lengths() -> None:
    requests = await built_in(60, Lengths(40, 10, 0.5), Words(), "seed")
    assert {request.prompt_tokens for request in requests} <= set(range(20, 41))
    assert {request.output_tokens for request in requests} == set(range(5, 11))


async def test_a_length_below_the_chat_template_is_refused() -> None:
    with pytest.raises(PromptError, match=r"--input-len 8: chat template and special tokens alone are 31"):
        await built_in(1, Lengths(8, 1, 1.0), Words(template=31), "seed")


async def test_where_no_cut_is_right_the_nearest_one_is_taken() -> None:
    class Pairs(Words):
        async def count(self, text: str) -> int:
            return 2 * len(text.split())

    text, tokens = await Cutter(Pairs()).words(random.Random(0), 7)
    assert tokens in (6, 8)
    assert 2 * len(text.split()) == tokens


# -- datasets ----------------------------------------------------------------------------------------------------------

SHAREGPT = {
    "id": "a",
    "conversations": [{"from": "human", "value": "hi you"}, {"from": "gpt", "value": "hello to you"}],
}
WILDCHAT = {"conversation": [{"role": "user", "content": "tell me of the sea and of ships"}, {"role": "assistant"}]}


def test_the_columns_of_published_datasets_are_known() -> None:
    turn = turn_of(SHAREGPT)
    assert turn is not None
    assert (turn.prompt, turn.answer) == ("hi you", "hello to you")
    turn = turn_of(WILDCHAT)
    assert turn is not None
    assert turn.prompt == "tell me of the sea and of ships"
    turn = turn_of({"prompt": "go", "output_tokens": 7})
    assert turn is not None
    assert turn.output_tokens == 7
    turn = turn_of({"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]})
    assert turn is not None
    assert turn.prompt == "why?"


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]},
        {"conversations": [{"from": "human", "value": "x"}]},
        {"conversation": [{"role": "user", "content": "too short"}]},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"prompt": ""},
    ],
)
def test_rows_without_a_question_are_passed_over(row: dict[str, Any]) -> None:
    assert turn_of(row) is None


def test_unknown_columns_are_named() -> None:
    with pytest.raises(PromptError, match="columns answer, text; known are prompt"):
        turn_of({"text": "x", "answer": "y"})
    with pytest.raises(PromptError, match="no row has a question"):
        read_turns([{"prompt": ""}], 3, 0)


async def test_lengths_come_from_the_row_unless_they_are_given() -> None:
    turns = read_turns([SHAREGPT], 1, 0)
    [own] = await from_turns(iter(turns), 1, Lengths(None, None, 1.0), Words(), "s")
    assert (own.prompt, own.prompt_tokens, own.output_tokens) == ("hi you", 2, 3)
    [given] = await from_turns(iter(turns), 1, Lengths(5, 4, 1.0), Words(), "s")
    assert given.prompt.startswith("hi you The quick")
    assert (given.prompt_tokens, given.output_tokens) == (5, 4)
    with pytest.raises(DatasetError, match="--output-len"):
        await from_turns(iter(read_turns([WILDCHAT], 1, 0)), 1, Lengths(None, None, 1.0), Words(), "s")


ROWS = [{"question": "one", "answer": 1}, {"question": "two", "answer": 2}]


def write(path: Path) -> None:
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "\n")
        case ".json":
            path.write_text(json.dumps(ROWS))
        case ".csv":
            path.write_text("question,answer\none,1\ntwo,2\n")
        case ".parquet":
            pyarrow = pytest.importorskip("pyarrow")
            parquet = pytest.importorskip("pyarrow.parquet")
            parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_files_of_every_kind_are_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{suffix}"
    write(path)
    rows = [{**row, "answer": int(row["answer"])} for row in read_rows(Source(str(path)))]
    assert rows == ROWS


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.jsonl", "{}\n[1]\n", "line 2: expected an object, got list"),
        ("a.jsonl", "{]\n", "a.jsonl"),
        ("a.json", "{}", "expected a list of objects"),
        ("a.txt", "", r"\.txt is none of \.parquet"),
        ("a.parquet", "no parquet", "a.parquet"),
    ],
)
def test_files_that_are_wrong_are_named(name: str, content: str, error: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=error):
        list(read_rows(Source(str(tmp_path / name))))


def test_a_missing_file_and_a_hub_without_network_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetError, match=r"there is no file missing\.jsonl"):
        list(read_rows(Source("missing.jsonl")))
    monkeypatch.setattr(
        "huggingface_hub.HfApi.list_repo_files", lambda *_, **__: (_ for _ in ()).throw(OSError("down"))
    )
    with pytest.raises(DatasetError, match=r"owner/name from the Hugging Face hub \(down\): is there a network"):
        list(read_rows(Source("owner/name")))


def test_the_file_of_a_split_is_found() -> None:
    names = [
        "README.md", "all/dev-00000-of-00001.parquet", "all/test-00000-of-00001.parquet",
        "law/test-00000-of-00001.parquet",
        "data/train-00000-of-00002.parquet", "data/latest.jsonl",
    ]  # fmt: skip
    assert choose_file(names, "all", "test") == "all/test-00000-of-00001.parquet"
    assert choose_file(names, "", "train") == "data/train-00000-of-00002.parquet"
    assert choose_file(names, "law", "dev") is None
    assert choose_file(["a/ShareGPT_test.json"], "", "test") == "a/ShareGPT_test.json"


# -- who counts --------------------------------------------------------------------------------------------------------


class Pool:
    """A server whose /tokenize knows some questions."""

    def __init__(self, knows: str) -> None:
        self.knows = knows

    async def ask(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        assert (method, path) == ("POST", "/tokenize")
        if self.knows not in body:
            return 400, {"error": {"message": "no"}}
        if self.knows == "content":
            return 200, {"tokens": body["content"].split()}
        text = body["messages"][0]["content"] if self.knows == "messages" else body["prompt"]
        return 200, {"count": len(text.split()) + 10 * (self.knows == "messages"), "tokens": []}


@pytest.mark.parametrize(
    ("knows", "chat", "tokens"),
    [("messages", True, 12), ("prompt", True, 2), ("prompt", False, 2), ("content", False, 2)],
)
async def test_servers_are_asked_in_their_own_way(knows: str, chat: bool, tokens: int) -> None:
    counter = await find_counter(Pool(knows), "m", chat, "")  # type: ignore[arg-type]
    assert await counter.count("one two") == tokens
    assert counter.overhead == tokens - 2
    assert ("included" in counter.about, "without" in counter.about) == (tokens == 12, chat and tokens == 2)


async def test_a_server_that_does_not_count_is_guessed_and_it_is_said(tmp_path: Path) -> None:
    counter = await find_counter(Pool("nothing"), "m", False, "")  # type: ignore[arg-type]
    assert "ROUGHLY" in counter.about
    assert await counter.count("12345") == 2
    with pytest.raises(TokenizerFileError, match=r"no file .*tokenizer\.json"):
        await find_counter(Pool("prompt"), "m", False, str(tmp_path))  # type: ignore[arg-type]
