"""What a sequence may sample next: grammars, lists of tokens and bad words, and which of them give way."""

from __future__ import annotations

import json
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch
from llguidance import LLExecutor, LLMatcher, LLTokenizer

from ipc.codec import Ids
from ipc.messages import Admit, Prepare, Prepared, Sampling
from model_proc.constraints import Bits, Constraint, Constraints, bits_of, fill
from model_proc.files.model_files import LocalModel
from model_proc.grammars import Grammars
from model_proc.masks import make_mask

VOCABULARY = 49153  # one more than there are: a padded row of the matrix that makes logits
WIDTH = -(-VOCABULARY // 32)
EOS = [2, 0]
EXECUTOR = LLExecutor(2)


@pytest.fixture(scope="module")
def tokenizer(embedded_model: LocalModel) -> LLTokenizer:
    return LLTokenizer(str(embedded_model.tokenizer_folder / "tokenizer.json"), VOCABULARY, EOS)


def constraint(matcher: LLMatcher | None = None, output: list[int] | None = None, **sampling: Any) -> Constraint:
    everything = bits_of(np.arange(VOCABULARY), WIDTH)
    return Constraint(Sampling(**sampling), matcher, Ids("i", output or []), everything, EOS)


def allowed(each: Constraint, num_output: int = 0) -> list[int]:
    bits: Bits = np.zeros((1, WIDTH), dtype=np.int32)
    fill(EXECUTOR, [(0, each)], np.array([num_output]), bits)
    return ids_in(bits[0])


def ids_in(row: Bits) -> list[int]:
    return [int(place) for place in np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))]


class TestGrammar:
    @pytest.fixture
    def one(self, tokenizer: LLTokenizer) -> LLMatcher:
        """{"a":1} and nothing else."""
        schema = {"const": {"a": 1}, "x-guidance": {"whitespace_flexible": False}}
        return LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps(schema)))

    def test_complete_allows_the_end_alone(self, one: LLMatcher, tokenizer: LLTokenizer) -> None:
        each = constraint(one)
        tokens = tokenizer.tokenize_str('{"a":1}')
        for place, token in enumerate(tokens):
            assert token in allowed(each, place)
            assert not set(EOS) & set(allowed(each, place))
            each.accept(token)
        assert allowed(each, len(tokens)) == sorted(EOS)
        each.accept(EOS[0])
        # A step that was planned before anybody knew may still sample.
        assert allowed(each, len(tokens) + 1) == sorted(EOS)
        assert each.error == ""

    def test_a_preempted_one_goes_on_where_it_was(self, one: LLMatcher, tokenizer: LLTokenizer) -> None:
        tokens = tokenizer.tokenize_str('{"a":1}')
        fresh, again = constraint(one.deep_copy()), constraint(one.deep_copy(), tokens[:3])
        for token in tokens[:3]:
            fresh.accept(token)
        assert allowed(again, 3) == allowed(fresh, 3)

    def test_min_tokens_and_ignore_eos_hold_while_it_can_go_on(self, tokenizer: LLTokenizer) -> None:
        grammar = LLMatcher.grammar_from_regex("a{1,3}")
        for sampling in ({"min_tokens": 2}, {"ignore_eos": True}):
            each = constraint(LLMatcher(tokenizer, grammar), **sampling)
            a = tokenizer.tokenize_str("a")[0]
            each.accept(a)
            assert not set(EOS) & set(allowed(each, 1))
            each.accept(a)
            assert (EOS[0] in allowed(each, 2)) == ("min_tokens" in sampling)
            each.accept(a)
            assert allowed(each, 3) == sorted(EOS)
        each = constraint(LLMatcher(tokenizer, grammar), [a, a, a], min_tokens=10)
        assert allowed(each, 3) == sorted(EOS), "the grammar is complete before min_tokens are there"

    def test_bad_words_give_way_to_it(self, one: LLMatcher, tokenizer: LLTokenizer) -> None:
        tokens = allowed(constraint(one.deep_copy()))
        assert allowed(constraint(one, bad_ids=Ids("i", tokens), bad_counts=[1] * len(tokens))) == tokens

    def test_a_token_that_it_forbids_ends_it_with_an_error(self, one: LLMatcher) -> None:
        each = constraint(one)
        each.accept(50)
        assert "grammar" in each.error
        assert len(allowed(each, 1)) == VOCABULARY


def test_many_at_once_are_what_each_is_alone(tokenizer: LLTokenizer) -> None:
    def three() -> list[tuple[int, Constraint]]:
        regexes = (LLMatcher(tokenizer, LLMatcher.grammar_from_regex(each)) for each in ("a", "[bc]+"))
        followers = [constraint(each) for each in regexes]
        return list(enumerate((followers[0], constraint(allowed_ids=Ids("i", [4])), followers[1])))

    together: Bits = np.zeros((3, WIDTH), dtype=np.int32)
    fill(EXECUTOR, three(), np.zeros(3, dtype=np.int64), together)
    assert [ids_in(row) for row in together] == [allowed(each) for _, each in three()]


class TestWords:
    def test_allowed_tokens(self) -> None:
        each = constraint(allowed_ids=Ids("i", [7, 3, VOCABULARY - 1]))
        assert not each.needs_tokens
        assert allowed(each) == [3, 7, VOCABULARY - 1]

    def test_min_tokens_give_way_to_the_list(self) -> None:
        each = constraint(allowed_ids=Ids("i", [2, 9]), min_tokens=3, stop_token_ids=Ids("i", [9]))
        assert allowed(each) == [2, 9]
        each = constraint(allowed_ids=Ids("i", [2, 9]), min_tokens=3)
        assert allowed(each, 2) == [9]
        assert allowed(each, 3) == [2, 9]

    def test_bad_words_of_one_token_and_of_several(self) -> None:
        ids = Ids("i", [5, 10, 11, 12, 10, 13])
        each = constraint(bad_ids=ids, bad_counts=[1, 3, 2])
        assert each.needs_tokens
        forbidden = [set(range(VOCABULARY)) - set(allowed(each))]
        for token in (10, 11, 10):
            each.accept(token)
            forbidden.append(set(range(VOCABULARY)) - set(allowed(each)))
        assert forbidden == [{5}, {5, 13}, {5, 12}, {5, 13}]

    def test_the_words_so_far_count_after_a_preemption(self) -> None:
        each = constraint(output=[10, 11], bad_ids=Ids("i", [10, 11, 12]), bad_counts=[3])
        assert set(range(VOCABULARY)) - set(allowed(each)) == {12}


def test_a_mask_reaches_the_rows_that_it_is_for() -> None:
    logits = torch.randn(4, VOCABULARY)
    before = logits.clone()
    rows = [(1, constraint(allowed_ids=Ids("i", [4]))), (3, constraint(bad_ids=Ids("i", [6]), bad_counts=[1]))]
    make_mask(EXECUTOR, rows, np.zeros(4, dtype=np.int64), torch.device("cpu")).apply(logits)
    assert torch.equal(logits[[0, 2]], before[[0, 2]])
    assert torch.isfinite(logits[1]).nonzero().flatten().tolist() == [4]
    assert torch.isinf(logits[3]).nonzero().flatten().tolist() == [6]


def admit(slot: int, grammar: int = -1, **sampling: Any) -> Admit:
    return Admit(slot, slot, Ids("i", [1, 2]), 2, 0, [], Sampling(**sampling), grammar)


def test_grammars_are_compiled_kept_and_forgotten(embedded_model: LocalModel) -> None:
    grammars = Grammars(embedded_model.tokenizer_folder / "tokenizer.json", VOCABULARY, EOS)
    answers: SimpleQueue[Prepared] = SimpleQueue()
    good, bad = LLMatcher.grammar_from_regex("a"), LLMatcher.grammar_from_regex("(a")
    for number, text in enumerate((good, bad, good)):
        grammars.prepare(Prepare(number, text, [0] if number == 2 else []), answers.put)
    assert answers.get() == Prepared(0, "")
    refused = answers.get()
    assert (refused.grammar, "unclosed group" in refused.error) == (1, True)
    assert answers.get() == Prepared(2, "")
    constraints = Constraints(grammars, EOS, VOCABULARY)
    constraints.admit(admit(5, grammar=0))  # over before it began
    assert constraints.of_rows([5]) == []
    follower = admit(5, grammar=2, min_tokens=4)
    constraints.admit(follower)
    constraints.admit(admit(6))
    assert [row for row, _ in constraints.of_rows([6, 5])] == [1]
    assert follower.sampling.min_tokens == 0, "it is the constraint's to keep to"
    constraints.drop(5)
    constraints.drop(6)
    assert constraints.of_rows([6, 5]) == []


@pytest.mark.parametrize("eos", [[], EOS])
def test_a_model_that_cannot_follow_grammars_says_why(tmp_path: Path, eos: list[int]) -> None:
    grammars = Grammars(tmp_path / "tokenizer.json", VOCABULARY, eos)
    answers: SimpleQueue[Prepared] = SimpleQueue()
    grammars.prepare(Prepare(0, LLMatcher.grammar_from_regex("a"), []), answers.put)
    assert ("vocabulary" if eos else "end of sequence") in answers.get().error
