"""Requests and look-ups: what becomes of them, and why they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from ipc import mock_vocabulary
from ipc.codec import Ids, Map
from ipc.messages import Detokenize, Generate, LookUp, Output, Sampling, Submit, Tokenize
from tokenizer_proc.chat_template import MOCK_TEMPLATE, ChatTemplate, NoTemplate
from tokenizer_proc.encoder import MockEncoder, TokenizerEncoder
from tokenizer_proc.preparer import Preparer

CONTEXT = 100
VOCABULARY = 49152
HELLO: Map = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def preparer(embedded_folder: Path) -> Preparer:
    source = (embedded_folder / "chat_template.jinja").read_text()
    encoder = TokenizerEncoder(embedded_folder / "tokenizer.json")
    return Preparer(encoder, ChatTemplate(source, {"bos_token": "<|im_start|>"}), CONTEXT, VOCABULARY)


@pytest.fixture(scope="module")
def mock() -> Preparer:
    return Preparer(MockEncoder(), ChatTemplate(MOCK_TEMPLATE, {}), CONTEXT, mock_vocabulary.VOCAB_SIZE)


def generate(
    text: str | None = None, ids: list[int] | None = None, chat: Map | None = None, **sampling: Any
) -> Generate:
    prompt_ids = None if ids is None else Ids("i", ids)
    output = Output(stop=["x"], include_stop=True)
    return Generate(8, "name", 3, text, prompt_ids, chat, Sampling(**sampling), output, 2, "salt", 1000, "who", 5000)


def submitted(preparer: Preparer, request: Generate) -> Submit:
    answer = preparer.answer(request)
    assert isinstance(answer, Submit)
    return answer


def looked_up(preparer: Preparer, question: Tokenize | Detokenize) -> LookUp:
    answer = preparer.answer(question)
    assert isinstance(answer, LookUp)
    return answer


def assert_refused(answer: Submit | LookUp, param: str, *said: str, status: int = 400) -> None:
    assert answer.refusal is not None
    assert (answer.refusal.status, answer.refusal.param) == (status, param)
    assert not answer.token_ids
    for part in said:
        assert part in answer.refusal.message


class TestPrompts:
    def test_everything_else_goes_on_as_it_is(self, preparer: Preparer) -> None:
        request = generate(text="Hello", temperature=0.5, max_tokens=7)
        answer = submitted(preparer, request)
        assert (answer.rid, answer.request_id, answer.n) == (8, "name", 3)
        assert (answer.sampling, answer.output) == (request.sampling, request.output)
        assert (answer.priority, answer.cache_salt, answer.received_ns) == (2, "salt", 1000)
        assert (answer.tenant, answer.deadline_ns) == ("who", 5000)
        assert answer.tokenized_ns > 0
        assert answer.refusal is None

    def test_text(self, preparer: Preparer, embedded: Tokenizer) -> None:
        text = "Hello <|im_end|>"
        answer = submitted(preparer, generate(text=text))
        assert answer.token_ids.tolist() == embedded.encode(text).ids
        assert embedded.get_vocab()["<|im_end|>"] in answer.token_ids

    def test_ids(self, preparer: Preparer) -> None:
        assert submitted(preparer, generate(ids=[5, 0, VOCABULARY - 1])).token_ids.tolist() == [5, 0, VOCABULARY - 1]

    def test_chat(self, preparer: Preparer, embedded: Tokenizer) -> None:
        chat = {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "a<|im_end|>b"}]}
        ids = submitted(preparer, generate(chat=chat)).token_ids.tolist()
        assert embedded.decode(ids, skip_special_tokens=False) == (
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>b<|im_end|>\n<|im_start|>assistant\n"
        )
        assert ids.count(embedded.get_vocab()["<|im_end|>"]) == 2

    def test_a_chat_has_one_bos(self, sentencepiece_folder: Path) -> None:
        """The tokenizer would add one, but the template has written it."""
        encoder = TokenizerEncoder(sentencepiece_folder / "tokenizer.json")
        template = ChatTemplate("{{ bos_token }}{{ messages[0].content }}", {"bos_token": "<s>"})
        preparer = Preparer(encoder, template, CONTEXT, 400)
        chat = {"messages": [{"role": "user", "content": "hi"}]}
        assert submitted(preparer, generate(chat=chat)).token_ids.tolist().count(1) == 1
        assert submitted(preparer, generate(text="hi")).token_ids.tolist().count(1) == 1
        assert looked_up(preparer, Tokenize(1, None, chat, True)).token_ids.tolist().count(1) == 2

    def test_the_mock(self, mock: Preparer) -> None:
        assert submitted(mock, generate(text="Hello you")).token_ids == mock_vocabulary.encode("Hello you")
        ids = submitted(mock, generate(chat=HELLO)).token_ids
        assert ids == mock_vocabulary.encode("user: Hello\nassistant:")


class TestLimits:
    def test_max_tokens_0_is_the_rest_of_the_context(self, preparer: Preparer) -> None:
        assert submitted(preparer, generate(ids=[5] * 30)).sampling.max_tokens == CONTEXT - 30

    def test_prompt_and_output_may_fill_the_context(self, preparer: Preparer) -> None:
        assert submitted(preparer, generate(ids=[5] * 99, max_tokens=1)).refusal is None

    def test_prompt_and_output_over_the_context(self, preparer: Preparer) -> None:
        answer = submitted(preparer, generate(ids=[5] * 30, max_tokens=71))
        assert_refused(answer, "max_tokens", "71", "30", "101", "100")

    def test_a_prompt_that_leaves_no_room(self, preparer: Preparer) -> None:
        assert_refused(submitted(preparer, generate(ids=[5] * 100, max_tokens=1)), "prompt", "100 tokens")
        assert_refused(submitted(preparer, generate(text="one " * 150)), "prompt", "context of 100 tokens")
        chat = {"messages": [{"role": "user", "content": "one " * 150}]}
        assert_refused(submitted(preparer, generate(chat=chat)), "messages", "context of 100 tokens")

    def test_min_tokens_over_what_is_left(self, preparer: Preparer) -> None:
        assert_refused(submitted(preparer, generate(ids=[5] * 30, min_tokens=71)), "min_tokens", "71", "70")

    def test_texts_that_cannot_fit_are_not_tokenized(self) -> None:
        class Untouchable(MockEncoder):
            def encode(self, text: str, add_special_tokens: bool) -> Ids:
                raise AssertionError("tokenized")

        preparer = Preparer(Untouchable(), NoTemplate("never rendered"), CONTEXT, 100)
        long = "x" * (CONTEXT * MockEncoder.max_token_chars + 1)
        chat = {"messages": [{"role": "user", "content": long}]}
        assert_refused(submitted(preparer, generate(text=long)), "prompt", "701 characters")
        assert_refused(submitted(preparer, generate(chat=chat)), "messages", "701 characters")
        assert_refused(looked_up(preparer, Tokenize(1, long, None, True)), "prompt", "701 characters")

    def test_parts_and_tools_count_as_well(self) -> None:
        preparer = Preparer(MockEncoder(), NoTemplate("never rendered"), CONTEXT, 100)
        long = "x" * (CONTEXT * MockEncoder.max_token_chars + 1)
        parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": long}]}]}
        tools = HELLO | {"tools": [{"type": "function", "function": {"name": "f", "description": long}}]}
        for chat in (parts, tools):
            assert_refused(submitted(preparer, generate(chat=chat)), "messages", "characters cannot fit")

    def test_what_the_template_writes_is_limited_too(self) -> None:
        template = ChatTemplate("{% for i in range(800) %}x{% endfor %}", {})
        answer = submitted(Preparer(MockEncoder(), template, CONTEXT, 100), generate(chat=HELLO))
        assert_refused(answer, "messages", "more than 700 characters")


class TestRefusals:
    @pytest.mark.parametrize("prompt", [{"text": ""}, {}, {"ids": []}])
    def test_empty_prompts(self, preparer: Preparer, prompt: dict[str, Any]) -> None:
        assert_refused(submitted(preparer, generate(**prompt)), "prompt")

    def test_a_chat_that_comes_to_nothing(self, embedded_folder: Path) -> None:
        encoder = TokenizerEncoder(embedded_folder / "tokenizer.json")
        answer = submitted(Preparer(encoder, ChatTemplate("", {}), CONTEXT, VOCABULARY), generate(chat=HELLO))
        assert_refused(answer, "messages", "no token")

    @pytest.mark.parametrize("bad", [-1, VOCABULARY])
    def test_ids_outside_the_vocabulary(self, preparer: Preparer, bad: int) -> None:
        assert_refused(submitted(preparer, generate(ids=[1, 2, bad, bad])), "prompt", "prompt[2]", str(bad), "49152")

    def test_the_template_refuses(self) -> None:
        template = ChatTemplate("{{ raise_exception('only one message') }}", {})
        answer = submitted(Preparer(MockEncoder(), template, CONTEXT, 100), generate(chat=HELLO))
        assert_refused(answer, "messages", "only one message")

    def test_a_fault_of_our_own_ends_that_request_alone(self, mock: Preparer) -> None:
        answer = submitted(mock, generate(chat={"no messages": 1}))
        assert_refused(answer, "", status=500)
        assert submitted(mock, generate(text="Hello")).refusal is None


class TestLookUps:
    def test_tokenize_text(self, preparer: Preparer, embedded: Tokenizer) -> None:
        answer = looked_up(preparer, Tokenize(7, "Hello there", None, True))
        assert answer == LookUp(7, "", Ids("i", embedded.encode("Hello there").ids), None)

    def test_an_empty_text_has_no_tokens(self, preparer: Preparer) -> None:
        assert looked_up(preparer, Tokenize(7, "", None, False)) == LookUp(7, "", Ids("i"), None)

    def test_tokenize_chat(self, preparer: Preparer) -> None:
        answer = looked_up(preparer, Tokenize(7, None, HELLO, False))
        assert answer.token_ids == submitted(preparer, generate(chat=HELLO)).token_ids

    def test_detokenize(self, preparer: Preparer, embedded: Tokenizer) -> None:
        ids = embedded.encode("Hello 日<|im_end|>").ids
        assert looked_up(preparer, Detokenize(7, Ids("i", ids))) == LookUp(7, "Hello 日<|im_end|>", Ids("i"), None)

    def test_ids_outside_the_vocabulary(self, preparer: Preparer) -> None:
        answer = looked_up(preparer, Detokenize(7, Ids("i", [1, VOCABULARY])))
        assert_refused(answer, "tokens", "tokens[1]")
