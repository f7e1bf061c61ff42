"""Serve's request router: `deploy.prefix_routing` decides, by the rings' KV events and by what each has in flight."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deploy.prefix_routing import PrefixIndex, PrefixRouting
from deploy.ray.kv_feed import KvFeed
from deploy.ray.prompts import NOTHING, Prompt


class PrefixRouter(RequestRouter):
    """One in each front door. A call that names no prompt goes to the least loaded replica."""

    def initialize_state(self, **settings: Any) -> None:
        """`settings` are those of `PrefixRouting`: load_factor, free_load, ring_tokens."""
        self._index = PrefixIndex()
        self._lock = threading.Lock()  # of the index
        self._rule = PrefixRouting(self._index, **settings)
        self._feeds: dict[str, KvFeed] = {}
        self._sent: Counter[ReplicaID] = Counter()  # calls of this router that have not ended

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replica of choice alone, and behind it the others, for when it takes no more."""
        prompt = _prompt_of(pending_request)
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        loads = {name: self._load(replica.replica_id) for name, replica in by_name.items() if name not in prompt.avoid}
        if not loads:
            loads = {name: self._load(replica.replica_id) for name, replica in by_name.items()}
        if len(prompt.token_ids) or prompt.conversation:
            with self._lock:
                name = self._rule.choose(prompt.token_ids, loads, prompt.salt, prompt.conversation).replica
        else:
            name = min(loads, key=lambda each: (loads[each], each))
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # when nobody takes it, wait before the next round
        return [[by_name.pop(name)], list(by_name.values())]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Follow the KV events of those that are there, and forget those that are not."""
        super().update_replicas(replicas)
        present = {replica.replica_id.unique_id: replica.replica_metadata for replica in replicas}
        for name in self._feeds.keys() - present.keys():
            self._feeds.pop(name).stop()
        for name, metadata in present.items():
            if metadata and name not in self._feeds:
                self._feeds[name] = KvFeed(self._index, self._lock, name, metadata)

    # -- what each replica is at ---------------------------------------------------------------------------------------

    def on_send_request(self, replica_id: ReplicaID) -> None:
        super().on_send_request(replica_id)
        self._sent[replica_id] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        super().on_request_completed(replica_id, internal_request_id)
        self._sent[replica_id] -= 1
        if self._sent[replica_id] <= 0:
            del self._sent[replica_id]

    def _load(self, replica_id: ReplicaID) -> int:
        """Requests in flight there: this router's own, exactly, or more when the replica has told of others' lately."""
        return max(self._sent[replica_id], self.replica_queue_len_cache.get(replica_id) or 0)


def _prompt_of(pending: PendingRequest | None) -> Prompt:
    prompts = [arg for arg in pending.args if isinstance(arg, Prompt)] if pending is not None else []
    return prompts[0] if prompts else NOTHING
