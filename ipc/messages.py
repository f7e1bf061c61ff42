"""The protocol of the ring: every message of a request's life, its fields and their units, who sends it to whom.

             HTTP / SSE
 client <----------------> gateway ----Generate, Abort----> tokenizer_proc
                              ^                                   |
                              |                             Submit, Abort
                            Text                                  v
                              |                            scheduler_proc <---StopHit--- detok_proc
                         detok_proc <---------Tokens--------------+
                                                   Plan, Prepare  |  ^  Result, Prepared
                                                                  v  |
                                                           model_proc (one per GPU)

Look-ups go to whoever knows the answer - the tokenizer, the scheduler, another gateway - and the answer comes straight
back.

Start-up, health, profiling and recovery have messages of their own, in `ipc.control_messages`: together these two files
are all that is ever on a wire. A sequence is known by its `rid`; `ipc.names` says how they are made.
Times are `time.monotonic_ns()` of the one machine that all processes share; 0 means "has not happened".
`ipc.codec` turns these classes into frames; it knows the annotations used here and no others.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ipc.codec import Blobs, Floats, Ids, Ints, Longs, Map, Strs, message, record

# Why a sequence ended. The first two are shown to clients; a refused or failed one carries a Refusal.
NOT_FINISHED, STOP, LENGTH, ABORT, ERROR, TIMEOUT = range(6)
REASON_NAMES = ("", "stop", "length", "abort", "error", "timeout")


# ---------------------------------------------------------------------------------------------------------------------
# Records that travel inside messages


@record
@dataclass(slots=True)
class Refusal:
    """Why a request is refused or failed, in the terms of the HTTP error that the client gets."""

    status: int  # HTTP status code
    kind: str  # OpenAI error type, such as "invalid_request_error"
    message: str  # one sentence for the client
    param: str = ""  # the request's field at fault, "" when there is none
    retry_after_ms: int = 0  # when it may be worth to try again; 0 says nothing


@record
@dataclass(slots=True)
class Sampling:
    """How the next token is chosen. The defaults are neutral: they change nothing."""

    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output
    presence_penalty: float = 0.0  # over output
    frequency_penalty: float = 0.0  # over output
    bias_ids: Ids = field(default_factory=lambda: Ids("i"))  # logit_bias: token ids
    bias_values: Floats = field(default_factory=list)  # and what is added to their logits
    allowed_ids: Ids = field(default_factory=lambda: Ids("i"))  # the only token ids that may come; empty allows all
    bad_ids: Ids = field(default_factory=lambda: Ids("i"))  # rows of token ids that must not come, one behind the other
    bad_counts: Ints = field(default_factory=list)  # how many ids each of those rows has
    seed: int = 0  # choice i of a request uses seed + i
    logprobs: int = -1  # alternatives reported beside each sampled token; -1 reports nothing, 0 the token alone
    max_tokens: int = 0  # upper bound of the output; 0 is the rest of the context
    min_tokens: int = 0  # no end of sequence and no stop token before this many
    stop_token_ids: Ids = field(default_factory=lambda: Ids("i"))
    ignore_eos: bool = False
    prompt_only: bool = False  # the prompt is computed and read, and no token is sampled
    prompt_logprobs: int = -1  # as `logprobs`, beside each token of the prompt
    pooling: str = ""  # "mean" or "last": the embedding of the prompt is wanted


@record
@dataclass(slots=True)
class GrammarPart:
    """One grammar of a constraint. The first one, the whole answer, may refer to the others as `@name`."""

    name: str
    kind: str  # "json": a JSON schema; "regex": a regular expression; "lark" and "gbnf": a grammar in that notation
    text: str
    param: str  # the request's field that it comes from


@record
@dataclass(slots=True)
class Output:
    """How tokens become text."""

    stop: Strs = field(default_factory=list)  # stop strings
    include_stop: bool = False  # keep the stop string in the text
    skip_special_tokens: bool = True
    whole: bool = False  # nobody reads along: the text is sent once, at the end
    prompt_ids: bool = False  # the Head brings the prompt's token ids


@record
@dataclass(slots=True)
class Logprobs:
    """Log-probabilities of a run of tokens, one row a token.

    Row r has `counts[r]` entries (0: nothing was asked for this token): the chosen token first, then the most likely
    ones in falling order. `ids`, `values` and `pieces` hold the entries of all rows one behind the other.
    """

    counts: Ints = field(default_factory=list)
    ids: Ids = field(default_factory=lambda: Ids("i"))
    values: Floats = field(default_factory=list)  # natural logarithms
    pieces: Blobs = field(default_factory=list)  # the bytes of each token; filled in by the detokenizer


@record
@dataclass(slots=True)
class Reading:
    """What the model makes of a piece of a prompt, for those who asked."""

    rid: int
    start: int  # position in the prompt of the first token of `logprobs`
    logprobs: Logprobs  # of the tokens from there on; the prompt's first one was not predicted: it alone, with 0
    embedding: Floats  # of the whole prompt, once its end is read; neither scaled nor cut


@record
@dataclass(slots=True)
class Head:
    """What opens a sequence downstream of the scheduler; sent once, before or with whatever else is sent of it."""

    rid: int
    output: Output
    prompt_tokens: int
    cached_tokens: int  # prompt tokens taken from the prefix cache
    received_ns: int  # the gateway had read the request
    tokenized_ns: int
    queued_ns: int  # the scheduler took it in
    scheduled_ns: int  # its first step was planned; 0 when it never ran
    prompt_ids: Ids = field(default_factory=lambda: Ids("i"))  # when its Output asks for them


@record
@dataclass(slots=True)
class Tail:
    """The one terminal event of a sequence."""

    rid: int
    reason: int  # STOP, LENGTH, ABORT, ERROR or TIMEOUT
    completion_tokens: int
    first_token_ns: int
    finished_ns: int
    preemptions: int = 0
    first_step: int = -1  # the step that sampled its first token
    started_ns: int = 0  # the runner began the first step that it was part of
    execution_ns: int = 0  # how long the runner worked on the steps that ended while it was in the running batch
    batch_size: float = 0.0  # sequences in a step, the mean of those steps
    stop_token: int | None = None  # the token that ended it, if one of stop_token_ids or an end of sequence did
    stop_string: str | None = None  # the stop string that ended it
    refusal: Refusal | None = None


@record
@dataclass(slots=True)
class Admit:
    """A sequence enters a slot of the runner's persistent batch."""

    slot: int
    rid: int
    token_ids: Ids  # prompt, and after a preemption the output so far
    output_start: int  # where in token_ids the output starts
    num_computed: int  # tokens whose KV is there already (prefix cache)
    blocks: Ints  # the sequence's block table so far
    sampling: Sampling
    grammar: int = -1  # the number of the prepared grammar that its output follows; -1 when it is free


# ---------------------------------------------------------------------------------------------------------------------
# Round the ring


@message(1)
@dataclass(slots=True)
class Generate:
    """gateway -> tokenizer: one prompt, for n choices. Exactly one of `text`, `ids` and `chat` is set."""

    rid: int
    request_id: str  # the client-visible name, for logs and look-ups
    n: int
    text: str | None
    ids: Ids | None
    chat: Map | None  # messages, and what else the chat template may see
    sampling: Sampling
    output: Output
    priority: int  # lower is more important; 0 unless the policy reads it
    cache_salt: str
    received_ns: int
    tenant: str = ""  # who asks, for the fair policy: a digest of the API key and the `user` field
    deadline_ns: int = 0  # ends with TIMEOUT when this has passed; 0 is never
    grammar: list[GrammarPart] = field(default_factory=list)  # what the output must follow; empty when it is free
    bad_words: Strs = field(default_factory=list)  # texts that must not come; their ids go into the sampling


@message(2)
@dataclass(slots=True)
class Abort:
    """gateway -> tokenizer -> scheduler: these sequences are no longer wanted. Unknown rids are ignored."""

    rids: Longs


@message(3)
@dataclass(slots=True)
class Submit:
    """tokenizer -> scheduler: a tokenized request, or one that was refused and only travels on to its end."""

    rid: int
    request_id: str
    n: int
    token_ids: Ids
    sampling: Sampling
    output: Output
    priority: int
    cache_salt: str
    received_ns: int
    tokenized_ns: int
    refusal: Refusal | None
    tenant: str = ""  # as in Generate
    deadline_ns: int = 0
    grammar: str = ""  # what the output must follow, checked, in llguidance's own notation; "" when it is free


@message(4)
@dataclass(slots=True)
class Plan:
    """scheduler -> model, every rank: one step. Drops act first, then admissions, then block tables grow, then it runs.

    `num_tokens[i]` more tokens of slot `slots[i]` are computed: 1 is a decode, more is a prefill chunk. Slot i's block
    table grows by the next `num_blocks[i]` ids of `blocks`. A slot whose last known token is computed samples the next,
    unless its sampling is `prompt_only`.
    """

    step: int
    drop: Ints
    admit: list[Admit]
    slots: Ints
    num_tokens: Ints
    num_blocks: Ints
    blocks: Ints


@message(5)
@dataclass(slots=True)
class Result:
    """model, rank 0 -> scheduler: what a step sampled, in the order of the plan's slots (those that sampled only)."""

    step: int
    slots: Ints
    token_ids: Ids
    logprobs: Logprobs | None  # a row for each of `slots`, when any of them asked
    failed: Ints  # slots whose work in this step failed; they are not in `slots`
    errors: Strs  # why, one for each of `failed`
    started_ns: int
    finished_ns: int
    readings: list[Reading] = field(default_factory=list)  # what it read of prompts
    out_of_memory: bool = False  # nothing of the step counts, and nothing of it is to blame: it was too large


@message(6)
@dataclass(slots=True)
class Tokens:
    """scheduler -> detokenizer: what one step brought, one row a token, and the sequences that open or end with it."""

    heads: list[Head]
    rids: Longs
    token_ids: Ids
    logprobs: Logprobs | None  # a row for each of `rids`, when any of them asked
    tails: list[Tail]
    time_ns: int  # when the step's result arrived
    readings: list[Reading] = field(default_factory=list)  # no position twice; of sequences whose Head is out
    number: int = 0  # of those that this run sends to this detokenizer, from 0: without one, texts would be wrong


@message(7)
@dataclass(slots=True)
class StopHit:
    """detokenizer -> scheduler: these met a stop string, or have no text. Each gets its Tail, unless it was sent."""

    rids: Longs


@message(8)
@dataclass(slots=True)
class Text:
    """detokenizer -> gateway: pieces of text, one row a sequence that has something to show."""

    heads: list[Head]
    rids: Longs
    texts: Strs
    num_tokens: Ints  # how many tokens each text stands for
    token_ids: Ids  # those tokens, one row behind the other
    logprobs: Logprobs | None  # a row for each of `token_ids`, when any of them asked
    tails: list[Tail]
    time_ns: int  # as in Tokens
    readings: list[Reading] = field(default_factory=list)  # as in Tokens, with the pieces filled in
    number: int = 0  # of those that this run sends to this gateway, from 0


@message(9)
@dataclass(slots=True)
class Prepare:
    """scheduler -> model: compile a grammar, beside the steps, and forget those that nobody will use again."""

    grammar: int  # the number that Admit calls it by
    text: str  # as in Submit
    forget: Longs  # numbers of grammars


@message(10)
@dataclass(slots=True)
class Prepared:
    """model -> scheduler: a grammar is compiled, or cannot be."""

    grammar: int
    error: str  # why not, "" when it is compiled


# ---------------------------------------------------------------------------------------------------------------------
# Look-ups: no generation, answered straight into the asking gateway's inbox


@message(16)
@dataclass(slots=True)
class Tokenize:
    """gateway -> tokenizer: what are the token ids of this text, or of this chat?"""

    rid: int
    text: str | None
    chat: Map | None
    add_special_tokens: bool
    wants_names: bool = False


@message(17)
@dataclass(slots=True)
class Detokenize:
    """gateway -> tokenizer: what is the text of these ids?"""

    rid: int
    token_ids: Ids


@message(18)
@dataclass(slots=True)
class LookUp:
    """tokenizer -> gateway: the answer to Tokenize or Detokenize."""

    rid: int
    text: str
    token_ids: Ids
    refusal: Refusal | None
    names: Strs = field(default_factory=list)  # of the tokens in the vocabulary, when Tokenize wants them


@message(19)
@dataclass(slots=True)
class Inspect:
    """gateway -> scheduler: where is the request of this name? Answered with a Report."""

    rid: int  # of the question
    request_id: str


@message(20)
@dataclass(slots=True)
class FlushCache:
    """gateway -> scheduler: forget every cached prefix. Answered with a Report: {"blocks": how many became free}."""

    rid: int  # of the question


@message(42)
@dataclass(slots=True)
class Watch:
    """gateway -> scheduler: what is going on right now? Answered with a Report: `scheduler_proc.live.live_view`."""

    rid: int  # of the question


@message(21)
@dataclass(slots=True)
class Report:
    """scheduler -> gateway: the answer to Inspect, FlushCache or Watch."""

    rid: int
    body: Map  # of Inspect: {"sequences": [...]}, one entry a choice; empty when nobody is called so


@message(22)
@dataclass(slots=True)
class AskGateway:
    """gateway -> another gateway: what it alone knows. Answered with a GatewayReport.

    `gateway.company` lists what may be asked `about`, and with which `details`.
    """

    rid: int  # of the question
    about: str
    details: Map


@message(23)
@dataclass(slots=True)
class GatewayReport:
    """gateway -> gateway: the answer to AskGateway, or why there is none."""

    rid: int
    body: Map
    refusal: Refusal | None
