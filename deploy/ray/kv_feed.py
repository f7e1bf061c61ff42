"""What the replicas have cached, kept up with in threads beside the router."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from deploy.kv_events_consumer import KvEvents
from deploy.prefix_routing import EventError, PrefixIndex

LOOK_INTERVAL_S = 0.5  # how often a thread sees whether it is still wanted

log = logging.getLogger("ray.serve")


class KvFeed(threading.Thread):
    """Feeds one replica's KV events to an index, until `stop`."""

    def __init__(self, index: PrefixIndex, lock: threading.Lock, replica: str, endpoints: Mapping[str, str]) -> None:
        """`endpoints` are a ring's options by name; `lock` is held around every use of the index."""
        super().__init__(name=f"kv events of {replica}", daemon=True)
        self._index = index
        self._lock = lock
        self._replica = replica
        self._endpoints = endpoints["kv_events_endpoint"], endpoints["kv_events_replay_endpoint"]
        self._stopped = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with KvEvents(*self._endpoints) as events:
                while not self._stopped.is_set():
                    for event in events.receive(LOOK_INTERVAL_S):
                        with self._lock:
                            self._index.apply(self._replica, event)
        except EventError as error:
            log.error("prompts no longer follow what is cached there: %s", error)
        finally:
            with self._lock:
                self._index.cleared(self._replica)

    def stop(self) -> None:
        """Forget the replica; what its thread still does is over soon."""
        self._stopped.set()
