"""The detokenizer's state machine: what leaves for which tokens, and what it remembers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from detok_proc.decoder import Decoder
from detok_proc.detokenizer import Detokenizer
from detok_proc.sequence import Sequence
from detok_proc.vocabulary import MockVocabulary, TokenizerVocabulary
from ipc import mock_vocabulary
from ipc.codec import Ids
from ipc.messages import ABORT, ERROR, LENGTH, STOP, TIMEOUT, Head, Logprobs, Output, Refusal, Tail, Text, Tokens
from ipc.names import RID_BITS

OTHER_GATEWAY = 3 << RID_BITS


def head(rid: int, **output: object) -> Head:
    return Head(rid, Output(**output), 5, 0, 1, 2, 3, 4)  # type: ignore[arg-type]


def tail(rid: int, reason: int, count: int, finished: int = 99, **more: object) -> Tail:
    return Tail(rid, reason, count, 10, finished, **more)  # type: ignore[arg-type]


def step(
    heads: Iterable[Head] = (),
    rows: Iterable[tuple[int, int]] = (),
    tails: Iterable[Tail] = (),
    logprobs: Logprobs | None = None,
    time_ns: int = 10,
) -> Tokens:
    """A Tokens message; `rows` are pairs of rid and token id."""
    rows = list(rows)
    ids = Ids("i", [token_id for _, token_id in rows])
    return Tokens(list(heads), [rid for rid, _ in rows], ids, logprobs, list(tails), time_ns)


def only_text(detokenizer: Detokenizer, tokens: Tokens) -> Text:
    [text] = detokenizer.handle(tokens).texts.values()
    return text


@pytest.fixture
def detokenizer(byte_level: Tokenizer) -> Detokenizer:
    """Over a vocabulary in which the id of each byte is its value."""
    return Detokenizer(TokenizerVocabulary(byte_level))


class TestText:
    def test_head_rows_and_tail_of_one_step(self, detokenizer: Detokenizer) -> None:
        opened, ended = head(7), tail(7, LENGTH, 2)
        text = only_text(detokenizer, step([opened], [(7, 0x41), (7, 0x42)], [ended]))
        assert text == Text([opened], [7], ["AB"], [2], Ids("i", [0x41, 0x42]), None, [ended], 10)
        assert detokenizer.stats()["sequences"] == 0

    def test_half_a_character_waits_for_the_rest(self, detokenizer: Detokenizer) -> None:
        first, second = "é".encode()
        assert detokenizer.handle(step([head(7)], [(7, first)])).texts[0].rids == []
        text = only_text(detokenizer, step(rows=[(7, second)]))
        assert (text.texts, text.num_tokens, text.token_ids) == (["é"], [2], Ids("i", [first, second]))

    def test_nothing_is_sent_while_there_is_nothing_to_show(self, detokenizer: Detokenizer) -> None:
        detokenizer.handle(step([head(7)]))
        assert detokenizer.handle(step(rows=[(7, 0xE2)])).texts == {}

    def test_what_is_held_back_leaves_with_the_end(self, detokenizer: Detokenizer) -> None:
        detokenizer.handle(step([head(7, stop=["AB"])], [(7, 0x41)]))
        text = only_text(detokenizer, step(rows=[(7, 0xE2)], tails=[tail(7, LENGTH, 2)]))
        assert (text.texts, text.num_tokens) == (["A\N{REPLACEMENT CHARACTER}"], [2])

    def test_an_end_without_tokens_has_no_row(self, detokenizer: Detokenizer) -> None:
        refused = tail(7, ERROR, 0, refusal=Refusal(429, "overloaded_error", "the queue is full"))
        text = only_text(detokenizer, step([head(7)], tails=[refused]))
        assert (text.rids, text.tails) == ([], [refused])

    def test_tokens_without_text_are_accounted_for_at_the_end(self, embedded: Tokenizer) -> None:
        special = embedded.get_vocab()["<|endoftext|>"]
        detokenizer = Detokenizer(TokenizerVocabulary(embedded))
        detokenizer.handle(step([head(7)], [(7, special)]))
        text = only_text(detokenizer, step(tails=[tail(7, LENGTH, 1)]))
        assert (text.rids, text.texts, text.num_tokens, text.token_ids) == ([7], [""], [1], Ids("i", [special]))

    def test_special_tokens_are_shown_on_demand(self, embedded: Tokenizer) -> None:
        special = embedded.get_vocab()["<|endoftext|>"]
        detokenizer = Detokenizer(TokenizerVocabulary(embedded))
        text = only_text(detokenizer, step([head(7, skip_special_tokens=False)], [(7, special)]))
        assert text.texts == ["<|endoftext|>"]

    def test_each_gateway_gets_its_own_sequences(self, detokenizer: Detokenizer) -> None:
        there = OTHER_GATEWAY + 1
        texts = detokenizer.handle(step([head(1), head(there)], [(there, 0x41), (1, 0x42)])).texts
        assert set(texts) == {0, 3}
        assert (texts[0].rids, texts[0].texts) == ([1], ["B"])
        assert (texts[3].rids, texts[3].texts) == ([there], ["A"])

    def test_unknown_sequences_are_ignored(self, detokenizer: Detokenizer) -> None:
        out = detokenizer.handle(step(rows=[(7, 0x41)], tails=[tail(7, ABORT, 1)]))
        assert (out.texts, out.stopped) == ({}, [])
        assert detokenizer.stats()["sequences"] == 0


class TestEndTokens:
    def test_the_token_that_ended_it_is_counted_but_not_shown(self, detokenizer: Detokenizer) -> None:
        ended = tail(7, STOP, 2, stop_token=0x42)
        text = only_text(detokenizer, step([head(7)], [(7, 0x41), (7, 0x42)], [ended]))
        assert (text.texts, text.num_tokens, text.token_ids) == (["A"], [2], Ids("i", [0x41, 0x42]))

    def test_it_is_shown_on_demand(self, detokenizer: Detokenizer) -> None:
        ended = tail(7, STOP, 2, stop_token=0x42)
        text = only_text(detokenizer, step([head(7, include_stop=True)], [(7, 0x41), (7, 0x42)], [ended]))
        assert text.texts == ["AB"]

    def test_only_the_sequence_that_it_ends_hides_it(self, detokenizer: Detokenizer) -> None:
        rows = [(7, 0x42), (8, 0x42)]
        text = only_text(detokenizer, step([head(7), head(8)], rows, [tail(7, STOP, 1, stop_token=0x42)]))
        assert dict(zip(text.rids, text.texts, strict=True)) == {7: "", 8: "B"}

    def test_the_last_word_of_the_mock_is_shown(self) -> None:
        detokenizer = Detokenizer(MockVocabulary())
        ended = tail(7, STOP, 1, stop_token=mock_vocabulary.EOS_ID)
        text = only_text(detokenizer, step([head(7)], [(7, mock_vocabulary.EOS_ID)], [ended]))
        assert text.texts == [mock_vocabulary.WORDS[-1]]

    def test_a_stop_token_of_the_mock_is_not(self) -> None:
        detokenizer = Detokenizer(MockVocabulary())
        text = only_text(detokenizer, step([head(7)], [(7, 3)], [tail(7, STOP, 1, stop_token=3)]))
        assert text.texts == [""]


class TestStopStrings:
    """The text ends at once, the sequence with the scheduler's Tail."""

    def test_a_stop_string_over_several_steps(self, detokenizer: Detokenizer) -> None:
        detokenizer.handle(step([head(7, stop=["BC"])], [(7, 0x41)], time_ns=10))
        assert detokenizer.handle(step(rows=[(7, 0x42)])).texts == {}
        out = detokenizer.handle(step(rows=[(7, 0x43), (7, 0x44)], time_ns=30))
        assert (out.stopped, out.texts) == ([7], {})
        ended = tail(7, STOP, 4, preemptions=2, first_step=5, started_ns=6, execution_ns=7, batch_size=1.5)
        text = only_text(detokenizer, step(tails=[ended], time_ns=40))
        assert text.tails == [replace(ended, completion_tokens=3, finished_ns=30, stop_string="BC")]
        assert (text.texts, text.num_tokens, text.token_ids) == ([""], [2], Ids("i", [0x42, 0x43]))
        assert detokenizer.stats()["sequences"] == 0

    def test_the_text_before_it_leaves_with_its_step(self, detokenizer: Detokenizer) -> None:
        rows = [(7, 0x41), (8, 0x41), (7, 0x42)]
        out = detokenizer.handle(step([head(7, stop=["B"]), head(8)], rows))
        assert (out.texts[0].rids, out.texts[0].texts, out.texts[0].num_tokens) == ([7, 8], ["A", "A"], [2, 1])
        assert (out.texts[0].tails, out.stopped) == ([], [7])
        assert detokenizer.stats()["sequences"] == 2
        text = only_text(detokenizer, step(tails=[tail(7, STOP, 2)]))
        assert (text.rids, [item.stop_string for item in text.tails]) == ([], ["B"])

    def test_what_comes_after_it_is_ignored(self, detokenizer: Detokenizer) -> None:
        detokenizer.handle(step([head(7, stop=["A"])], [(7, 0x41)]))
        out = detokenizer.handle(step(rows=[(7, 0x42), (7, 0x41)]))
        assert (out.texts, out.stopped) == ({}, [])
        text = only_text(detokenizer, step(rows=[(7, 0x43)], tails=[tail(7, STOP, 4)]))
        assert (text.texts, text.token_ids) == ([""], Ids("i", [0x41]))
        out = detokenizer.handle(step(rows=[(7, 0x42)], tails=[tail(7, STOP, 5)]))
        assert (out.texts, out.stopped) == ({}, [])

    @pytest.mark.parametrize("later", [False, True], ids=["same step", "later step"])
    @pytest.mark.parametrize("reason", [LENGTH, STOP, ABORT, ERROR, TIMEOUT])
    def test_it_wins_over_another_end_that_was_on_its_way(
        self, detokenizer: Detokenizer, reason: int, later: bool
    ) -> None:
        refusal = Refusal(504, "timeout_error", "too late") if reason in (ERROR, TIMEOUT) else None
        ended = tail(7, reason, 3, stop_token=2 if reason == STOP else None, refusal=refusal)
        rows = [(7, 0x41), (7, 0x42)]
        outputs = [detokenizer.handle(step([head(7, stop=["B"])], rows, [] if later else [ended]))]
        if later:
            outputs.append(detokenizer.handle(step(rows=[(7, 0x43)], tails=[ended])))
        assert [item for out in outputs for item in out.stopped] == ([7] if later else [])
        texts = [out.texts[0] for out in outputs]
        assert [piece for text in texts for piece in text.texts] == ["A"]
        assert [item for text in texts for item in text.tails] == [Tail(7, STOP, 2, 10, 10, stop_string="B")]

    def test_it_is_kept_on_demand(self, detokenizer: Detokenizer) -> None:
        text = only_text(detokenizer, step([head(7, stop=["B"], include_stop=True)], [(7, 0x41), (7, 0x42)]))
        assert text.texts == ["AB"]

    def test_the_last_text_can_complete_it(self, detokenizer: Detokenizer) -> None:
        detokenizer.handle(step([head(7, stop=["\N{REPLACEMENT CHARACTER}"])], [(7, 0xE2)]))
        out = detokenizer.handle(step(tails=[tail(7, LENGTH, 1)]))
        assert out.stopped == [], "the scheduler knows already that it is over"
        assert (out.texts[0].texts, out.texts[0].tails[0].reason) == ([""], STOP)
        assert detokenizer.stats()["sequences"] == 0

    def test_the_text_of_an_end_token_completes_nothing(self, detokenizer: Detokenizer) -> None:
        ended = tail(7, STOP, 2, stop_token=0x42)
        out = detokenizer.handle(step([head(7, stop=["AB"])], [(7, 0x41), (7, 0x42)], [ended]))
        assert (out.stopped, out.texts[0].texts, out.texts[0].tails) == ([], ["A"], [ended])


def rows_of(*rows: list[tuple[int, float]]) -> Logprobs:
    """Log-probabilities as the model sends them: a row a token, a pair for each entry."""
    entries = [entry for row in rows for entry in row]
    ids = Ids("i", [token_id for token_id, _ in entries])
    return Logprobs([len(row) for row in rows], ids, [value for _, value in entries], [])


class TestLogprobs:
    def test_pieces_are_filled_in(self, detokenizer: Detokenizer) -> None:
        reported = rows_of([(0x41, -0.1), (0xE2, -2.0)])
        text = only_text(detokenizer, step([head(7)], [(7, 0x41)], logprobs=reported))
        assert text.logprobs == Logprobs([2], Ids("i", [0x41, 0xE2]), [-0.1, -2.0], [b"A", b"\xe2"])

    def test_rows_wait_with_their_tokens(self, detokenizer: Detokenizer) -> None:
        first, second = "é".encode()
        assert detokenizer.handle(step([head(7)], [(7, first)], logprobs=rows_of([(first, -1.0)]))).texts[0].rids == []
        text = only_text(detokenizer, step(rows=[(7, second)], logprobs=rows_of([(second, -2.0)])))
        assert text.logprobs == Logprobs([1, 1], Ids("i", [first, second]), [-1.0, -2.0], [b"\xc3", b"\xa9"])

    def test_tokens_that_did_not_ask_have_empty_rows(self, detokenizer: Detokenizer) -> None:
        rows = [(1, 0x41), (2, 0x42), (3, 0x43)]
        reported = rows_of([], [(0x42, -1.0)], [])
        text = only_text(detokenizer, step([head(1), head(2), head(3)], rows, logprobs=reported))
        assert text.logprobs == Logprobs([0, 1, 0], Ids("i", [0x42]), [-1.0], [b"B"])

    def test_no_rows_when_nobody_asked(self, detokenizer: Detokenizer) -> None:
        text = only_text(detokenizer, step([head(1)], [(1, 0x41)], logprobs=rows_of([])))
        assert text.logprobs is None

    def test_rows_of_other_gateways_and_of_ended_sequences_are_left_out(self, detokenizer: Detokenizer) -> None:
        there = OTHER_GATEWAY + 1
        rows = [(9, 0x40), (there, 0x41), (1, 0x42)]
        reported = rows_of([(0x40, -1.0)], [(0x41, -2.0)], [(0x42, -3.0)])
        texts = detokenizer.handle(step([head(1), head(there)], rows, logprobs=reported)).texts
        assert texts[0].logprobs == Logprobs([1], Ids("i", [0x42]), [-3.0], [b"B"])
        assert texts[3].logprobs == Logprobs([1], Ids("i", [0x41]), [-2.0], [b"A"])

    def test_they_are_cut_at_the_stop_string(self, detokenizer: Detokenizer) -> None:
        rows = [(7, 0x41), (7, 0x42), (7, 0x43)]
        reported = rows_of(*([(token_id, -1.0)] for _, token_id in rows))
        text = only_text(detokenizer, step([head(7, stop=["B"])], rows, logprobs=reported))
        assert text.logprobs is not None
        assert text.logprobs.pieces == [b"A", b"B"]


class _FailingVocabulary(MockVocabulary):
    """Raises for one id."""

    BAD = 5

    def new_decoder(self, skip_special_tokens: bool) -> Decoder:
        decoder = super().new_decoder(skip_special_tokens)

        class Failing:
            def push(self, token_id: int) -> str:
                if token_id == _FailingVocabulary.BAD:
                    raise RuntimeError("cannot decode this")
                return decoder.push(token_id)

            def flush(self) -> str:
                return decoder.flush()

        return Failing()


def test_a_sequence_that_cannot_be_decoded_ends_alone() -> None:
    detokenizer = Detokenizer(_FailingVocabulary())
    detokenizer.handle(step([head(1), head(2)], [(1, 2)]))
    out = detokenizer.handle(step(rows=[(1, 3), (1, _FailingVocabulary.BAD), (2, 4), (1, 6)], time_ns=30))
    assert out.stopped == [1]
    assert dict(zip(out.texts[0].rids, out.texts[0].num_tokens, strict=True)) == {1: 2, 2: 1}
    assert only_text(detokenizer, step(rows=[(1, 3), (2, 4)])).rids == [2]
    text = only_text(detokenizer, step(tails=[tail(1, STOP, 5, preemptions=1)]))
    refusal = text.tails[0].refusal
    assert text.tails == [tail(1, ERROR, 3, preemptions=1, refusal=refusal, finished=30)]
    assert refusal is not None
    assert (refusal.status, refusal.kind) == (500, "server_error")
    assert detokenizer.stats() == {"sequences": 1, "tokens": 7, "failed": 1}


def test_a_last_text_that_cannot_be_made_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    detokenizer = Detokenizer(MockVocabulary())
    detokenizer.handle(step([head(1)], [(1, 3)]))

    def fail(sequence: Sequence) -> None:
        raise RuntimeError("cannot end this")

    monkeypatch.setattr(Sequence, "flush", fail)
    out = detokenizer.handle(step(tails=[tail(1, LENGTH, 1)]))
    assert out.stopped == []
    assert [item.reason for item in out.texts[0].tails] == [ERROR]
    assert detokenizer.stats() == {"sequences": 0, "tokens": 1, "failed": 1}


def test_stop_strings_that_make_no_sense_end_the_sequence_alone() -> None:
    detokenizer = Detokenizer(MockVocabulary())
    out = detokenizer.handle(step([head(1, stop=[""]), head(2)], [(1, 3), (2, 3)]))
    assert (out.stopped, out.texts[0].rids) == ([1], [2])
    text = only_text(detokenizer, step(tails=[tail(1, STOP, 1)]))
    assert [(item.rid, item.reason, item.completion_tokens) for item in text.tails] == [(1, ERROR, 0)]


@given(
    st.lists(st.sampled_from([*b"AB", *"é".encode(), 0xE2]), min_size=1, max_size=20),
    st.lists(st.text(alphabet="ABé", min_size=1, max_size=3), max_size=2),
    st.sets(st.integers(1, 19)),
    st.integers(0, 3),
    st.sampled_from([LENGTH, ABORT, TIMEOUT]),
)
def test_every_token_is_accounted_for_once(
    byte_level: Tokenizer, ids: list[int], stops: list[str], cuts: set[int], delay: int, reason: int
) -> None:
    """However the tokens are spread over steps: the texts are the output up to its end, the counts add up.

    The scheduler answers a StopHit after `delay` more steps, unless the sequence's own end was on its way by then.
    """
    detokenizer = Detokenizer(TokenizerVocabulary(byte_level))
    outputs = [detokenizer.handle(step([head(7, stop=stops)]))]
    borders = [0, *sorted(cut for cut in cuts if cut < len(ids)), len(ids)]
    hits: list[int] = []
    for number, (start, end) in enumerate(pairwise(borders)):
        answered = bool(hits) and number - hits[0] > delay
        ends = []
        if answered or end == len(ids):
            ends = [tail(7, STOP if answered else reason, end)]
        rows = [(7, token_id) for token_id in ids[start:end]]
        outputs.append(detokenizer.handle(step(rows=rows, tails=ends)))
        hits += [number] * len(outputs[-1].stopped)
        if answered:
            break
    assert len(hits) <= 1
    texts = [out.texts[0] for out in outputs if out.texts]
    tails = [item for text in texts for item in text.tails]
    assert len(tails) == 1
    whole = byte_level.decode(ids)
    first = min((whole.find(stop) for stop in stops if stop in whole), default=len(whole))
    shown = "".join(piece for text in texts for piece in text.texts)
    assert tails[0].reason == STOP if hits else tails[0].reason in (STOP, reason)
    assert shown.startswith(whole[:first]) if tails[0].reason == STOP else shown == whole
    assert not any(stop in shown for stop in stops)
    assert sum(count for text in texts for count in text.num_tokens) == tails[0].completion_tokens
    assert [token_id for text in texts for token_id in text.token_ids] == ids[: tails[0].completion_tokens]
    assert all(len(text.rids) <= 1 for text in texts)
    assert detokenizer.stats()["sequences"] == 0


def test_a_sequence_that_nobody_reads_along_is_sent_once_at_its_end(detokenizer: Detokenizer) -> None:
    first = only_text(detokenizer, step([head(7, whole=True, stop=["D"])], [(7, 0x41)]))
    assert (len(first.heads), first.rids) == (1, [])
    assert not detokenizer.handle(step((), [(7, 0x42)])).texts
    stopped = detokenizer.handle(step((), [(7, 0x43), (7, 0x44)]))
    assert (stopped.stopped, dict(stopped.texts)) == ([7], {})
    last = only_text(detokenizer, step((), (), [tail(7, STOP, 4)]))
    assert (last.rids, last.texts, last.num_tokens) == ([7], ["ABC"], [4])
    assert last.tails[0].stop_string == "D"
