"""What all schemas of request bodies have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Schema(BaseModel):
    """An object of a request body: its types are strict, and it has no other fields than these."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)
