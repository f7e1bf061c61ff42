"""The application: `serve run deploy/ray/app.yaml`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from deploy.ray.front_door import FrontDoor
from deploy.ray.ring import Ring
from deploy.ray.router import PrefixRouter
from ipc.options import OptionError, from_command_line

GRACE_S = 10.0  # for a replica to leave, beyond what its requests get
STARTS = 3  # that may fail before the deployment has failed: what is wrong with a model or an option stays wrong
MAX_ONGOING_REQUESTS = 4096  # as many as a gateway takes connections: the ring's own queue is the one that counts
# What the application decides: nobody but its replica reaches a ring, and every ring publishes what it has cached.
RESERVED = (
    "host", "port", "uds", "root_path", "gateway_workers", "ssl_certfile", "ssl_keyfile", "ssl_ca_certs",
    "kv_events_endpoint", "kv_events_replay_endpoint", "kv_events_topic",
)  # fmt: skip


class Arguments(BaseModel):
    """What stands under `args:` in the application's file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = "smollm2-135m"
    flags: list[str] = []  # of launch.py, for every ring


class ArgumentError(ValueError):
    """Something under `args:` cannot be used; the text names it and the remedy."""


def build(args: dict[str, Any]) -> Application:
    """The front door, bound to the rings. Raises ArgumentError.

    Numbers of replicas, resources and autoscaling stand under `deployments:` in the file.
    """
    options = ring_options(args)
    leave_s = options["shutdown_timeout"] + GRACE_S
    rings = serve.deployment(
        Ring,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=leave_s,
        max_constructor_retry_count=STARTS,
        request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
        ray_actor_options={"num_gpus": options["tensor_parallel_size"]} if options["tensor_parallel_size"] > 1 else {},
    )
    door = serve.deployment(FrontDoor, max_ongoing_requests=MAX_ONGOING_REQUESTS, graceful_shutdown_timeout_s=leave_s)
    return door.bind(rings.bind(options, options["enable_prefix_caching"]), options["max_body_mib"] << 20)


def ring_options(args: dict[str, Any]) -> dict[str, Any]:
    """All options of launch.py for every ring. Raises ArgumentError."""
    try:
        asked = Arguments.model_validate(args)
        options = from_command_line([f"--model={asked.model}", *asked.flags])
        defaults = from_command_line([])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise ArgumentError(f"args.{name}: {first['msg']}; known are model and flags") from None
    except OptionError as error:
        raise ArgumentError(f"args.flags: {error}") from None
    for name in RESERVED:
        if options[name] != defaults[name]:
            flag = "--" + name.replace("_", "-")
            raise ArgumentError(f"args.flags: {flag} is not for a ring behind the front door; leave it out")
    return options
