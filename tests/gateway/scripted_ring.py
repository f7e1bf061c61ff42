"""A ring that does what the test says: it stands for the four other processes, between `send` and `on_text`."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

from gateway.company import Company
from gateway.controls import Controls
from gateway.engine import Engine
from gateway.parsers import reasoning
from gateway.parsers.reader import TOOL_PARSERS
from gateway.profiling.session import Profiler
from gateway.ring import RingView
from gateway.templates import WORD
from ipc.codec import decode, encode
from ipc.config import GatewayConfig
from ipc.control_messages import ModelFiles, RingState
from ipc.messages import (
    ERROR,
    LENGTH,
    STOP,
    Abort,
    Detokenize,
    FlushCache,
    Generate,
    Head,
    Inspect,
    Logprobs,
    LookUp,
    Output,
    Reading,
    Refusal,
    Report,
    Tail,
    Text,
    Tokenize,
    Watch,
)
from ipc.names import first_rid
from ipc.profiling import Profiled

NAMES = ("gateway", "tokenizer", "scheduler", "model", "detokenizer")
MODEL = ModelFiles(
    name="tiny", folder="", tokenizer_folder="", max_model_len=1000, vocab_size=500, defaults={"top_k": 40}
)
CONFIG = GatewayConfig(
    host="127.0.0.1",
    port=0,
    api_key=[],
    api_key_file="",
    allowed_origins=[],
    ssl_certfile="",
    ssl_keyfile="",
    ssl_ca_certs="",
    uds="",
    root_path="",
    gateway_workers=1,
    sse_keep_alive_interval=0.0,
    served_model_name=[],
    max_body_mib=1,
    request_timeout=0.0,
    max_num_queued_reqs=1024,
    max_num_seqs=256,
    scheduling_policy="fcfs",
    chat_template="",
    tool_call_parser="auto",
    reasoning_parser="auto",
    pooling="last",
    enable_metrics=True,
    vllm_metrics=True,
    profile="",
    profile_dir="profiles",
    otlp_traces_endpoint="",
)
MARKS = frozenset((*reasoning.MARKS, *(mark for parser in TOOL_PARSERS.values() for mark in parser.marks)))
PROBE_ID = 1 << 20
REFUSED = Refusal(400, "invalid_request_error", "messages: the chat template refuses them", "messages")
MS = 1_000_000  # in nanoseconds
PATIENCE_S = 20.0  # a test that waits for so long has failed

Message = TypeVar("Message")


def render(chat: dict[str, Any]) -> str:
    """A template that knows neither tools nor reasoning."""
    lines = "".join(f"{message['role']}: {message['content']}\n" for message in chat["messages"])
    return lines + ("assistant:" if chat["add_generation_prompt"] else "")


def is_probe(chat: dict[str, Any]) -> bool:
    """Whether the gateway made this conversation itself, to see what the template makes of it."""
    texts = [str(message.get(key)) for message in chat["messages"] for key in ("content", "reasoning_content")]
    return any(WORD in text or text in MARKS for text in texts)


class ScriptedRing:
    """Records what the gateway sends; `script`, when set, answers every Generate as it arrives."""

    def __init__(self, gateway: int = 0) -> None:
        """`gateway` is the index of the gateway that it is there for."""
        self.sent: list[Any] = []
        self.num_texts = 0
        self.asked: list[Inspect | FlushCache | Watch] = []  # of the scheduler
        self.watched: dict[str, Any] = {}  # what it shows to those who watch
        self.reports: dict[str, list[dict[str, Any]]] = {}  # what the scheduler knows, by request id
        self.script: Callable[[Generate], None] | None = None
        self.template: Callable[[dict[str, Any]], str | None] = render  # None refuses the conversation
        self.special: dict[str, int] = {}  # special tokens of the vocabulary, which otherwise spells by character
        self._rendered: dict[int, str] = {}  # prompts that the gateway asked for to see the template at work
        self.view = RingView([])
        self.engine = Engine(
            lambda _, message: self._take(message), self._take_in_scheduler, self.view.admit, first_rid(gateway, 0)
        )
        self.view.update(MODEL)
        self.set_states()
        self._news = asyncio.Event()
        profiled = Profiled("gateway", self._way_to)
        stub: Any = SimpleNamespace(name="gateway", profiled=profiled, spans=profiled.spans, peer=self._way_to)
        profiler = Profiler(stub, self.view, self.engine.observer, CONFIG.profile_dir)
        self.controls = Controls(self.view, profiler, lambda name, message: self._way_to(name).send(message), Company())

    def _way_to(self, name: str) -> Any:
        return SimpleNamespace(send=self.sent.append)

    def limit_under_way(self, limit: int) -> None:
        """Take the place of the engine by one that lets in no more than this."""
        self.engine = Engine(
            lambda _, message: self._take(message), self._take_in_scheduler, self.view.admit, most_under_way=limit
        )

    def set_states(self, **states: str) -> None:
        """Every process is ready but for those named."""
        self.view.update(RingState(dict.fromkeys(NAMES, "ready") | states))

    def _take(self, message: Any) -> None:
        _, message = decode(encode(message, epoch=1))
        if self._answers(message):
            return
        self.sent.append(message)
        self._news.set()
        if self.script is not None and isinstance(message, Generate):
            asyncio.get_running_loop().call_soon(self.script, message)

    def _answers(self, message: Any) -> bool:
        """Answer what the gateway asks on its own account, about the template and the vocabulary."""
        match message:
            case Tokenize(rid=rid, chat=chat) if chat is not None and is_probe(chat):
                text = self.template(chat)
                key = PROBE_ID + len(self._rendered)
                self._rendered[key] = text or ""
                answer = LookUp(rid, "", array("i", [key]), REFUSED if text is None else None)
            case Tokenize(rid=rid, text=text) if text in MARKS:
                known = text in self.special
                answer = LookUp(rid, "", array("i", [self.special[text]] if known else map(ord, text)), None)
            case Detokenize(rid=rid, token_ids=ids) if len(ids) == 1 and ids[0] in self._rendered:
                answer = LookUp(rid, self._rendered[ids[0]], array("i"), None)
            case _:
                return False
        asyncio.get_running_loop().call_soon(self.engine.on_answer, answer)
        return True

    def _take_in_scheduler(self, message: Any) -> None:
        """The scheduler answers at once, but for a flush of the cache, which is the test's to answer."""
        _, message = decode(encode(message, epoch=1))
        self.asked.append(message)
        self._news.set()
        if isinstance(message, Inspect):
            self.report(message.rid, {"sequences": self.reports.get(message.request_id, [])})
        elif isinstance(message, Watch):
            self.report(message.rid, self.watched)

    def report(self, rid: int, body: dict[str, Any]) -> None:
        """An answer of the scheduler, a moment later."""
        _, message = decode(encode(Report(rid, body), epoch=1))
        asyncio.get_running_loop().call_soon(self.engine.on_answer, message)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds that a message of the gateway makes true."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def next(self, kind: type[Message]) -> Message:
        """The next message of a kind that the gateway sends, or has sent and nobody has asked for."""
        await self.until(lambda: any(isinstance(message, kind) for message in self.sent))
        found = next(message for message in self.sent if isinstance(message, kind))
        self.sent.remove(found)
        return found

    def aborted(self) -> list[int]:
        """All rids that the gateway has aborted."""
        return [rid for message in self.sent if isinstance(message, Abort) for rid in message.rids]

    # -- what the ring brings -----------------------------------------------------------------------------------------

    def bring(
        self,
        heads: list[Head] | None = None,
        rows: list[tuple[int, str, list[int]]] | None = None,
        tails: list[Tail] | None = None,
        logprobs: Logprobs | None = None,
        readings: list[Reading] | None = None,
    ) -> None:
        """One message to the gateway; a row is a rid, a text and the ids that it stands for."""
        rows = rows or []
        message = Text(
            heads=heads or [],
            rids=[rid for rid, _, _ in rows],
            texts=[text for _, text, _ in rows],
            num_tokens=[len(ids) for _, _, ids in rows],
            token_ids=array("i", [token_id for _, _, ids in rows for token_id in ids]),
            logprobs=logprobs,
            tails=tails or [],
            time_ns=1,
            readings=readings or [],
            number=self.num_texts,
        )
        self.num_texts += 1
        _, message = decode(encode(message, epoch=1))
        self.engine.on_text(message)

    def answer(self, generate: Generate, words: list[str], reason: int = LENGTH) -> None:
        """Answer every choice with the same words, a token and a message each; the last message brings the end."""
        rids = range(generate.rid, generate.rid + generate.n)
        for position, word in enumerate(words):
            last = position == len(words) - 1
            self.bring(
                heads=[head(rid) for rid in rids] if position == 0 else [],
                rows=[(rid, word, [100 + position]) for rid in rids],
                tails=[tail(rid, len(words), reason) for rid in rids] if last else [],
            )

    def refuse(self, generate: Generate, refusal: Refusal) -> None:
        """Refuse every choice, the way a refusal comes round the ring."""
        rids = range(generate.rid, generate.rid + generate.n)
        self.bring(heads=[head(rid) for rid in rids], tails=[tail(rid, 0, ERROR, refusal=refusal) for rid in rids])


def head(rid: int, prompt_tokens: int = 5, cached_tokens: int = 2) -> Head:
    """Received, tokenized, queued and scheduled after 1, 2, 3 and 4 ms."""
    return Head(rid, Output(), prompt_tokens, cached_tokens, 1 * MS, 2 * MS, 3 * MS, 4 * MS)


def tail(rid: int, completion_tokens: int, reason: int = STOP, **fields: Any) -> Tail:
    """The first token came after 6 ms, the last one after 8 ms."""
    times = {"first_token_ns": 6 * MS, "finished_ns": 8 * MS, "started_ns": 4 * MS + 250_000, "execution_ns": 3 * MS}
    return Tail(rid, reason, completion_tokens, **({"first_step": 7, "batch_size": 2.5} | times | fields))
