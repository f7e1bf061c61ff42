"""Whether what a client wants an answer to follow can be followed: grammars are tried out before anything waits for
them.

llguidance compiles lazily, so a grammar that is impossible or too costly may show only when it is used. Therefore it is
compiled here for a vocabulary of single bytes, which takes no time to set up, and followed for some steps. The library
keeps to limits of its own in all it does; what takes longer than the client is told to expect is given up all the same.
"""

from __future__ import annotations

import json
import random
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from queue import SimpleQueue
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark

from ipc.messages import GrammarPart
from tokenizer_proc.errors import RequestError
from tokenizer_proc.finite_schema import is_endless

MAX_SECONDS = 5.0
MAX_CHARS = 512 << 10  # of all parts together
NUM_STEPS = 48  # that a new grammar is followed for
MAX_STATES = 20_000  # of the automaton that reads a grammar's words, a kilobyte or two each
MAX_REMEMBERED = 256  # grammars that were found to be good
MAX_REASON_CHARS = 300
NUM_THREADS = 2

# How JSON is written. Free white space would let a model that has nothing to say write it for ever.
JSON_STYLE = {"whitespace_flexible": True, "whitespace_pattern": " ?", "coerce_one_of": False, "lenient": False}


class GrammarChecker:
    """Checks grammars, each once. May be used by several threads; a call takes `max_seconds` at most."""

    def __init__(self, vocab_size: int, special: Mapping[str, int], max_seconds: float = MAX_SECONDS) -> None:
        """`special` are the special tokens of the model, which grammars may refer to."""
        self._vocabulary = LLTokenizer(TokenizerWrapper(_Bytes(vocab_size, special)))
        self._max_seconds = max_seconds
        self._good: OrderedDict[bytes, str] = OrderedDict()  # digest of the parts -> the grammar
        self._lock = threading.Lock()
        self._questions: SimpleQueue[tuple[str, SimpleQueue[str]]] = SimpleQueue()
        for number in range(NUM_THREADS):
            threading.Thread(target=self._work, name=f"grammar-{number}", daemon=True).start()

    def check(self, parts: Sequence[GrammarPart]) -> str:
        """The grammar in llguidance's notation. Raises RequestError, which names the part at fault."""
        if sum(len(part.text) for part in parts) > MAX_CHARS:
            raise RequestError(
                f"{parts[0].param}: larger than {MAX_CHARS} characters with all that belongs to it", parts[0].param
            )
        key = sha256(repr([(part.name, part.kind, part.text) for part in parts]).encode()).digest()
        with self._lock:
            if key in self._good:
                self._good.move_to_end(key)
                return self._good[key]
        grammar = join(parts)
        for part in parts:
            if part.kind == "json" and is_endless(json.loads(part.text)):
                raise RequestError(f"{part.param}: the schema asks for itself, so that nothing ends it", part.param)
        if reason := self._ask(grammar):
            raise self._blame(parts, reason)
        with self._lock:
            self._good[key] = grammar
            if len(self._good) > MAX_REMEMBERED:
                self._good.popitem(last=False)
        return grammar

    def _blame(self, parts: Sequence[GrammarPart], reason: str) -> RequestError:
        """The error for a grammar that is none: it names the part that is none by itself, if one is."""
        for part in parts[1:]:
            if own := self._ask(join([part])):
                return RequestError(f"{part.param}: {own}", part.param)
        return RequestError(f"{parts[0].param}: {reason}", parts[0].param)

    def _ask(self, grammar: str) -> str:
        """What is wrong with a grammar, "" when nothing is; waits for a thread to find out."""
        answer: SimpleQueue[str] = SimpleQueue()
        self._questions.put((grammar, answer))
        try:
            return answer.get(timeout=self._max_seconds)
        except Exception:  # queue.Empty, which is what a timeout raises
            return f"it takes more than {self._max_seconds:g} s to compile; make it simpler"

    def _work(self) -> None:
        while True:
            grammar, answer = self._questions.get()
            try:
                answer.put(self._fault(grammar))
            except Exception as error:  # what a library might raise must not end the thread
                answer.put(_one_line(str(error)))

    def _fault(self, grammar: str) -> str:
        limits = LLParserLimits(max_lexer_states=MAX_STATES, verbose_errors=False)
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)
        choose = random.Random(0)
        for _ in range(NUM_STEPS):
            if matcher.is_error():
                return _one_line(matcher.get_error())
            if matcher.is_stopped():
                break
            allowed = _ids_in(matcher.compute_bitmask())
            if matcher.is_error():
                return _one_line(matcher.get_error())
            if not allowed:
                break
            matcher.consume_token(choose.choice(allowed))
        return ""


def join(parts: Sequence[GrammarPart]) -> str:
    """All parts as one grammar in llguidance's notation. Raises RequestError for what is not even that."""
    return json.dumps({"grammars": [{"name": part.name} | _grammar(part) for part in parts]})


def _grammar(part: GrammarPart) -> dict[str, Any]:
    match part.kind:
        case "json":
            return {"json_schema": json.loads(part.text) | {"x-guidance": JSON_STYLE}}
        case "regex":
            return json.loads(LLMatcher.grammar_from_regex(_ascii_digits(part.text)))["grammars"][0] | {
                "name": part.name
            }
        case "gbnf":
            return {"lark_grammar": _lark(part)}
        case _:
            return {"lark_grammar": part.text}


def _ascii_digits(pattern: str) -> str:
    r"""The regular expression with a `\d` that is 0 to 9, as in a schema's pattern. By itself it is a digit of any
    script, and a model that would rather begin an emoji finds one of those."""
    digits = {r"\d": "[0-9]", r"\D": "[^0-9]"}
    return re.sub(r"\\.", lambda found: digits.get(found[0], found[0]), pattern, flags=re.DOTALL)


def _lark(part: GrammarPart) -> str:
    try:
        return any_to_lark(part.text)
    except RecursionError:
        raise RequestError(f"{part.param}: the grammar is too deeply nested", part.param) from None
    except Exception as error:  # the library raises nothing more specific
        raise RequestError(f"{part.param}: no grammar: {_one_line(str(error))}", part.param) from None


class _Bytes:
    """A vocabulary of the 256 bytes, and of special tokens at the ids that they have in the model's."""

    def __init__(self, vocab_size: int, special: Mapping[str, int]) -> None:
        taken = {token_id: text for text, token_id in special.items() if token_id < vocab_size}
        free = (token_id for token_id in range(vocab_size + 257) if token_id not in taken)
        self.special_token_ids = list(taken)
        self.tokens = [b""] * (vocab_size + 257)
        for token_id, text in taken.items():
            self.tokens[token_id] = text.encode()
        self._id_of = [next(free) for _ in range(256)]
        for byte, token_id in enumerate(self._id_of):
            self.tokens[token_id] = bytes([byte])
        # The end of a sequence is of the checker's own making: whichever tokens the model has for it end a grammar.
        self.eos_token_id = len(self.tokens) - 1
        self.special_token_ids.append(self.eos_token_id)
        self.tokens[self.eos_token_id] = b"<|end of the grammar|>"
        self.bos_token_id = None

    def __call__(self, text: bytes) -> list[int]:
        return [self._id_of[byte] for byte in text]


def _ids_in(bitmask: bytes) -> list[int]:
    """The positions of the set bits."""
    return [8 * place + bit for place, byte in enumerate(bitmask) if byte for bit in range(8) if byte >> bit & 1]


def _one_line(reason: str) -> str:
    """What a client needs to know of the library's words: neither its state nor the text that it points at."""
    if reason.startswith("NoExtension"):
        return "nothing can satisfy it"
    if reason.startswith("oneOf"):
        return "the branches of a oneOf must exclude each other; use anyOf"
    lines = reason.partition("<")[0].splitlines()
    shown = [line for line in lines if " | " not in line and line.strip(" ^")]
    return " ".join(" ".join(shown).split())[:MAX_REASON_CHARS]
