"""One sequence: a prompt and the output that grows behind it, as the scheduler sees it."""

from __future__ import annotations

from dataclasses import replace

from ipc.codec import Ids
from ipc.messages import Head, Output, Refusal, Sampling, Submit, Tail
from scheduler_proc.blocks import root_hash
from scheduler_proc.life_cycle import State

Rank = tuple[float, ...]


class Sequence:
    """The scheduler's record of one sequence.

    Three counters tell how far it is. `token_ids` grows only when a result arrives; the two others run ahead of it by
    the steps in flight, on the assumption that every step samples:

        num_planned    tokens whose KV is computed once all planned steps have run
        num_tokens     tokens that exist then: the prompt, and an output token for every step that samples
    """

    __slots__ = (
        "batch_sizes", "blocks", "cache_salt", "cached_tokens", "capacity", "choice", "deadline_ns", "discard_until",
        "execution_ns", "first_step", "first_token_ns", "grammar", "hashes", "is_long", "last_step", "max_length",
        "min_output", "next_look", "num_planned", "num_read", "num_registered", "num_shared", "num_steps", "num_tokens",
        "opened", "order", "output", "plain_until", "preemptions", "priority", "prompt_len", "queued_ns", "queued_step",
        "rank", "received_ns", "request_id", "requeued_ns", "rid", "root", "sampling", "scheduled_ns", "siblings",
        "slot", "started_ns", "state", "stop_ids", "tenant", "token_ids", "tokenized_ns", "turn",
    )  # fmt: skip

    def __init__(self, submit: Submit, choice: int, order: int, now: int) -> None:
        self.rid = submit.rid + choice
        self.request_id = submit.request_id
        self.choice = choice
        self.order = order  # of arrival
        self.priority = submit.priority
        self.tenant = submit.tenant
        self.rank: Rank = ()  # among the running, smaller is more important; set at each admission
        self.state = State.NEW
        self.token_ids: Ids = submit.token_ids[:]
        self.prompt_len = len(submit.token_ids)
        self.sampling: Sampling = _for_choice(submit.sampling, choice)
        self.output: Output = submit.output
        # A sequence that is only its prompt ends before the one token that it is planned for.
        self.max_length = self.prompt_len + (submit.sampling.max_tokens or 1)
        self.min_output = submit.sampling.min_tokens
        self.stop_ids: frozenset[int] = frozenset()  # tokens that end it
        self.grammar = -1  # the number of the one that its output follows; -1 when it is free
        self.siblings: list[Sequence] = []  # held until this one's prefill is planned

        self.num_planned = 0
        self.num_tokens = self.prompt_len
        self.slot = -1  # in the runner's batch; -1 when it has none
        self.last_step = -1  # the last step that it is part of
        self.turn = 0  # grows with every decode, where not all sequences fit into one step
        self.discard_until: float = -1  # results up to this step are not to be believed; infinity when it is over
        self.next_look = 0  # the length of token_ids at which a new token needs more than to be appended
        self.plain_until = 0  # while num_tokens is below, the next step decodes one token into a block that is there
        self.is_long = False  # its prefill is over the threshold of long ones
        self.blocks: list[int] = []
        self.capacity = 0  # tokens that its blocks hold
        self.num_shared = 0  # leading blocks that it found in the cache
        self.cache_salt = submit.cache_salt
        self.root = root_hash(submit.cache_salt)
        self.hashes: list[bytes] = []  # chain hashes of the full blocks of token_ids
        self.num_registered = 0  # how many leading blocks the pool knows by hash, or need not

        self.num_read = 0  # leading tokens of the prompt whose log-probabilities were sent
        self.cached_tokens = 0
        self.preemptions = 0
        self.opened = False  # its Head has been sent
        self.received_ns = submit.received_ns
        self.tokenized_ns = submit.tokenized_ns
        self.deadline_ns = submit.deadline_ns  # 0 when it may take for ever
        self.queued_ns = now
        self.queued_step = 0  # the step that was planned next when it was queued last
        self.requeued_ns = 0  # when it was queued again after a preemption
        self.scheduled_ns = 0
        self.started_ns = 0
        self.first_token_ns = 0
        self.first_step = -1
        # Of the steps that ended while it had a slot; see `StepTotals`.
        self.num_steps = 0
        self.batch_sizes = 0
        self.execution_ns = 0

    @property
    def num_output(self) -> int:
        """Output tokens that have arrived."""
        return len(self.token_ids) - self.prompt_len

    @property
    def num_computed(self) -> int:
        """Tokens whose KV is there now or once the steps in flight have run."""
        return min(self.num_planned, len(self.token_ids))

    @property
    def reads_prompt(self) -> bool:
        """Whether every token of its prompt must be computed, those in the cache included."""
        return self.sampling.prompt_logprobs >= 0 or bool(self.sampling.pooling)

    def grow(self, blocks: list[int], block_size: int) -> None:
        """It gets these blocks as well."""
        self.blocks += blocks
        self.capacity += len(blocks) * block_size

    def head(self) -> Head:
        return Head(
            rid=self.rid, output=self.output, prompt_tokens=self.prompt_len, cached_tokens=self.cached_tokens,
            received_ns=self.received_ns, tokenized_ns=self.tokenized_ns, queued_ns=self.queued_ns,
            scheduled_ns=self.scheduled_ns,
            prompt_ids=self.token_ids[: self.prompt_len if self.output.prompt_ids else 0],
        )  # fmt: skip

    def tail(self, reason: int, now: int, stop_token: int | None = None, refusal: Refusal | None = None) -> Tail:
        return Tail(
            rid=self.rid, reason=reason, completion_tokens=self.num_output, first_token_ns=self.first_token_ns,
            finished_ns=now, preemptions=self.preemptions, first_step=self.first_step, started_ns=self.started_ns,
            execution_ns=self.execution_ns, batch_size=self.batch_sizes / self.num_steps if self.num_steps else 0.0,
            stop_token=stop_token, refusal=refusal,
        )  # fmt: skip


def _for_choice(sampling: Sampling, choice: int) -> Sampling:
    """The sampling of one choice: each has its own seed, kept to 64 bits with a sign; the first reads the prompt."""
    seed = (sampling.seed + choice + 2**63) % 2**64 - 2**63
    if choice == 0:
        return replace(sampling, seed=seed)
    return replace(sampling, seed=seed, prompt_logprobs=-1, pooling="")
