"""What the gateway knows of the ring: which processes are ready, which model it is, what everybody's figures are."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.errors import SHOWN_NAME_CHARS, ApiError, shorten
from ipc.control_messages import Beat, Counted, Loading, ModelFiles, RingState
from ipc.ledger import Ledger
from ipc.names import room_of

# About how long a start takes.
MODEL_START_S = 5.0
PROCESS_START_S = 1.0
METRICS_ONLY = ("metrics", "tally", "step_seconds")  # what is long, and on the metrics page


class RingView:
    """Filled by the messages of the supervisor; asked by the handlers."""

    def __init__(self, served_names: list[str]) -> None:
        self.draining = False
        self._drained_at = 0.0  # when the drain is over at the latest, on the monotonic clock
        self.model: ModelFiles | None = None
        self.ledger = Ledger()
        self._created = int(time.time())
        self._served_names = served_names
        self._states: dict[str, str] = {}
        self._loading: Loading | None = None
        self._beats: dict[str, tuple[Beat, float]] = {}

    def update(self, message: RingState | ModelFiles | Loading | Beat | Counted) -> None:
        match message:
            case Counted():
                self.ledger.go_on_from(message)
            case RingState():
                self._states = message.states
            case ModelFiles():
                self.model = message
            case Loading():
                self._loading = message
            case Beat():
                self._beats[message.process] = (message, time.monotonic())
                self.ledger.update(message)

    @property
    def states(self) -> Mapping[str, str]:
        """Every process: "starting", "ready" or "lost"."""
        return self._states

    @property
    def gateways(self) -> list[str]:
        """The names of all gateways."""
        return [name for name in self._states if room_of(name) == "gateway"]

    @property
    def failed(self) -> list[str]:
        """The processes that are lost for good."""
        return [name for name, state in self._states.items() if state == "failed"]

    @property
    def names(self) -> list[str]:
        """The names that clients know the model by; the first one is shown. None before the model is known."""
        return self._served_names or ([self.model.name] if self.model else [])

    def obstacle(self, but: Sequence[str] = ()) -> str | None:
        """Why the ring is not ready, as a sentence for the client; None when it is, whatever those in `but` are."""
        if self.draining:
            return "the server is shutting down"
        states = sorted(self._states.items())
        waiting = [f"{name} is {state}" for name, state in states if state != "ready" and name not in but]
        if waiting or self.model is None:
            return "the server is not ready: " + (", ".join(waiting) or "the model is not known yet")
        return None

    def lose(self, process: str) -> None:
        """A process is lost: nothing is let in from this moment on, until a RingState says that all is well."""
        self._states = {**self._states, process: "lost"}

    def drain(self, timeout_s: float) -> None:
        """Admit nothing any more: the server ends within so many seconds."""
        self.draining = True
        self._drained_at = time.monotonic() + timeout_s

    def retry_after_s(self) -> float:
        """When a request that cannot be served now may be: by this server, or by the one that takes its place."""
        if self.draining:
            return self._drained_at - time.monotonic()
        missing = {room_of(name) for name, state in self._states.items() if state != "ready"}
        return MODEL_START_S if not self._states or "model" in missing else PROCESS_START_S

    def unready(self, reason: str) -> ApiError:
        """The error of a request that cannot be served now."""
        return ApiError(503, reason, retry_after_s=max(1.0, self.retry_after_s()))

    def admit(self) -> ModelFiles:
        """The model, when requests can be served now. Raises ApiError 503. The other gateways are not needed for it."""
        obstacle = self.obstacle(but=self.gateways)
        if obstacle is not None or self.model is None:
            raise self.unready(obstacle or "the model is not known yet")
        return self.model

    def need(self, process: str) -> None:
        """Raise ApiError 503 unless this process is there to be asked."""
        state = self._states.get(process, "starting")
        if state != "ready":
            raise self.unready(f"the {process} is {state}")

    def name_for(self, requested: str | None) -> str:
        """The served name that a request means; without one, the first. Raises ApiError 404 for any other."""
        if requested is None:
            return self.names[0]
        if requested not in self.names:
            shown = shorten(requested, SHOWN_NAME_CHARS)
            have = ", ".join(self.names)
            raise ApiError(404, f"the model {shown!r} does not exist; this server has {have}", "model")
        return requested

    def readiness(self) -> dict[str, Any]:
        """Who is ready, and how far the model is: the details of `/ready`."""
        loading = self._loading
        return {
            "states": self._states,
            "loading": loading and {"phase": loading.phase, "done": loading.done, "total": loading.total},
        }

    def model_cards(self) -> list[dict[str, Any]]:
        """The entries of `/v1/models`, one a name. Raises ApiError 503 before the model is known."""
        if self.model is None:
            raise ApiError(503, "the model is not known yet")
        return [
            {
                "id": name,
                "object": "model",
                "created": self._created,
                "owned_by": "quintet",
                "max_model_len": self.model.max_model_len,
            }
            for name in self.names
        ]

    def stats(self, process: str) -> dict[str, Any]:
        """The last figures of a process; empty before the first."""
        beat, _ = self._beats.get(process, (None, 0.0))
        return beat.stats if beat is not None else {}

    def loads(self) -> dict[str, Any]:
        """The last figures of every process, and how old they are in seconds."""
        now = time.monotonic()
        return {
            name: {"age_s": round(now - arrived, 3), "progress": beat.progress}
            | {key: value for key, value in beat.stats.items() if key not in METRICS_ONLY}
            for name, (beat, arrived) in sorted(self._beats.items())
        }

    def progress(self, process: str) -> int:
        """What a process counts as progress; 0 before it has reported."""
        beat, _ = self._beats.get(process, (None, 0.0))
        return beat.progress if beat is not None else 0

    def age_s(self, process: str) -> float | None:
        """How old the last figures of a process are; None before the first."""
        beat, arrived = self._beats.get(process, (None, 0.0))
        return None if beat is None else time.monotonic() - arrived
