"""The grammars that outputs follow, compiled beside the steps by a thread of their own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from ipc.messages import Prepare, Prepared

MAX_STATES = 20_000  # of the automaton that reads a grammar's words, a kilobyte or two each

Answer = Callable[[Prepared], None]

log = logging.getLogger(__name__)


class Grammars:
    """The compiled grammars, by the scheduler's numbers.

    A matcher that nothing has been sampled with is kept for each grammar; every sequence gets a copy. The copies share
    what the library has worked out of the grammar so far.
    """

    def __init__(self, tokenizer_file: Path, vocab_size: int, eos_token_ids: list[int]) -> None:
        """`tokenizer_file` is a tokenizer.json; ids up to `vocab_size` that it does not know are never allowed."""
        self._tokenizer_file = tokenizer_file
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._matchers: dict[int, LLMatcher] = {}
        self._work: SimpleQueue[tuple[Prepare, Answer, dict[int, LLMatcher]]] = SimpleQueue()
        threading.Thread(target=self._compile_all, name="grammars", daemon=True).start()

    def prepare(self, message: Prepare, answer: Answer) -> None:
        """Have a grammar compiled; `answer` is called by the thread that does so."""
        self._work.put((message, answer, self._matchers))

    def matcher(self, number: int) -> LLMatcher | None:
        """A matcher at the beginning of an output; None when the grammar is not there.

        That happens to a sequence alone that was over before its plan was launched: its grammar may be forgotten then.
        """
        matcher = self._matchers.get(number)
        return None if matcher is None else matcher.deep_copy()

    def reset(self) -> None:
        """Forget all grammars, and those that are still to be compiled: another scheduler has numbers of its own."""
        self._matchers = {}

    def _compile_all(self) -> None:
        vocabulary, fault = self._read_vocabulary()
        limits = LLParserLimits(max_lexer_states=MAX_STATES, verbose_errors=False)
        while True:
            message, answer, matchers = self._work.get()
            for number in message.forget:
                matchers.pop(number, None)
            error = fault
            if vocabulary is not None:
                matcher = LLMatcher(vocabulary, message.text, log_level=0, limits=limits)
                error = matcher.get_error()
                if not error:
                    matchers[message.grammar] = matcher
            answer(Prepared(message.grammar, error))

    def _read_vocabulary(self) -> tuple[LLTokenizer | None, str]:
        """The vocabulary, or why there is none. While it is read no other thread gets to run, so that is done early."""
        if not self._eos_token_ids:
            return None, "it names no end of sequence, so nothing could tell that the output is complete"
        try:
            return LLTokenizer(str(self._tokenizer_file), self._vocab_size, self._eos_token_ids), ""
        except Exception as error:  # the library raises nothing more specific
            log.warning("the library for grammars cannot read %s: %s", self._tokenizer_file, error)
            return None, "its vocabulary is of a kind that grammars do not work with"
