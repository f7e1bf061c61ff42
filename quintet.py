"""The offline API: generate text from a Python program, on the same five-process ring as the server.

    from quintet import LLM, SamplingParams

    with LLM("smollm2-135m") as llm:
        for result in llm.generate(["Once upon a time"], SamplingParams(max_tokens=32)):
            print(result.text)

The caller takes the gateway's place: it pushes Generate messages to the tokenizer and receives Text.
"""

from __future__ import annotations

import math
import secrets
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from types import TracebackType
from typing import Any, NamedTuple

import zmq
from rich.console import Console
from rich.progress import Progress

from ipc.codec import Ids, WireError, decode, encode
from ipc.control_messages import Loading, ModelFiles, RingState
from ipc.messages import REASON_NAMES, Abort, Generate, Logprobs, Output, Sampling, Tail, Text
from ipc.names import first_rid
from ipc.options import complete
from ipc.sockets import Inbox, Outbox
from ipc.structured import KINDS, grammar_part
from supervision.child import PACKAGES
from supervision.supervisor import Supervisor

# What the caller sees and hands in is its own affair.
LIKE_A_CALLER = {"log_level": "warning", "max_num_queued_tokens": 1 << 60}

Prompt = str | Sequence[int]
Messages = Sequence[dict[str, Any]]


@dataclass(slots=True)
class SamplingParams:
    """How to sample. What is None comes from the model's generation config, else from the neutral value."""

    n: int = 1
    max_tokens: int | None = 16  # None: the rest of the context
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    stop: str | list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    ignore_eos: bool = False
    seed: int | None = None
    structured_outputs: dict[str, Any] | None = None  # one of json, regex, choice, grammar, json_object
    bad_words: list[str] = field(default_factory=list)
    allowed_token_ids: list[int] | None = None
    logprobs: int | None = None  # most likely candidates to tell beside each token of the output; 0 tells it alone
    prompt_logprobs: int | None = None  # the same for each token of the prompt, which is then read without the cache

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "n": (1, 128), "max_tokens": (1, math.inf), "min_tokens": (0, math.inf), "temperature": (0, 2),
            "top_k": (-1, math.inf), "top_p": (0, 1), "min_p": (0, 1), "presence_penalty": (-2, 2),
            "frequency_penalty": (-2, 2), "repetition_penalty": (0, math.inf), "logprobs": (0, 20),
            "prompt_logprobs": (0, 20),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} must be between {low} and {high}, got {value!r}")
        for name in ("top_p", "repetition_penalty"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must be greater than 0")
        if "" in ([self.stop] if isinstance(self.stop, str) else self.stop):
            raise ValueError("stop must not hold an empty string")
        if self.structured_outputs is not None and (
            len(self.structured_outputs) != 1 or next(iter(self.structured_outputs)) not in KINDS
        ):
            raise ValueError(f"structured_outputs must have exactly one of {', '.join(KINDS)}")
        if self.structured_outputs is not None and self.allowed_token_ids is not None:
            raise ValueError("structured_outputs and allowed_token_ids cannot be given together")


class Candidate(NamedTuple):
    """What the model made of a token at one place."""

    logprob: float
    text: str  # of the token alone; U+FFFD where it holds a part of a character


Candidates = dict[int, Candidate]  # by token id: the one that stands there first, then the most likely in falling order


@dataclass(slots=True)
class Completion:
    """One finished choice."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""  # "stop" or "length"
    stop_reason: str | int | None = None  # the stop string or token that ended it
    logprobs: list[Candidates] = field(default_factory=list)  # one for each of `token_ids`, if they were asked for


@dataclass(slots=True)
class RequestResult:
    """What became of one prompt: its choices, and the first of them at hand."""

    prompt: Any
    choices: list[Completion]
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_token_ids: list[int] = field(default_factory=list)
    # One for each of `prompt_token_ids`, if they were asked for; nothing is known of the first one.
    prompt_logprobs: list[Candidates | None] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> str:
        return self.choices[0].finish_reason


class LLMError(RuntimeError):
    """The ring could not start, refused a request, or was lost; the text says which and what to do."""


class LLM:
    """A model behind a ring of its own. `options` are those of `launch.py`, by name: LLM(model, max_num_seqs=8)."""

    def __init__(self, model: str = "smollm2-135m", **options: Any) -> None:
        self._closed = False
        if options.get("restart_limit"):
            raise ValueError("restart_limit: an LLM is not restarted, its caller is told of the loss; use 0")
        for name in ("gateway_workers", "tokenizer_workers", "detokenizer_workers"):
            if options.get(name, 1) != 1:
                raise ValueError(f"{name}: only for a server, an LLM has one of each process")
        self._options = complete({**LIKE_A_CALLER, "model": model, **options, "restart_limit": 0})
        processes = [name for name in PACKAGES if name != "gateway"]
        self._supervisor = Supervisor(self._options, processes)
        ring = self._supervisor.ring_for("gateway")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._inbox = Inbox(self._context, ring.run_dir, "gateway", ring.epoch, ring.runs)
        self._tokenizer = Outbox(self._context, ring.run_dir, "tokenizer", ring.epoch, ring.runs["tokenizer"])
        self._thread = threading.Thread(target=self._supervisor.run, name="supervisor", daemon=True)
        self._thread.start()
        self._rids = count(first_rid(0, ring.epoch))
        self._next_text = 0  # number of the Text that must come next
        try:
            self.model = self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        show_progress: bool = True,
        cache_salt: str = "",
    ) -> list[RequestResult]:
        """Complete prompts: strings or lists of token ids; one SamplingParams for all, or one each.

        Results come in the order of the prompts. Prompts find cached prefixes of calls with the same `cache_salt`
        only. Raises LLMError when a prompt is refused or the ring is lost.
        """
        single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        return self._run([prompts] if single else list(prompts), sampling, show_progress, cache_salt)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        show_progress: bool = True,
    ) -> list[RequestResult]:
        """Answer one conversation, or several, through the model's chat template."""
        conversations = [messages] if messages and isinstance(messages[0], dict) else messages
        chats = [{"messages": list(conversation)} for conversation in conversations]
        return self._run(chats, sampling, show_progress)

    def close(self) -> None:
        """Stop the processes and wait until they are gone. A second call is a no-op."""
        if self._closed:
            return
        self._closed = True
        self._tokenizer.close()
        self._inbox.close()
        self._context.term()
        self._supervisor.stop()
        self._thread.join()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- the ring ------------------------------------------------------------------------------------------------------

    def _wait_until_ready(self) -> ModelFiles:
        model: ModelFiles | None = None
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task("starting", total=None)
            for message in self._messages():
                match message:
                    case ModelFiles():
                        model = message
                    case Loading(phase=phase, done=done, total=total):
                        progress.update(task, description=phase, completed=done, total=total or None)
                    case RingState(states=states) if model and all(state == "ready" for state in states.values()):
                        return model
        raise AssertionError("unreachable: the messages end with an error")

    def _messages(self) -> Iterator[Any]:
        """Everything that reaches the gateway's inbox. Raises LLMError when the ring ends."""
        while True:
            messages = self._inbox.receive(0.2)
            numbers = [message.number for message in messages if type(message) is Text]
            first, self._next_text = self._next_text, numbers[-1] + 1 if numbers else self._next_text
            if numbers != [*range(first, first + len(numbers))]:
                raise LLMError("a part of the answers was lost inside the engine; ask again")
            yield from messages
            if not self._thread.is_alive():
                raise LLMError(self._supervisor.fatal or "a process of the ring was lost; its log says why")

    def _run(
        self,
        prompts: list[Any],
        sampling: SamplingParams | Sequence[SamplingParams] | None,
        show_progress: bool,
        cache_salt: str = "",
    ) -> list[RequestResult]:
        if self._closed:
            raise LLMError("this LLM is closed")
        params = [sampling or SamplingParams()] * len(prompts) if not isinstance(sampling, Sequence) else list(sampling)
        if len(params) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts, but {len(params)} SamplingParams")
        results = [RequestResult(prompt, []) for prompt in prompts]
        waiting = iter(zip(prompts, params, results, strict=True))
        active: dict[int, tuple[RequestResult, Completion]] = {}
        hidden = not (show_progress and sys.stderr.isatty())
        with Progress(console=Console(stderr=True), transient=True, disable=hidden) as progress:
            task = progress.add_task("generating", total=sum(param.n for param in params))
            try:
                self._submit_more(waiting, active, cache_salt)
                for message in self._messages() if active else ():
                    if type(message) is Text:
                        ended = self._take(message, active)
                        progress.advance(task, ended)
                        if ended:
                            self._submit_more(waiting, active, cache_salt)
                        if not active:
                            break
            except BaseException:
                self._tokenizer.send(Abort(list(active)))
                raise
        return results

    def _submit_more(
        self,
        waiting: Iterator[tuple[Any, SamplingParams, RequestResult]],
        active: dict[int, tuple[RequestResult, Completion]],
        cache_salt: str,
    ) -> None:
        """Keep the queue filled, but never beyond what the scheduler takes in."""
        most = max(1, self._options["max_num_queued_reqs"] // 2)
        while len(active) < most and (item := next(waiting, None)) is not None:
            prompt, params, result = item
            rid = next(self._rids)
            for _ in range(params.n - 1):
                next(self._rids)
            result.choices = [Completion() for _ in range(params.n)]
            active.update((rid + index, (result, choice)) for index, choice in enumerate(result.choices))
            self._tokenizer.send(_checked(self._request(rid, prompt, params, cache_salt)))

    def _request(self, rid: int, prompt: Any, params: SamplingParams, cache_salt: str) -> Generate:
        is_ids = not isinstance(prompt, str | dict)
        return Generate(
            rid=rid,
            request_id=f"offline-{rid}",
            n=params.n,
            text=prompt if isinstance(prompt, str) else None,
            ids=Ids("i", prompt) if is_ids else None,
            chat=prompt if isinstance(prompt, dict) else None,
            sampling=self._sampling(params),
            output=Output(
                stop=[params.stop] if isinstance(params.stop, str) else list(params.stop),
                include_stop=params.include_stop_str_in_output,
                skip_special_tokens=params.skip_special_tokens,
                whole=True,
                prompt_ids=True,
            ),
            priority=0,
            cache_salt=cache_salt,
            received_ns=time.monotonic_ns(),
            grammar=[
                grammar_part(kind, value, f"structured_outputs.{kind}")
                for kind, value in (params.structured_outputs or {}).items()
            ],
            bad_words=params.bad_words,
        )

    def _sampling(self, params: SamplingParams) -> Sampling:
        if params.prompt_logprobs is not None and not self.model.reads_prompts:
            raise ValueError(f"prompt_logprobs: needs a model, and {self.model.name} computes nothing")
        chosen = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        for name in chosen:
            for value in (self.model.defaults.get(name), getattr(params, name)):
                chosen[name] = chosen[name] if value is None else value
        return Sampling(
            temperature=float(chosen["temperature"]),
            top_p=float(chosen["top_p"]),
            top_k=max(0, int(chosen["top_k"])),
            min_p=float(chosen["min_p"]),
            repetition_penalty=float(chosen["repetition_penalty"]),
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            bias_ids=Ids("i", params.logit_bias),
            bias_values=list(params.logit_bias.values()),
            allowed_ids=Ids("i", params.allowed_token_ids or []),
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            max_tokens=params.max_tokens or 0,
            min_tokens=params.min_tokens,
            stop_token_ids=Ids("i", params.stop_token_ids),
            ignore_eos=params.ignore_eos,
            logprobs=-1 if params.logprobs is None else params.logprobs,
            prompt_logprobs=-1 if params.prompt_logprobs is None else params.prompt_logprobs,
        )

    def _take(self, text: Text, active: dict[int, tuple[RequestResult, Completion]]) -> int:
        """Append a Text message's pieces. Returns how many choices it ended."""
        for head in text.heads:
            if head.rid in active:
                result, _ = active[head.rid]
                result.prompt_tokens, result.cached_tokens = head.prompt_tokens, head.cached_tokens
                result.prompt_token_ids = head.prompt_ids.tolist()
        for reading in text.readings:
            if reading.rid in active:
                result, _ = active[reading.rid]
                result.prompt_logprobs += _candidates(reading.logprobs)
                result.prompt_logprobs[0] = None
        rows = _candidates(text.logprobs) if text.logprobs is not None else []
        start = 0
        for rid, piece, num_tokens in zip(text.rids, text.texts, text.num_tokens, strict=True):
            if rid in active:
                _, choice = active[rid]
                choice.text += piece
                choice.token_ids += text.token_ids[start : start + num_tokens]
                choice.logprobs += filter(None, rows[start : start + num_tokens])
            start += num_tokens
        ended = 0
        for tail in text.tails:
            if tail.rid in active:
                self._end(tail, active.pop(tail.rid)[1])
                ended += 1
        return ended

    @staticmethod
    def _end(tail: Tail, choice: Completion) -> None:
        if tail.refusal is not None:
            raise LLMError(tail.refusal.message)
        choice.finish_reason = REASON_NAMES[tail.reason]
        choice.stop_reason = tail.stop_string if tail.stop_string is not None else tail.stop_token


def _candidates(columns: Logprobs) -> list[Candidates]:
    """The candidates of each row, none for a token that nothing was asked of."""
    entries = zip(columns.ids, columns.values, columns.pieces, strict=True)
    named = ((token_id, Candidate(value, piece.decode(errors="replace"))) for token_id, value, piece in entries)
    return [dict(islice(named, count)) for count in columns.counts]


def _checked(request: Generate) -> Generate:
    """The request, if the ring can carry it. Raises ValueError: a frame that is dropped would never be answered."""
    try:
        decode(encode(request, 0))
    except (WireError, TypeError, OverflowError) as error:
        raise ValueError(f"a parameter has a wrong type or size: {error}") from None
    return request
