"""One streamed completion, measured from the client's side. Works against any OpenAI-style server."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp


@dataclass(slots=True)
class Measured:
    """What became of one request. Times are seconds of `time.perf_counter`, all measured here."""

    sent: float
    ttft: float = 0.0  # send -> first chunk with text
    latency: float = 0.0  # send -> last chunk with text
    itls: list[float] = field(default_factory=list)  # gaps between chunks with text
    prompt_tokens: int = 0  # as the server counts them
    completion_tokens: int = 0
    error: str = ""

    @property
    def tpot(self) -> float:
        """Seconds a token after the first."""
        return (self.latency - self.ttft) / (self.completion_tokens - 1) if self.completion_tokens > 1 else 0.0


async def complete(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Measured:
    """POST a completion, stream it, and count its tokens from the usage chunk. Failures end up in `error`."""
    request = {**body, "stream": True, "stream_options": {"include_usage": True}}
    result = Measured(sent=time.perf_counter())
    last = result.sent
    try:
        async with session.post(f"{url}/v1/completions", json=request) as response:
            if response.status != 200:
                result.error = f"{response.status}: {await response.text()}"
                return result
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                now = time.perf_counter()
                event = json.loads(line[6:])
                if "error" in event:
                    result.error = event["error"]["message"]
                    return result
                if event.get("usage"):
                    result.prompt_tokens = event["usage"]["prompt_tokens"]
                    result.completion_tokens = event["usage"]["completion_tokens"]
                if event["choices"] and event["choices"][0]["text"]:
                    if result.ttft:
                        result.itls.append(now - last)
                    else:
                        result.ttft = now - result.sent
                    last = now
    except (aiohttp.ClientError, TimeoutError) as error:
        result.error = f"{type(error).__name__}: {error}"
    result.latency = last - result.sent
    if not result.error and not result.completion_tokens:
        result.error = "the stream ended without usage"
    return result
