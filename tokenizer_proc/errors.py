"""A request that cannot be served, and what the client is told."""

from __future__ import annotations

from ipc.messages import Refusal

MAX_MESSAGE_CHARS = 1000


class RequestError(Exception):
    """The client's request is at fault. The text is one line for the client; `param` names the field."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param

    def refusal(self) -> Refusal:
        """This error as the ring carries it: one line of limited length, and nothing that is not valid text."""
        line = " ".join(str(self).split())[:MAX_MESSAGE_CHARS]
        return Refusal(400, "invalid_request_error", line.encode(errors="replace").decode(), self.param)
