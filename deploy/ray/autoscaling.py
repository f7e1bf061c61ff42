"""Serve's autoscaling policy: as many rings as the requests in flight and the tokens in their queues ask for."""

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingContext


class RingPolicy:
    """Whichever asks for more. Serve keeps the result within min_replicas and max_replicas, and applies its delays.

    Requests alone mislead: ten prompts of 30,000 tokens are a queue of minutes, and ten of 100 are none.
    """

    def __init__(self, target_queued_tokens: float = 16384.0) -> None:
        """`target_queued_tokens` are the prompt tokens that may wait in one ring.

        The requests that it may be at are Serve's own setting, `target_ongoing_requests`.
        """
        if target_queued_tokens <= 0:
            raise ValueError(f"target_queued_tokens must be above 0, got {target_queued_tokens}")
        self._target_queued_tokens = target_queued_tokens

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """How many replicas there should be, as a fraction, and the policy's state: it has none."""
        queued = (context.aggregated_metrics or {}).get("queued_tokens", {})
        by_requests = context.total_num_requests / context.config.get_target_ongoing_requests()
        by_tokens = sum(queued.values()) / self._target_queued_tokens
        return max(by_requests, by_tokens), {}
