"""OpenAI's /v1/embeddings: what the loaded model makes of a text, as one vector of length 1. Nothing is generated."""

from __future__ import annotations

import base64
import time
from array import array
from typing import Any

import numpy as np
import orjson
from aiohttp import web
from numpy.typing import NDArray

from gateway.delivery import deliver
from gateway.errors import ApiError, refuse
from gateway.intake import Intake
from gateway.parameters import UNSUPPORTED_EMBEDDING
from gateway.request import Envelope, Job, check_priority, check_prompt_ids, deadline_ns
from gateway.ring import RingView
from gateway.schemas import EmbeddingRequest, parse
from gateway.sse import DONE, event
from gateway.streams import Piece, Stream
from gateway.tenant import tenant_of
from ipc.config import GatewayConfig
from ipc.messages import Generate, Output, Sampling


class Embeddings:
    """The handler."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Embeddings of texts or of token ids, pooled as the server is told by --pooling."""
        intake = self._intake
        given = await intake.read(request, lambda body: parse(EmbeddingRequest, body, UNSUPPORTED_EMBEDDING))
        job = embedding_job(given, intake.envelope(request), intake.ring, intake.config)
        is_base64 = given.encoding_format == "base64"
        try:
            return await deliver(
                request, intake.engine, job, lambda job, stream: EmbeddingAnswer(job, stream, is_base64)
            )
        except ApiError as error:
            raise error.about("input" if error.param == "prompt" else error.param) from None


def embedding_job(given: EmbeddingRequest, envelope: Envelope, ring: RingView, config: GatewayConfig) -> Job:
    """A request for embeddings as a job of prompts that nothing is generated for. Raises ApiError."""
    model, name = ring.admit(), ring.name_for(given.model)
    if not model.reads_prompts:
        refuse(f"model: embeddings need a model, and {name} computes nothing", "model")
    check_priority(given.priority, config.scheduling_policy)
    for index, prompt in enumerate(given.input):
        if isinstance(prompt, array):
            where = f"input[{index}]" if len(given.input) > 1 else "input"
            check_prompt_ids(prompt, model, where, room=0)
    now = time.monotonic_ns()
    request_id = given.request_id or envelope.request_id
    generates = [
        Generate(
            rid=0,
            request_id=request_id,
            n=1,
            text=prompt if isinstance(prompt, str) else None,
            ids=prompt if isinstance(prompt, array) else None,
            chat=None,
            sampling=Sampling(prompt_only=True, pooling=config.pooling),
            output=Output(whole=True),
            priority=given.priority,
            cache_salt="",
            received_ns=now,
            tenant=tenant_of(envelope.key, given.user or ""),
            deadline_ns=deadline_ns(now, given.timeout_ms, config.request_timeout),
        )
        for prompt in given.input
    ]
    return Job(
        model=name,
        request_id=request_id,
        n=1,
        generates=generates,
        logprobs=-1,
        return_token_ids=False,
        stream=False,
        include_usage=False,
        continuous_usage=False,
        metadata=None,
    )


class EmbeddingAnswer:
    """Shapes the answer; there is no stream of it."""

    def __init__(self, job: Job, stream: Stream, is_base64: bool) -> None:
        self._job = job
        self._stream = stream
        self._is_base64 = is_base64

    def body(self, pieces: list[Piece]) -> bytes:
        data = [
            {"object": "embedding", "index": index, "embedding": self._shown(sequence.readings[-1].embedding)}
            for index, sequence in enumerate(self._stream.sequences)
        ]
        prompt_tokens = self._stream.usage()["prompt_tokens"]
        usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
        return orjson.dumps({"object": "list", "data": data, "model": self._job.model, "usage": usage})

    def events(self, piece: Piece) -> bytes:
        return b""

    def closing(self) -> bytes:
        return DONE

    def failure(self, error: ApiError) -> bytes:
        return event(orjson.dumps(error.body())) + DONE

    def _shown(self, embedding: list[float]) -> Any:
        """As a list of numbers, or the bytes of little-endian float32 in base64."""
        vector = unit_vector(embedding)
        return base64.b64encode(vector.astype("<f4").tobytes()).decode() if self._is_base64 else vector.tolist()


def unit_vector(embedding: list[float]) -> NDArray[np.float64]:
    """The embedding scaled to length 1, as OpenAI's are; one of zeros stays as it is."""
    vector = np.array(embedding, dtype=np.float64)
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector
