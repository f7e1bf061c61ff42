"""From what a gateway asks to what its request becomes: prompts as ids, within the limits, or the reason why not."""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from ipc import faults
from ipc.codec import Ids, Map
from ipc.messages import Detokenize, Generate, GrammarPart, LookUp, Refusal, Sampling, Submit, Tokenize
from tokenizer_proc.chat_template import Template
from tokenizer_proc.encoder import Encoder
from tokenizer_proc.errors import RequestError
from tokenizer_proc.grammar_check import GrammarChecker

MAX_BAD_TOKENS = 1024  # of all spellings of a request's bad words

Question = Generate | Tokenize | Detokenize
Answer = Submit | LookUp

Outcome = TypeVar("Outcome")

log = logging.getLogger(__name__)


class Preparer:
    """Answers questions about one model. It keeps nothing of them, and may be used by several threads."""

    def __init__(
        self,
        encoder: Encoder,
        template: Template,
        max_model_len: int,
        vocab_size: int,
        grammars: GrammarChecker | None = None,
    ) -> None:
        """`max_model_len` is the context, prompt and output, in tokens; without `grammars` none can be followed."""
        self._encoder = encoder
        self._template = template
        self._grammars = grammars
        self._max_model_len = max_model_len
        self._vocab_size = vocab_size
        self._max_chars = max_model_len * encoder.max_token_chars

    def answer(self, question: Question) -> Answer:
        """What to send on for a message of a gateway. Whatever goes wrong becomes a refusal inside the answer."""
        match question:
            case Generate():
                return self._submit(question)
            case Tokenize():
                return self._tokenize(question)
            case Detokenize():
                return self._detokenize(question)

    def _submit(self, generate: Generate) -> Submit:
        def work() -> tuple[Ids, Sampling, str]:
            if faults.armed:
                faults.at("prompt")
            token_ids, param = self._prompt(generate)
            sampling = self._limited(generate.sampling, len(token_ids), param)
            sampling = self._constrained(sampling, generate.bad_words)
            return token_ids, sampling, self._grammar(generate.grammar)

        outcome, refusal = _contained(work)
        token_ids, sampling, grammar = outcome or (array("i"), generate.sampling, "")
        return Submit(
            rid=generate.rid,
            request_id=generate.request_id,
            n=generate.n,
            token_ids=token_ids,
            sampling=sampling,
            output=generate.output,
            priority=generate.priority,
            cache_salt=generate.cache_salt,
            received_ns=generate.received_ns,
            tokenized_ns=time.monotonic_ns(),
            refusal=refusal,
            tenant=generate.tenant,
            deadline_ns=generate.deadline_ns,
            grammar=grammar,
        )

    def _tokenize(self, question: Tokenize) -> LookUp:
        def work() -> Ids:
            if question.chat is not None:
                return self._encode_chat(question.chat, question.add_special_tokens)
            return self._encode_text(question.text or "", question.add_special_tokens)

        token_ids, refusal = _contained(work)
        ids = array("i") if token_ids is None else token_ids
        names = self._encoder.names(ids) if question.wants_names else []
        return LookUp(question.rid, "", ids, refusal, names)

    def _detokenize(self, question: Detokenize) -> LookUp:
        def work() -> str:
            self._check_ids(question.token_ids, "tokens")
            return self._encoder.decode(question.token_ids)

        text, refusal = _contained(work)
        return LookUp(question.rid, text or "", array("i"), refusal)

    # -- prompts -----------------------------------------------------------------------------------------------

    def _prompt(self, generate: Generate) -> tuple[Ids, str]:
        """The ids of the prompt, and the name of the field that it came in."""
        if generate.chat is not None:
            # The template has written BOS where the model wants it.
            token_ids, param = self._encode_chat(generate.chat, add_special_tokens=False), "messages"
        elif generate.ids is not None:
            token_ids, param = generate.ids, "prompt"
            self._check_ids(token_ids, param)
        else:
            if not generate.text:
                raise RequestError("prompt: it is empty", "prompt")
            token_ids, param = self._encode_text(generate.text, add_special_tokens=True), "prompt"
        if not token_ids:
            raise RequestError(f"{param}: no token is left of it", param)
        self._check_ids(token_ids, param)  # a tokenizer may know tokens that its model has no place for
        return token_ids, param

    def _encode_text(self, text: str, add_special_tokens: bool) -> Ids:
        self._check_length(len(text), "prompt")
        return self._encoder.encode(text, add_special_tokens)

    def _encode_chat(self, chat: Map, add_special_tokens: bool) -> Ids:
        self._check_length(_num_chars(chat), "messages")
        hidden: dict[str, str] = {}
        chat = self._encoder.special.hide(chat, hidden)
        text = self._template.render(chat, self._max_chars)
        return self._encoder.encode_hidden(text, hidden, add_special_tokens)

    # -- what the output may be --------------------------------------------------------------------------------

    def _grammar(self, parts: list[GrammarPart]) -> str:
        """What the output must follow, as the runner compiles it; "" when it is free."""
        if not parts:
            return ""
        return self._need_grammars(parts[0].param).check(parts)

    def _constrained(self, sampling: Sampling, bad_words: list[str]) -> Sampling:
        """The sampling with the ids of words that must not come."""
        if sampling.allowed_ids:
            self._need_grammars("allowed_token_ids")
        if not bad_words:
            return sampling
        self._need_grammars("bad_words")
        rows: list[Ids] = []
        for index, word in enumerate(bad_words):
            rows += self._spellings(word, f"bad_words[{index}]")
        bad_ids = array("i", [token_id for row in rows for token_id in row])
        if len(bad_ids) > MAX_BAD_TOKENS:
            raise RequestError(f"bad_words: they are {len(bad_ids)} tokens, more than {MAX_BAD_TOKENS}", "bad_words")
        return replace(sampling, bad_ids=bad_ids, bad_counts=[len(row) for row in rows])

    def _spellings(self, word: str, param: str) -> list[Ids]:
        """The tokens of a word, as it is and behind a space, where most tokens of words begin."""
        rows = [self._encoder.encode(word, add_special_tokens=False)]
        if not rows[0]:
            raise RequestError(f"{param}: no token is left of it", param)
        if not word[0].isspace():
            inner = self._encoder.encode(f" {word}", add_special_tokens=False)
            # Where the space is a token of its own, the word behind it is what has been found already.
            if inner[0] != rows[0][0] and len(inner) <= len(rows[0]):
                rows.append(inner)
        return rows

    def _need_grammars(self, param: str) -> GrammarChecker:
        if self._grammars is None:
            raise RequestError(f"{param}: this model is a mock, whose words cannot be chosen", param)
        return self._grammars

    # -- limits ------------------------------------------------------------------------------------------------

    def _check_length(self, num_chars: int, param: str) -> None:
        """Refuse what cannot fit the context, before time is spent on tokens."""
        if num_chars > self._max_chars:
            raise RequestError(
                f"{param}: {num_chars} characters cannot fit the context of {self._max_model_len} tokens", param
            )

    def _check_ids(self, token_ids: Ids, param: str) -> None:
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) < self._vocab_size):
            index = next(i for i, token_id in enumerate(token_ids) if not 0 <= token_id < self._vocab_size)
            raise RequestError(
                f"{param}[{index}]: {token_ids[index]} is no token id; they are below {self._vocab_size}", param
            )

    def _limited(self, sampling: Sampling, prompt_len: int, param: str) -> Sampling:
        """The sampling with its max_tokens decided, within what the prompt leaves of the context."""
        self._check_ids(sampling.bias_ids, "logit_bias")
        self._check_ids(sampling.stop_token_ids, "stop_token_ids")
        self._check_ids(sampling.allowed_ids, "allowed_token_ids")
        room = self._max_model_len - prompt_len
        if sampling.prompt_only:
            if room < 0:
                raise RequestError(
                    f"{param}: {prompt_len} tokens are more than the context of {self._max_model_len} tokens", param
                )
            return sampling
        if room < 1:
            raise RequestError(
                f"{param}: {prompt_len} tokens leave no room for output in the context of {self._max_model_len} tokens",
                param,
            )
        max_tokens = sampling.max_tokens or room
        if max_tokens > room:
            raise RequestError(
                f"max_tokens: {max_tokens} and the prompt's {prompt_len} tokens are {max_tokens + prompt_len}, more"
                f" than the context of {self._max_model_len} tokens; ask for {room} at most, or shorten the prompt",
                "max_tokens",
            )
        if sampling.min_tokens > max_tokens:
            raise RequestError(
                f"min_tokens: {sampling.min_tokens} is more than the {max_tokens} tokens that there is room for",
                "min_tokens",
            )
        return replace(sampling, max_tokens=max_tokens)


def _contained(work: Callable[[], Outcome]) -> tuple[Outcome | None, Refusal | None]:
    """What `work` gives, or why the request is refused: no request may harm the process."""
    try:
        return work(), None
    except RequestError as error:
        return None, error.refusal()
    except Exception:
        log.exception("a prompt could not be prepared")
        return None, Refusal(500, "server_error", "the prompt could not be prepared")


def _num_chars(chat: Map) -> int:
    """The characters of all that the messages and the tools say: roles and types do not count."""
    num_chars = 0
    left: list[Any] = [chat["messages"], chat.get("tools")]
    while left:
        value = left.pop()
        if isinstance(value, str):
            num_chars += len(value)
        elif isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            left += [item for name, item in value.items() if name not in ("role", "type")]
    return num_chars
