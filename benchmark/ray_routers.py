"""Request routers to compare deploy/ray's with."""

from __future__ import annotations

import random

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class RandomRouter(RequestRouter):
    """Any replica, whatever it has and whatever it is at."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        order = random.sample(candidate_replicas, len(candidate_replicas))
        return [[replica] for replica in order]
