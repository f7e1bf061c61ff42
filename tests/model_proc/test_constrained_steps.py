"""Constrained sequences of the real model under the real scheduler, beside free ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from llguidance import LLMatcher
from tokenizers import Tokenizer

from ipc.codec import Ids
from ipc.config import ModelConfig, section
from ipc.messages import ERROR, LENGTH, STOP, Sampling
from ipc.options import complete
from model_proc.constraints import Constraint
from model_proc.describe import describe
from model_proc.files.model_files import LocalModel
from model_proc.torch_runner import TorchRunner
from tests.in_process import Outcome, generate

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["name", "sizes"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
GRAMMAR = LLMatcher.grammar_from_json_schema(json.dumps(SCHEMA))
WORD = LLMatcher.grammar_from_regex("(yes|no|maybe)")
DRAWN = Sampling(temperature=1.0, max_tokens=64)


class Model:
    def __init__(self, model: LocalModel) -> None:
        memory = {"kv_cache_memory_bytes": 1 << 28, "max_num_seqs": 16}
        options = complete({"dtype": "float32", "device": "cpu", "num_threads": 1, **memory})
        config = section(ModelConfig, options)
        self.runner = TorchRunner(config, describe(model, config), lambda *_: None)
        self.ready = self.runner.load()
        self.tokenizer = Tokenizer.from_file(str(model.tokenizer_folder / "tokenizer.json"))

    def run(self, texts: list[str], sampling: list[Sampling], **options: Any) -> list[Outcome]:
        prompts = [self.tokenizer.encode(text).ids for text in texts]
        outcomes, scheduler = generate(self.runner, self.ready, prompts, sampling, **options)
        assert scheduler.residents.pool.num_in_use == 0
        assert scheduler.grammars.num_in_use == 0
        return outcomes

    def text(self, outcome: Outcome) -> str:
        return str(self.tokenizer.decode(outcome.token_ids, skip_special_tokens=True))


@pytest.fixture(scope="module")
def model(embedded_model: LocalModel) -> Iterator[Model]:
    threads = torch.get_num_threads()
    yield Model(embedded_model)
    torch.set_grad_enabled(True)
    torch.set_num_threads(threads)


PROMPTS = ["A product as JSON: ", "Is it so? ", "Once upon a time", "The capital of France"]


def seeded(count: int, **fields: Any) -> list[Sampling]:
    return [replace(DRAWN, seed=100 + index, **fields) for index in range(count)]


def test_free_sequences_do_not_notice(model: Model) -> None:
    sampling = seeded(4, max_tokens=24)
    free = model.run(PROMPTS[2:], sampling[2:])
    mixed = model.run(PROMPTS, sampling, grammars=[GRAMMAR, WORD, "", ""])
    assert [outcome.token_ids for outcome in mixed[2:]] == [outcome.token_ids for outcome in free]
    assert model.text(mixed[1]) in ("yes", "no", "maybe")
    assert mixed[1].reason == STOP


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pipeline_depth": 1},
        {"max_num_batched_tokens": 5},
        {"num_blocks": 7, "max_num_seqs": 4},  # preempts
        {"max_num_seqs": 1},
    ],
)
def test_however_the_work_is_cut_the_tokens_are_the_same(model: Model, options: dict[str, Any]) -> None:
    texts, sampling = [PROMPTS[0]] * 6, seeded(6)
    alone = [model.run([text], [params], grammars=[GRAMMAR])[0] for text, params in zip(texts, sampling, strict=True)]
    outcomes = model.run(texts, sampling, grammars=[GRAMMAR] * 6, **options)
    assert [outcome.token_ids for outcome in outcomes] == [outcome.token_ids for outcome in alone]
    for outcome in outcomes:
        assert outcome.reason == STOP
        value = json.loads(model.text(outcome))
        assert set(value) == {"name", "sizes"}


def test_with_everything_else_that_changes_what_is_sampled(model: Model) -> None:
    digits = [model.tokenizer.encode(str(digit)).ids[0] for digit in range(10)]
    sampling = [
        replace(DRAWN, temperature=0.0),
        replace(DRAWN, repetition_penalty=1.5, presence_penalty=1.0, frequency_penalty=2.0),
        replace(DRAWN, bias_ids=Ids("i", digits), bias_values=[-100.0] * 10),
        replace(DRAWN, top_k=3, top_p=0.5, min_p=0.1),
        replace(DRAWN, logprobs=2),
        replace(DRAWN, min_tokens=60),
        replace(DRAWN, ignore_eos=True),
        replace(DRAWN, stop_token_ids=Ids("i", digits)),
    ]
    outcomes = model.run([PROMPTS[0]] * len(sampling), sampling, grammars=[GRAMMAR] * len(sampling))
    for outcome in outcomes[:-1]:
        assert outcome.reason == STOP
        json.loads(model.text(outcome))
    assert len(outcomes[4].logprobs[0]) == 3
    assert outcomes[-1].token_ids[-1] in [*digits, *model.ready.eos_token_ids]


def test_bad_words_and_allowed_tokens(model: Model) -> None:
    greedy = replace(DRAWN, temperature=0.0, max_tokens=8)
    [free] = model.run(PROMPTS[3:], [greedy])
    first, pair = free.token_ids[0], free.token_ids[1:3]
    sampling = [
        replace(greedy, bad_ids=Ids("i", [first]), bad_counts=[1]),
        replace(greedy, bad_ids=Ids("i", pair), bad_counts=[2]),
        replace(greedy, allowed_ids=Ids("i", [first, pair[0]])),
    ]
    without, unpaired, chosen = [outcome.token_ids for outcome in model.run(PROMPTS[3:] * 3, sampling)]
    assert first not in without
    assert unpaired[:2] == free.token_ids[:2]
    assert unpaired[2] != free.token_ids[2]
    assert all(pair != unpaired[place : place + 2] for place in range(len(unpaired)))
    assert set(chosen) <= {first, pair[0]}
    assert len(chosen) == 8


def test_an_error_of_one_grammar_ends_one_request(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = seeded(3, max_tokens=16)
    expected = model.run(PROMPTS[1:], sampling, grammars=[WORD, "", ""])
    original = Constraint.narrow

    def fail(self: Constraint, row: Any, num_output: int) -> None:
        original(self, row, num_output)
        if num_output == 4 and self.needs_tokens:
            self._fail()

    monkeypatch.setattr(Constraint, "narrow", fail)
    outcomes = model.run([PROMPTS[0], *PROMPTS[1:]], [DRAWN, *sampling], grammars=[GRAMMAR, WORD, "", ""])
    assert outcomes[0].reason == ERROR
    assert outcomes[0].refusal is not None
    assert (outcomes[0].refusal.status, "grammar" in outcomes[0].refusal.message) == (500, True)
    assert [outcome.token_ids for outcome in outcomes[1:]] == [outcome.token_ids for outcome in expected]


def test_a_grammar_that_never_ends_runs_to_its_length(model: Model) -> None:
    endless = LLMatcher.grammar_from_regex("[a-z]{100,}")
    [outcome] = model.run(PROMPTS[:1], [replace(DRAWN, max_tokens=12)], grammars=[endless])
    assert outcome.reason == LENGTH
    assert model.text(outcome).islower()
