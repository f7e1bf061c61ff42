"""POST /start_profile and /stop_profile, with the fields that vLLM's and SGLang's clients send where they fit.

Of several gateways the first one sees to it, whichever is asked.
"""

from __future__ import annotations

from typing import Annotated, Literal

from aiohttp import web
from pydantic import Field

from gateway.body import read_json
from gateway.company import Company
from gateway.errors import refuse
from gateway.json_response import json_response
from gateway.profiling.session import Profiler, Wanted
from gateway.schema import Schema
from gateway.schemas import parse
from ipc.codec import Map

MAX_BODY_BYTES = 64 << 10
MAX_SECONDS = 3600.0
ProcessKind = Literal["gateway", "tokenizer", "scheduler", "model", "detokenizer"]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
Count = Annotated[int, Field(ge=1)]

# What those servers know and this one has no use for, with the values that ask for nothing.
UNSUPPORTED = {
    "delay_iterations": (0,),
    "merge_profiles": (False,),
    "output_dir": (),  # where files are written is for whoever starts the server to say: --profile-dir
    "profile_by_stage": (False,),
    "profiler_kwargs": ({},),
    "start_step": (0,),
}


class ProfileRequest(Schema):
    """POST /start_profile; an empty body profiles everything until it is stopped."""

    seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] | None = None
    steps: Count | None = None
    num_steps: Count | None = None  # as SGLang calls it
    max_iterations: Annotated[int, Field(ge=0)] | None = None  # as vLLM calls it; 0 is no limit
    processes: Annotated[list[ProcessKind], Field(min_length=1)] | None = None
    torch: bool | None = None
    activities: Annotated[list[Literal["CPU", "GPU"]], Field(min_length=1)] | None = None  # what SGLang's torch records
    stacks: bool = False
    with_stack: bool = False
    shapes: bool = False
    record_shapes: bool = False
    profile_prefix: FileName | None = None
    profile_id: FileName | None = None


class Profiles:
    """The handlers."""

    def __init__(self, profiler: Profiler, company: Company) -> None:
        self._profiler = profiler
        self._company = company
        company.answer("start_profile", self._start)
        company.answer("stop_profile", self._stop)

    async def start(self, request: web.Request) -> web.Response:
        """Let all processes record what they do, for one timeline. Raises ApiError 400, 409 and 500."""
        body = await read_json(request, MAX_BODY_BYTES) if request.can_read_body else {}
        return json_response(await self._company.ask_first("start_profile", {"body": body}))

    async def stop(self, request: web.Request) -> web.Response:
        """End the recording and write the trace: where it is, and its size. Raises ApiError 409 and 500."""
        return json_response(await self._company.ask_first("stop_profile", {}))

    async def _start(self, details: Map) -> Map:
        return await self._profiler.start(wanted(parse(ProfileRequest, details["body"], UNSUPPORTED)))

    async def _stop(self, details: Map) -> Map:
        return await self._profiler.stop()


def wanted(request: ProfileRequest) -> Wanted:
    """What a request asks for, whatever it calls it. Raises ApiError 400."""
    steps = {count for count in (request.steps, request.num_steps, request.max_iterations) if count}
    if len(steps) > 1:
        refuse("steps: num_steps and max_iterations are other names of it, and they differ", "steps")
    if steps and request.processes and "scheduler" not in request.processes:
        refuse("steps: the scheduler counts them, and it is not among the processes", "steps")
    if request.torch is False and request.activities:
        refuse("activities: are the torch profiler's, which torch switches off", "activities")
    return Wanted(
        processes=tuple(request.processes or ()),
        seconds=request.seconds or 0.0,
        steps=next(iter(steps), 0),
        torch=request.torch is not False,
        stacks=request.stacks or request.with_stack,
        shapes=request.shapes or request.record_shapes,
        prefix=request.profile_prefix or request.profile_id or "",
    )
